"""How good a model is on rows that it has not seen: held-out loss and texts, the base beside the adapter.

Logits of a whole batch never exist, and what a model was asked is kept to the letter, because a score without its exact
prompt cannot be compared with anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halter.adapters.adapter import Adapter
from halter.data.example import Example
from halter.data.pack import IGNORED, Batch, pack
from halter.errors import Refusal
from halter.evaluation.comparing import PLAIN, AnswerScores, Comparing
from halter.evaluation.questions import Question, question
from halter.files import disk, writing
from halter.generation.engine import MAX_ROWS, Engine
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.generation.requests import Request
from halter.generation.streaming import Generation
from halter.model.decoder import Decoder
from halter.model.passes import Pass
from halter.model.places import Acts
from halter.model.segments import Segments
from halter.numerics import allocation
from halter.numerics.losses import chunk_rows, even_rows
from halter.numerics.metrics import perplexity, token_losses
from halter.pictures.seen import features
from halter.text.tokenizer import Tokenizer

PASS_TOKENS = 4096  # in one pass; bounds the activations' memory


@dataclass(frozen=True)
class HeldOut:
    """Loss on held-out rows, in nats per target token, weighted by tokens and not by rows."""

    loss: float
    target_tokens: int
    by_row: tuple[float, ...]
    """Mean loss of each row; nan where it has no targets."""

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)


def held_out_loss(
    model: Decoder, examples: Sequence[Example], adapter: Adapter | None = None, pass_tokens: int | None = None
) -> float:
    """The loss on ``examples`` of the base, or of the base with ``adapter``: nats per target token."""
    return held_out(model, examples, adapter, pass_tokens).loss


def held_out(
    model: Decoder, examples: Sequence[Example], adapter: Adapter | None = None, pass_tokens: int | None = None
) -> HeldOut:
    """The loss on ``examples`` and on each of them, ``pass_tokens`` tokens at a time. Refusal ``no-targets``."""
    if not any(example.targets for example in examples):
        raise Refusal("no-targets", "no row has a token to be predicted", fix="check the data's format and template")
    sums: list[float] = []
    with _memory(model, pass_tokens):
        for piece in _passes(examples, pass_tokens or PASS_TOKENS):
            sums += _row_sums(model, pack(piece), adapter)
    counts = [example.targets for example in examples]
    means = tuple(total / count if count else float("nan") for total, count in zip(sums, counts, strict=True))
    return HeldOut(sum(sums) / sum(counts), sum(counts), means)


def _passes(examples: Sequence[Example], pass_tokens: int) -> Iterator[list[Example]]:
    """Neighbouring rows up to a number of tokens; a longer row goes alone."""
    piece: list[Example] = []
    size = 0
    for example in examples:
        if piece and size + len(example.tokens) > pass_tokens:
            yield piece
            piece, size = [], 0
        piece.append(example)
        size += len(example.tokens)
    if piece:
        yield piece


def likelihoods(
    model: Decoder, examples: Sequence[Example], adapter: Adapter | None = None, pass_tokens: int | None = None
) -> list[tuple[float, bool]]:
    """Of each row the log-likelihood of its target tokens, in nats, and whether each of them was the likeliest."""
    found: list[tuple[float, bool]] = []
    with _memory(model, pass_tokens):
        for piece in _passes(examples, pass_tokens or PASS_TOKENS):
            likeliest = torch.ones(len(piece), dtype=torch.bool)
            sums = _row_sums(model, pack(piece), adapter, likeliest)
            found += [(-total, greedy) for total, greedy in zip(sums, likeliest.tolist(), strict=True)]
    return found


def _memory(model: Decoder, pass_tokens: int | None) -> AbstractContextManager[None]:
    """For all passes together."""
    tokens = pass_tokens or PASS_TOKENS
    return allocation.reused(tokens * model.dtype.itemsize * model.config.numbers_a_token)


@torch.inference_mode()
def _row_sums(
    model: Decoder, batch: Batch, adapter: Adapter | None, likeliest: torch.Tensor | None = None
) -> list[float]:
    """Sum of the target tokens' losses of every row; in ``likeliest`` (bool [rows], true) a row with a target that is
    not the likeliest token becomes false."""
    segments = Segments.packed(batch.lengths, model.device, prompt_lengths=batch.prompt_lengths)
    segments = replace(segments, features=features(model.config, batch.pictures))
    acts = None if adapter is None else adapter.bind(model, segments)
    index = (batch.targets != IGNORED).nonzero().squeeze(1)
    hidden = model.hidden(Pass(batch.tokens.to(model.device), segments, acts, wanted=index.to(model.device)))
    row_of = torch.arange(len(batch.lengths)).repeat_interleave(torch.tensor(batch.lengths))
    sums = torch.zeros(len(batch.lengths), dtype=torch.float64)
    targets = batch.targets[index].to(model.device)
    for start, logits in _logits(model, hidden, acts, index.to(model.device)):
        end = start + len(logits)
        rows, wanted = row_of[index[start:end]], targets[start:end]
        sums.index_add_(0, rows, token_losses(logits, wanted).double().cpu())
        if likeliest is not None:
            likeliest[rows[(logits.argmax(-1) != wanted).cpu()]] = False
    return sums.tolist()


def _logits(model: Decoder, hidden: Tensor, acts: Acts | None, index: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first place, logits) of one chunk of ``hidden`` [M, dim] after the other, states of the tokens ``index`` [M].
    Those of a head that is a matrix alone lie in one buffer, and are gone when the next chunk is asked for."""
    matrix = model.head_matrix(acts)
    most = chunk_rows(model.config.vocab_size, hidden.element_size())
    rows = even_rows(len(hidden), most if matrix is None else 2 * most)
    buffer = None if matrix is None else hidden.new_empty(rows, len(matrix))
    for start in range(0, len(hidden), max(1, rows)):
        states = hidden[start : start + rows]
        if matrix is not None and buffer is not None:
            yield start, torch.mm(states, matrix.t(), out=buffer[: len(states)])
            continue
        yield start, model.head(states, acts, index[start : start + rows])


