"""Generation for many prompts at once: no padding, rows join and leave the batch at any step, adapters mixed freely.

Every step is one pass over the tokens that each row has not yet been through: a prompt, or as much of it as a step has
room for, for a row that has just joined, one token for the others. So filling the cache and decoding are the same code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, islice
from typing import Any, Unpack

import torch
from torch import Tensor

from halter.adapters.mixed import Mixed
from halter.adapters.sight import rules_of
from halter.arguments import checked
from halter.files.measured import MeasuredTimes
from halter.generation.beginnings import hand_on, wait_for_shared
from halter.generation.belonging import tell_others
from halter.generation.choosing import choose, of_prompt
from halter.generation.owners import BASE, Owners
from halter.generation.prefix_store import PrefixStore
from halter.generation.prompts import AnswerKeywords, Prompts, check_prompts
from halter.generation.requests import Adapters, Request, check_tokens, requests_of
from halter.generation.rows import ActiveRow, Outcome
from halter.generation.slots import Slots
from halter.generation.streaming import AnswersFailed, Delta, Generation, GrowingAnswer
from halter.generation.turns import READ, WRITTEN, Turns
from halter.model.decoder import Decoder
from halter.model.decoding import for_decoding
from halter.model.passes import Pass
from halter.model.places import Acts
from halter.model.segments import Segments
from halter.numerics import choice
from halter.pictures.seen import features_of
from halter.text.tokenizer import Tokenizer

MAX_ROWS = 32  # decoding is bound by reading the weights, so more rows cost little until here
PREFILL_TOKENS = 4096  # in one step, those of prompts and one for each row that is decoded; bounds a step's memory


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
    an answer's text is what follows. A message's content may be parts, {"type": "text", "text"} and {"type": "image",
    "image"}: a path, bytes, a data: URI, a picture of Pillow's or, with ``fetch_pictures``, an address. ``readers``
    ("ocr", "caption", a function) put a text of each ahead of it, or in its place where nothing sees. Several answers
    to a prompt need a temperature above 0; the first is the one that ``n`` = 1 gives. ``template_date`` (YYYY-MM-DD) is
    for templates that ask what day it is. ``adapter``: none, one for all, or a list with one (or None) for each prompt.
    ``max_rows``: answers worked on at once. ``json_schema``: every answer that comes to its end is JSON of it (extra
    ``serve``). The other ``options`` are the fields of GenerationOptions. Refusals as of requests_of. What makes every
    answer fail is raised; where some do, AnswersFailed with all ``answers``, once the others are done.
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
) -> Iterator[Delta]:
    """As ``generate``, but pieces of text as they become certain; a row's last piece carries its result."""
    given: dict[str, Any] = dict(options)
    rows = given.pop("max_rows", MAX_ROWS)
    return Engine(model, tokenizer, rows).run(requests_of(tokenizer, prompts, adapter, given, model.config))


