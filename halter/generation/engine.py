"""Generation for many prompts at once: no padding, rows join and leave the batch at any step, adapters mixed freely.

Every step is one pass over the tokens that each live row has not yet been through: a whole prompt for a row that has
just joined, one token for the others. So filling the cache and decoding are the same code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Unpack

import torch
from torch import Tensor

from halter.arguments import checked
from halter.errors import HalterError, Refusal
from halter.files.measured import Measured
from halter.files.tokenizer import Tokenizer
from halter.generation.beginnings import shared
from halter.generation.belonging import tell_others
from halter.generation.options import GenerationOptions
from halter.generation.prompts import (
    AnswerKeywords,
    EncodedPrompt,
    Prompts,
    as_list,
    as_template,
    check_prompts,
    encode_prompt,
    tell_of_template,
    told_of_files,
    told_of_marks,
)
from halter.generation.streaming import Answer, Generation, Piece
from halter.kinds import Words
from halter.methods.adapter import Adapter
from halter.methods.mixed import Mixed
from halter.methods.ready import Ready
from halter.methods.stacked import Stacked
from halter.model.cache import Cache
from halter.model.decoder import Decoder
from halter.model.packing import packed
from halter.model.passes import Pass
from halter.model.places import Acts
from halter.model.segments import Segments
from halter.numerics import choice
from halter.numerics.sampling import draw, penalise, uniform
from halter.telling import tell

MAX_ROWS = 32  # decoding is bound by reading the weights, so more rows cost little until here
PREFILL_TOKENS = 4096  # of prompts in one step; bounds the activations' memory
ROOM_TOKENS = 512  # of answer that the cache has room for at first; it doubles when that is full

One = Adapter | Stacked | Ready | None
Adapters = Annotated[One | Sequence[One], Words("an adapter, None, or a list with one for each prompt")]


@checked('halter.generate(model, tokenizer, ["Once upon a time"], adapter, max_new_tokens=20)')
def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Prompts,
    adapter: Adapters = None,
    **options: Unpack[AnswerKeywords],
) -> list[Generation]:
    """Answers to ``prompts``, ``n`` each, in their order: those of the first prompt, those of the second, ...

    A prompt is a string (used as it stands, after BOS; as one user turn where ``template`` is given), a list of
    messages (through ``template`` or the model's own chat template), or token ids; a single prompt is a list of one.
    A conversation that ends with the assistant's words is continued there, and ``prefill`` begins every answer so;
    an answer's text is what follows. Several answers to a prompt need a temperature above 0; the first is the one that
    ``n`` = 1 gives. ``template_date`` (YYYY-MM-DD): what day a template is told. ``adapter``: none, one for all, or a
    list with one (or None) for each prompt. ``max_rows``: answers worked on at once. Others are GenerationOptions'.
    """
    pieces = stream(model, tokenizer, prompts, adapter, **options)
    results = {piece.row: piece.result for piece in pieces if piece.result is not None}
    return [results[row] for row in range(len(results))]


def stream(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Prompts,
    adapter: Adapters = None,
    **options: Unpack[AnswerKeywords],
) -> Iterator[Piece]:
    """As ``generate``, but pieces of text as they become certain; a row's last piece carries its result."""
    given: dict[str, Any] = dict(options)
    template = as_template(given.pop("template", None))
    date, prefill = given.pop("template_date", None), given.pop("prefill", "")
    n, max_rows = given.pop("n", 1), given.pop("max_rows", MAX_ROWS)
    chosen = GenerationOptions.of(**given).told()
    _check_count(n, chosen)
    beyond = [id for id in chosen.stop_ids if not 0 <= id < model.config.vocab_size]
    if beyond:
        what = "stop_ids names ids that are not in the vocabulary"
        known, fix = f"0 to {model.config.vocab_size - 1}", "give ids of this model's tokenizer"
        raise Refusal("generation-options", what, found=beyond, expected=known, fix=fix)
    asked = as_list(prompts)
    for odd in filter(None, (told_of_marks(asked, template), told_of_files(asked))):
        tell(odd)
    tell_of_template(asked, template, adapter)
    encoded = [encode_prompt(tokenizer, prompt, template, date, prefill) for prompt in asked]
    both = enumerate(zip(encoded, one_per_prompt(adapter, len(encoded)), strict=True))
    requests = [
        Request(p, chosen, a, row=number * n + again, draws=number + (again << 32))
        for number, (p, a) in both
        for again in range(n)
    ]
    return Engine(model, tokenizer, requests, max_rows).run()


def _check_count(n: int, options: GenerationOptions) -> None:
    """Refusal ``generation-options`` where ``n`` answers are none, or all the same."""
    if n < 1:
        raise Refusal("generation-options", f"n, the answers to a prompt, is {n}", expected="1 or more", fix="n=1")
    if n > 1 and options.temperature == 0:
        what = f"the {n} answers to each prompt would all be the same: the temperature is 0"
        raise Refusal("generation-options", what, fix="set temperature above 0, e.g. 0.8, or n to 1")


def one_per_prompt(adapter: Adapters, prompts: int) -> list[One]:
    """The adapter of each prompt. Refusal ``adapter-count`` where a list does not match the prompts."""
    if adapter is None or isinstance(adapter, Adapter | Stacked | Ready):
        return [adapter] * prompts
    if len(adapter) != prompts:
        raise Refusal(
            "adapter-count",
            f"{len(adapter)} adapters for {prompts} prompts",
            expected="one adapter, or one a prompt",
            fix="give one adapter for all, or a list as long as that of the prompts",
        )
    return list(adapter)


@dataclass(frozen=True)
class Request:
    """One prompt with its own options and adapter; ``row`` names it in the pieces, ``draws`` in its random draws (as
    ``row`` where that is None)."""

    prompt: EncodedPrompt
    options: GenerationOptions = field(default_factory=GenerationOptions)
    adapter: One = None
    row: int = 0
    draws: int | None = None


class _Row:
    """A request while it is in the batch, in one slot of the cache."""

    def __init__(self, request: Request, answer: Answer, owner: int, slot: int) -> None:
        self.request, self.answer, self.owner, self.slot = request, answer, owner, slot
        self.draws = request.row if request.draws is None else request.draws
        self.pending: Sequence[int] = request.prompt.tokens
        self.seen: Tensor | None = None


class Engine:
    """Works through requests; the draws and (up to rounding) the logits of a row do not depend on the other rows."""

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, requests: Sequence[Request], max_rows: int = MAX_ROWS
    ) -> None:
        check_prompts([r.prompt for r in requests], model.config.context, model.config.vocab_size)
        tell_others(model, tokenizer, [r.adapter for r in requests])
        self.model = model
        distinct = {id(r.adapter): r.adapter for r in requests if r.adapter is not None}
        self._adapters = list(distinct.values())
        self._owner = {key: number for number, key in enumerate(distinct)}
        context = model.config.context
        self._waiting = deque((r, Answer(tokenizer, r.prompt, r.options, context)) for r in requests)
        self._live: list[_Row] = []
        self._bound: tuple[list[int], list[int], Acts] | None = None
        self._free = list(range(min(max(1, max_rows), len(requests))))
        # The last token of an answer is never fed back.
        self._longest = max((len(r.prompt.tokens) + answer.budget - 1 for r, answer in self._waiting), default=0)
        room = min(self._longest, max((len(r.prompt.tokens) for r in requests), default=0) + ROOM_TOKENS)
        with torch.inference_mode():
            self._cache = Cache(model.config, len(self._free), room, model.dtype, model.device)

    def run(self) -> Iterator[Piece]:
        """Pieces of all rows until every request has its result."""
        choice.keep_on(Measured.in_cache())
        with packed(self.model, len(self._free), max((answer.budget for _, answer in self._waiting), default=0)):
            yield from self._run()

    def _run(self) -> Iterator[Piece]:
        while self._waiting or self._live:
            self._admit()
            ids = self._step()
            ended = []
            for row, token in zip(self._live, ids, strict=True):
                text = row.answer.push(token)
                row.pending = (token,)
                if row.answer.result is not None:
                    ended.append(row)
                if text or row.answer.result is not None:
                    yield Piece(row.request.row, text, row.answer.result)
            for row in ended:
                self._live.remove(row)
                self._free.append(row.slot)
                self._cache.truncate(row.slot, 0)

    def _admit(self) -> None:
        """Let waiting requests into free slots, as many as one step should take."""
        tokens, live = 0, len(self._live)
        while self._free and self._waiting:
            request, answer = self._waiting[0]
            tokens += len(request.prompt.tokens)
            if tokens > PREFILL_TOKENS and tokens > len(request.prompt.tokens):
                break
            self._waiting.popleft()
            owner = -1 if request.adapter is None else self._owner[id(request.adapter)]
            self._live.append(_Row(request, answer, owner, self._free.pop(0)))
        if len(self._live) > max(1, live):
            self._share(live)
        self._live.sort(key=lambda row: row.owner)  # rows of one adapter are then computed together

    @torch.inference_mode()
    def _share(self, first_new: int) -> None:
        """Of beginnings that new rows have in common, or with a row at work, keep what is computed once for all."""
        rows = [row for row in self._live if row.owner < 0 or self._adapters[row.owner].tokenwise]
        new = set(map(id, self._live[first_new:]))
        alike = shared([row.request.prompt.tokens for row in rows], [row.owner for row in rows])
        for beginning in alike:
            source = rows[beginning.source]
            taking = [rows[at] for at in beginning.rows if id(rows[at]) in new]
            if not taking:
                continue
            if id(source) in new:
                source.pending = source.request.prompt.tokens[: beginning.length]
                self._hidden([source])
                source.pending = source.request.prompt.tokens[beginning.length :]
            self._cache.copy(source.slot, [row.slot for row in taking], beginning.length)
            for row in taking:
                row.pending = row.request.prompt.tokens[beginning.length :]

    @torch.inference_mode()
    def _step(self) -> list[int]:
        """Feed what is pending and choose every live row's next token."""
        logits = self._logits()
        finite = torch.isfinite(logits.amax(-1)).tolist()
        if not all(finite):
            rows = [row.request.row for row, fine in zip(self._live, finite, strict=True) if not fine]
            raise HalterError(f"the model's logits are not finite for prompts {rows}; are its weights or dtype broken?")
        options = [row.request.options for row in self._live]
        if any(o.repetition_penalty != 1 for o in options):
            penalty = torch.tensor([o.repetition_penalty for o in options])
            logits = penalise(logits, self._seen(), penalty)
        numbers = [uniform(r.request.options.seed, r.draws, len(r.answer.tokens)) for r in self._live]
        return draw(logits, [o.rule for o in options], numbers).tolist()

    def _logits(self) -> Tensor:
        """Float32 logits [live rows, V] after each row's last pending token."""
        hidden, segments, acts = self._hidden(self._live)
        last = None
        if len(hidden) > len(self._live):
            last = segments.last_tokens.to(hidden.device)
            hidden = hidden[last]
        return self.model.head(hidden, acts, last).float()

    def _hidden(self, rows: Sequence[_Row]) -> tuple[Tensor, Segments, Acts | None]:
        """Feed the rows' pending tokens: their states [N, dim], where they lie, and the acts."""
        lengths = [len(row.pending) for row in rows]
        if max(self._cache.lengths[row.slot] + n for row, n in zip(rows, lengths)) > self._cache.capacity:
            self._cache.grow(min(2 * self._cache.capacity, self._longest))
        prompts = [len(row.request.prompt.tokens) for row in rows]
        segments = self._cache.segments(lengths, [row.slot for row in rows], prompts)
        tokens = torch.tensor([id for row in rows for id in row.pending], device=self.model.device)
        acts = self._bind(segments, [row.owner for row in rows])
        return self.model.hidden(Pass(tokens, segments, acts, cache=self._cache)), segments, acts

    def _bind(self, segments: Segments, owners: list[int]) -> Acts | None:
        """The adapters' acts; those of the step before where rows and adapters are the same and position is no matter.

        An adapter must therefore not change while answers are being made.
        """
        if owners == [-1] * len(owners):
            return None
        counts = segments.query_lengths.tolist()
        if self._bound is not None and self._bound[:2] == (owners, counts):
            return self._bound[2]
        if len(set(owners)) > 1:
            acts = Mixed(self._adapters, owners).bind(self.model, segments)
        else:
            acts = self._adapters[owners[0]].bind(self.model, segments)
        alike = all(self._adapters[owner].tokenwise for owner in set(owners) - {-1})
        self._bound = (owners, counts, acts) if alike else None
        return acts

    def _seen(self) -> Tensor:
        """Bool [live rows, V]: the tokens that each row's prompt and answer hold."""
        for row in self._live:
            if row.seen is None:
                row.seen = torch.zeros(self.model.config.vocab_size, dtype=torch.bool, device=self.model.device)
                row.seen[torch.tensor(row.request.prompt.tokens, device=row.seen.device)] = True
            row.seen[torch.tensor(row.pending, device=row.seen.device)] = True
        return torch.stack([row.seen for row in self._live if row.seen is not None])