def evaluate(
    model: Decoder,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    adapter: Adapter | None = None,
    *,
    questions: int | None = None,
    comparing: Comparing = PLAIN,
    predictions: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score ``examples`` with the base and, where given, with the adapter.

    Returns ``rows``, ``target_tokens``, ``answers`` (rows that ask a question), ``generation`` (the options) and one
    entry each under ``base`` and ``adapter``: ``loss`` (nats per target token), ``perplexity`` and, where there are
    questions (the first ``questions`` of them where given), what ``AnswerScores.scores`` has, by ``comparing``; and
    what ``AnswerScores.facts`` has beside the sides. ``predictions``: a new jsonl file, one object a question with the
    exact prompt, what was wanted, and each side's answer with its values. ``progress(side, done,
    of)`` is called as answers are done.
    ``options``: fields of GenerationOptions. Refusals: ``no-targets``, ``already-exists``, and those of generation.
    """
    chosen = GenerationOptions.of(**options)
    if predictions is not None:
        disk.refuse_existing(predictions)
    sides = {"base": None} if adapter is None else {"base": None, "adapter": adapter}
    asked = [(row, q) for row, e in enumerate(examples) if (q := question(e, tokenizer))][:questions]
    compared = AnswerScores([examples[row] for row, _ in asked], [q.wanted for _, q in asked], comparing)
    report: dict[str, Any] = {"rows": len(examples), "answers": len(asked), "strict": comparing.strict}
    said: dict[str, list[Generation]] = {}
    losses: dict[str, HeldOut] = {}
    for side, one in sides.items():
        losses[side] = held_out(model, examples, one)
        report["target_tokens"] = losses[side].target_tokens
        report[side] = {"loss": losses[side].loss, "perplexity": losses[side].perplexity}
        if asked:
            told = None if progress is None else _telling(progress, side, len(asked))
            said[side] = answers(model, tokenizer, [q for _, q in asked], one, chosen, told)
            report[side] |= compared.scores(side, [a.text for a in said[side]])
    if asked:
        report |= {"generation": asdict(chosen), **compared.facts()}
    if predictions is not None:
        lines = [
            _line(tokenizer, examples[row], row, q, {s: (losses[s], said[s][i], compared.row(s, i)) for s in sides})
            for i, (row, q) in enumerate(asked)
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        writing.write_text(predictions, text)
    return report


def _telling(progress: Callable[[str, int, int], None], side: str, of: int) -> Callable[[int], None]:
    return lambda done: progress(side, done, of)


def answers(
    model: Decoder,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    adapter: Adapter | None,
    options: GenerationOptions,
    told: Callable[[int], None] | None = None,
) -> list[Generation]:
    """What the model says to each question, in their order; ``told`` hears how many are answered."""
    requests = [Request(q.prompt, options, adapter, draws) for draws, q in enumerate(questions)]
    results: dict[int, Generation] = {}
    for piece in Engine(model, tokenizer, MAX_ROWS).run(requests):
        if piece.result is not None:
            results[piece.row] = piece.result
            if told is not None:
                told(len(results))
    return [results[row] for row in range(len(questions))]


def _in_words(tokenizer: Tokenizer, prompt: EncodedPrompt) -> str:
    """A prompt's text to the letter, <image> where a picture stands."""
    at, texts = 0, []
    for one in prompt.pictures:
        texts.append(tokenizer.decode(prompt.tokens[at : one.start], skip_control=False))
        at = one.end
    return "<image>".join([*texts, tokenizer.decode(prompt.tokens[at:], skip_control=False)])


def _line(
    tokenizer: Tokenizer,
    example: Example,
    row: int,
    asked: Question,
    sides: dict[str, tuple[HeldOut, Generation, dict[str, Any]]],
) -> dict[str, Any]:
    line: dict[str, Any] = {"row": row, "origin": example.origin}
    line["prompt"] = _in_words(tokenizer, asked.prompt)
    line["wanted"] = asked.wanted
    if example.beside.references:
        line["references"] = list(example.beside.references)
    for side, (loss, answer, values) in sides.items():
        line[side] = {"answer": answer.text, **values, "finish_reason": answer.finish_reason, "loss": loss.by_row[row]}
    return line