class Engine:
    """Works on requests, up to ``rows`` at once and ``tokens`` in a step; they come (``add``) and go (``cancel``)
    between any two steps. The draws and (up to rounding) the logits of a row do not depend on the other rows, on when
    it came, nor on how its prompt was cut into steps. An adapter must not change while a row has it. For one thread.

    ``prefix_bytes``: keys and values that are kept of rows that have ended (PrefixStore); 0: none.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        rows: int = MAX_ROWS,
        tokens: int = PREFILL_TOKENS,
        prefix_bytes: int = 0,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.rows, self.tokens = max(1, rows), max(1, tokens)
        self.fault: Exception | None = None  # the first that ended a row
        self._ids = count()
        self._owners = Owners()
        self._waiting = Turns()
        self._live: list[ActiveRow] = []
        self._slots = Slots(model, self.rows)
        self._prefixes = PrefixStore(prefix_bytes)
        self._bound: tuple[Any, Acts] | None = None

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._waiting or self._live)

    def add(self, request: Request) -> int:
        """Take a request in; the number, 0, 1, 2, ..., that its pieces will have as ``row``. Refusals ``prompt-empty``,
        ``prompt-tokens``, ``prompt-too-long``, and ``generation-options`` for token ids that the model has not."""
        config = self.model.config
        check_prompts([request.prompt], config.context, config.vocab_size)
        return self._put(request)

    def _put(self, request: Request) -> int:
        check_tokens(request.options, self.model.config.vocab_size)
        if request.party is not None and (request.adapter is None) != (not request.party.adapters):
            raise ValueError("the party names other adapters than the request has")
        tell_others(self.model, self.tokenizer, [request.adapter])
        answer = GrowingAnswer(self.tokenizer, request.prompt, request.options, self.model.config.context)
        owner = self._owners.take(request.adapter)
        row = ActiveRow(next(self._ids), request, answer, owner, self.model.config.reads_ahead)
        self._waiting.add(row)
        return row.id

    def forget(self, digest: str) -> None:
        """Drop what is kept of rows of an adapter, by its digest in their party."""
        self._prefixes.forget(digest)

    @torch.inference_mode()
    def cancel(self, id: int) -> Generation | None:
        """Give a request up; its answer as far as it came (finish reason cancelled), None where it has ended before."""
        row = next((row for row in (*self._live, *self._waiting) if row.id == id), None)
        if row is None:
            return None
        row.answer.end("cancelled")
        self._leave(row)
        self._slots.shrink(self._wanted())
        return row.answer.result

    def run(self, requests: Sequence[Request] = ()) -> Iterator[Delta]:
        """Pieces of all rows until nothing is left to do, ``requests`` added first, whose refusals come at once. In the
        end what failed is raised: the fault itself where no answer is whole, else AnswersFailed."""
        check_prompts([r.prompt for r in requests], self.model.config.context, self.model.config.vocab_size)
        for request in requests:
            self._put(request)
        return self._run()

    def _run(self) -> Iterator[Delta]:
        rows = [*self._live, *self._waiting]
        results: dict[int, Generation] = {}
        with self.decoding(min(self.rows, len(rows)), max((row.answer.budget for row in rows), default=0)):
            while self.busy:
                for piece in self.step():
                    if piece.result is not None:
                        results[piece.row] = piece.result
                    yield piece
        failed = [result for result in results.values() if result.finish_reason == "error"]
        if failed and self.fault is not None:
            if len(failed) == len(results):
                raise self.fault
            raise AnswersFailed([results[row] for row in sorted(results)]) from self.fault

    @contextmanager
    def decoding(self, rows: int, steps: int) -> Iterator[None]:
        """Steps within go the ways that are quick for up to ``rows`` rows and about ``steps`` (model.decoding)."""
        choice.keep_on(MeasuredTimes.in_cache())
        with for_decoding(self.model, rows, steps):
            yield

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """One pass: a token more for each row whose prompt is read, of the other prompts as much as there is room for.
        The pieces that this made certain. A row that cannot be worked on ends with the finish reason error, alone."""
        self._admit()
        rows = self._due()
        pieces, ended = [], []
        for row, outcome in zip(rows, self._attempt(rows) if rows else (), strict=True):
            piece = row.take(outcome)
            self._waiting.count(row, 0 if outcome.token is None else WRITTEN)
            self.fault = self.fault or outcome.fault
            if piece is not None:
                pieces.append(piece)
            if row.answer.result is not None:
                ended.append(row)
        hand_on(self._live, self._slots.cache)
        for row in ended:
            self._leave(row)
        if ended:
            self._slots.shrink(self._wanted())
        return pieces

    def _admit(self) -> None:
        """Let waiting rows into the batch as far as it has slots, each with what is kept of its beginning."""
        new = []
        while self._waiting and len(self._live) < self.rows:
            row = self._waiting.next()
            self._slots.give(row, self._wanted())
            self._waiting.take(row)
            self._live.append(row)
            new.append(row)
            if self._keeps(row) and (parts := self._prefixes.find(row.party, row.compared[:-1])):
                self._slots.restore(row, parts)
            self._waiting.count(row, READ * (len(row.prompt) - row.fed))
        if new:
            self._share(new)
            self._live.sort(key=lambda row: row.owner)  # rows of one adapter are then computed together

    def _wanted(self) -> list[ActiveRow]:
        """The rows at work and those that can join them now."""
        return [*self._live, *islice(self._waiting, self.rows - len(self._live))]

    def _due(self) -> list[ActiveRow]:
        """The rows of the next step: all that are decoded, and prompts as far as there is room, the earliest first."""
        filling = [row for row in self._live if row.filling]
        if filling:
            room = max(1, self.tokens - len(self._live) + len(filling))
            whole = room
            for row in sorted(filling, key=lambda row: row.id):
                end = row.fed if row.source is not None else row.fed + room
                if row.fed < end < row.together:  # it takes a step's whole room, and more, or waits for the next step
                    end = row.together if room == whole else row.fed
                row.pending = row.prompt[row.fed : end]
                room = max(0, room - len(row.pending))
        return [row for row in self._live if row.pending]

    def _share(self, new: Sequence[ActiveRow]) -> None:
        """Let new rows take what they begin with from others; not where an adapter knows positions, nor where something
        is told of every token of the prompt."""
        if len(self._live) > 1:
            rows = [row for row in self._live if self._owners.tokenwise(row.owner) and not row.tells_prompt]
            wait_for_shared(rows, new)
            hand_on(self._live, self._slots.cache)

    def _keeps(self, row: ActiveRow) -> bool:
        """Whether a row reads what is kept, and is kept: its keys and values hang on the tokens before them alone."""
        return row.kept and self._owners.tokenwise(row.owner) and not row.tells_prompt and not row.pictures

    def _leave(self, row: ActiveRow) -> None:
        """Let a row go, with its slot and its reference to the adapter; what was computed for it may be kept."""
        if row.slot < 0:
            self._waiting.take(row)
        elif row.answer.sound and self._keeps(row):
            self._prefixes.put(row.party, row.tokens, self._slots.cache, row.slot)
        self._waiting.leave(row)
        if self._owners.release(row.owner):
            self._bound = None
        if row.slot < 0:
            return
        self._live.remove(row)
        self._slots.take_back(row, clean=row.answer.whole)
        orphans = [one for one in self._live if one.source is row]
        for one in orphans:
            one.source = None
        if orphans:
            self._share(orphans)

    def _attempt(self, rows: list[ActiveRow]) -> list[Outcome]:
        """What a pass makes of rows. Where it raises, owner by owner and then row by row, so that those end whose fault
        it is."""
        filled = list(self._slots.cache.lengths)
        try:
            return self._pass(rows)
        except BaseException as fault:
            self._slots.cache.lengths, self._bound = filled, None
            if not isinstance(fault, Exception):
                raise
            if len(rows) == 1:
                return [Outcome(fault=fault)]
        owners = list(dict.fromkeys(row.owner for row in rows))
        parts = [[row for row in rows if row.owner == owner] for owner in owners]
        return [one for part in (parts if len(parts) > 1 else [[row] for row in rows]) for one in self._attempt(part)]

    def _pass(self, rows: list[ActiveRow]) -> list[Outcome]:
        """Feed what is pending, and choose the next token of every row whose prompt is read."""
        hidden, segments, acts = self._hidden(rows)
        prompts = self._prompts(rows, hidden, segments, acts)
        ready = [at for at, row in enumerate(rows) if row.completes]
        last = None
        if len(ready) < len(hidden):
            last = segments.last_tokens[ready].to(hidden.device)
            hidden = hidden[last]
        found = iter(choose([rows[at] for at in ready], self.model.head(hidden, acts, last).float()) if ready else ())
        outcomes = [next(found) if row.completes else Outcome() for row in rows]
        return [one._replace(prompt=prompts[at]) if at in prompts else one for at, one in enumerate(outcomes)]

    def _prompts(self, rows: list[ActiveRow], hidden: Tensor, segments: Segments, acts: Acts | None) -> dict[int, Any]:
        """{place among rows: what is told of its prompt's tokens} of those that asked for it."""
        asking = [at for at, row in enumerate(rows) if row.tells_prompt and row.fed + 1 < len(row.prompt)]
        starts = segments.query_starts.tolist() if asking else []
        return {at: of_prompt(self.model, rows[at], starts[at], hidden, acts) for at in asking}

    def _hidden(self, rows: list[ActiveRow]) -> tuple[Tensor, Segments, Acts | None]:
        """Feed the rows' pending tokens: their states [N, dim], where they lie, and the acts."""
        lengths = [len(row.pending) for row in rows]
        self._slots.fit(rows)
        cache = self._slots.cache
        segments = cache.segments(lengths, [row.slot for row in rows], [len(row.prompt) for row in rows])
        config, device = self.model.config, self.model.device
        pictures = [(rules_of(config, self._owners.of(row.owner)), [row.sights]) for row in rows]
        segments = replace(segments, features=features_of(pictures, device))
        tokens = torch.tensor([id for row in rows for id in row.pending], device=self.model.device)
        acts = self._bind(segments, [row.owner for row in rows])
        return self.model.hidden(Pass(tokens, segments, acts, cache=cache)), segments, acts

    def _bind(self, segments: Segments, owners: list[int]) -> Acts | None:
        """The adapters' acts; those of the step before where owners and pictures are the same and position is no
        matter."""
        if owners == [BASE] * len(owners):
            return None
        counts = segments.query_lengths.tolist()
        same = owners, counts, _shown(segments.features)
        if self._bound is not None and self._bound[0] == same:
            return self._bound[1]
        present = {owner: place for place, owner in enumerate(sorted(set(owners) - {BASE}))}
        adapters = [self._owners[owner] for owner in present]
        if len(set(owners)) > 1:
            acts = Mixed(adapters, [present.get(owner, BASE) for owner in owners]).bind(self.model, segments)
        else:
            acts = adapters[0].bind(self.model, segments)
        alike = all(adapter.tokenwise for adapter in adapters)
        self._bound = (same, acts) if alike else None
        return acts


def _shown(features: Sequence[Any] | None) -> Any:
    """What is equal where the rows' pictures and their places are; None without pictures."""
    if features is None:
        return None
    return [None if row is None else [(one.digest, one.start, one.length) for one in row] for row in features]
