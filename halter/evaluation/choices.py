"""Choice accuracy: which of the answers that a question can have the model finds likeliest, nothing generated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from halter.data.example import Example
from halter.errors import Refusal
from halter.evaluation.score import Question, held_out, question
from halter.evaluation.texts import exact_match
from halter.files.tokenizer import Tokenizer
from halter.methods.adapter import Adapter
from halter.model.decoder import Decoder


def choice_report(
    model: Decoder,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    choices: Sequence[str],
    adapter: Adapter | None = None,
) -> dict[str, Any]:
    """How often the base, and the base with ``adapter``, give the wanted choice the lowest loss of all.

    The loss of a choice is the sum over its tokens and those that end the response, in nats, as ``acc`` in lm-eval;
    of equal ones the first counts. Returns ``choices``, ``questions``, ``wanted`` (how often each is wanted),
    ``chance`` (a guess), ``majority`` (always the most frequent), and under ``base`` and ``adapter``
    ``choice_accuracy`` with ``chosen``. Refusals: ``choices`` (fewer than two, or twice the same), ``not-a-choice``
    (wanted texts that are none), ``choice-tokens`` and ``no-questions``.
    """
    if len(choices) < 2 or len({" ".join(choice.split()) for choice in choices}) < len(choices):
        raise Refusal("choices", "choices are two or more, all different", offenders=list(choices))
    asked = [(e, q) for e in examples if (q := question(e, tokenizer)) is not None]
    if not asked:
        raise Refusal("no-questions", "no row asks a question, so there is nothing to choose")
    right = _right([q for _, q in asked], choices)
    rows = [row for (e, q), r in zip(asked, right, strict=True) for row in variants(e, q, tokenizer, choices, r)]
    wanted = Counter(right)
    report: dict[str, Any] = {
        "choices": list(choices),
        "questions": len(asked),
        "wanted": [wanted[i] for i in range(len(choices))],
        "chance": 1 / len(choices),
        "majority": max(wanted.values()) / len(asked),
    }
    for side, one in {"base": None, "adapter": adapter}.items():
        if side == "base" or one is not None:
            sums = np.array(held_out(model, rows, one).by_row) * [row.targets for row in rows]
            picked = sums.reshape(len(asked), len(choices)).argmin(axis=1)
            counts = np.bincount(picked, minlength=len(choices)).tolist()
            report[side] = {"choice_accuracy": float((picked == right).mean()), "chosen": counts}
    return report


def _right(asked: Sequence[Question], choices: Sequence[str]) -> list[int]:
    """The number of the choice that each question wants."""
    place = {" ".join(choice.split()): number for number, choice in enumerate(choices)}
    strangers = sorted({q.wanted.strip() for q in asked if " ".join(q.wanted.split()) not in place})
    if strangers:
        raise Refusal(
            "not-a-choice",
            "rows want answers that are none of the choices",
            offenders=strangers,
            expected=f"one of {', '.join(choices)}",
            fix="give --choices once for every answer that the rows have",
        )
    return [place[" ".join(q.wanted.split())] for q in asked]


def variants(
    example: Example, asked: Question, tokenizer: Tokenizer, choices: Sequence[str], right: int
) -> list[Example]:
    """The row once for every choice in its last response's place, written and ended as the response is.

    Only that response is supervised. Refusal ``choice-tokens`` where the row's own response does not come out.
    """
    head = list(asked.prompt.tokens)
    last = int(np.flatnonzero(example.supervised)[-1]) + 1
    response = example.tokens[len(head) : last].tolist()
    for space, continues in (("", False), ("", True), (" ", False), (" ", True)):
        ids = [tokenizer.encode(space + choice, continues=continues) for choice in choices]
        end = response[len(ids[right]) :]
        if response[: len(ids[right])] == ids[right] and exact_match(tokenizer.decode(ids[right]), asked.wanted):
            return [_row(head, [*choice, *end], example.origin) for choice in ids]
    raise Refusal("choice-tokens", "a response's tokens are not those of its choice alone", where=example.origin)


def _row(head: list[int], response: list[int], origin: str) -> Example:
    supervised = [False] * len(head) + [True] * len(response)
    return Example(np.array(head + response, np.int32), np.array(supervised, bool), origin)
