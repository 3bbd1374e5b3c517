"""Choice accuracy: which of the answers that a question can have the model finds likeliest, nothing generated."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from halter.adapters.adapter import Adapter
from halter.data.example import Example
from halter.errors import Refusal
from halter.evaluation.pictured import seen_as
from halter.evaluation.questions import Question, question
from halter.evaluation.score import held_out
from halter.evaluation.texts import exact_match
from halter.model.decoder import Decoder
from halter.text.tokenizer import Tokenizer

LONGEST, MOST = 40, 20
"""Letters of an answer that are shown, and answers of which there may be choices."""


@dataclass(frozen=True)
class ChoiceQuestions:
    """Questions with the answers that each can have, as rows to be scored: all choices of a question lie together."""

    choices: tuple[str, ...]
    rows: tuple[Example, ...]
    right: tuple[int, ...]
    """Which choice each question wants."""

    def facts(self) -> dict[str, Any]:
        """``choices``, ``questions``, ``wanted`` (how often each is), ``chance`` (a guess), ``majority`` (always the
        most frequent)."""
        wanted = Counter(self.right)
        return {
            "choices": list(self.choices),
            "questions": len(self.right),
            "wanted": [wanted[i] for i in range(len(self.choices))],
            "chance": 1 / len(self.choices),
            "majority": max(wanted.values()) / len(self.right),
        }

    def picked(self, model: Decoder, adapter: Adapter | None = None, pass_tokens: int | None = None) -> np.ndarray:
        """int64 [questions]: the choice with the lowest loss of all, of equal ones the first.

        The loss of a choice is the sum over its tokens and those that end the response, in nats, as ``acc`` in lm-eval.
        """
        means = held_out(model, seen_as(self.rows, model, adapter), adapter, pass_tokens).by_row
        sums = np.array(means) * [row.targets for row in self.rows]
        return sums.reshape(len(self.right), len(self.choices)).argmin(axis=1)


def choice_questions(tokenizer: Tokenizer, examples: Sequence[Example], choices: Sequence[str]) -> ChoiceQuestions:
    """The questions of ``examples`` with every choice in turn. Refusals: ``choices`` (fewer than two, or twice the
    same), ``not-a-choice`` (wanted texts that are none), ``choice-tokens`` and ``no-questions``."""
    if len(choices) < 2 or len({" ".join(choice.split()) for choice in choices}) < len(choices):
        parts = [part.strip() for part in choices[0].split(",")]
        again = f"give each by itself: {' '.join(f'--choices {shlex.quote(part)}' for part in parts)}"
        one_word = len(choices) == 1 and len(set(parts)) > 1 and all(parts)
        fix = again if one_word else "give them all, each once: --choices A --choices B"
        raise Refusal("choices", "choices are two or more, all different", found=list(choices), fix=fix)
    asked = [(e, q) for e in examples if (q := question(e, tokenizer)) is not None]
    if not asked:
        raise Refusal(
            "no-questions",
            "no row asks a question, so there is nothing to choose",
            fix="give rows that end with an answer, or leave out --choices",
        )
    right = _right([q for _, q in asked], choices)
    rows = [row for (e, q), r in zip(asked, right, strict=True) for row in variants(e, q, tokenizer, choices, r)]
    return ChoiceQuestions(tuple(choices), tuple(rows), tuple(right))


def choice_report(
    model: Decoder,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    choices: Sequence[str],
    adapter: Adapter | None = None,
) -> dict[str, Any]:
    """How often the base, and the base with ``adapter``, give the wanted choice the lowest loss of all.

    Returns what `Ballot.facts` does, and under ``base`` and ``adapter`` ``choice_accuracy`` with ``chosen`` (how often
    each was). Refusals as of `ballot`.
    """
    voted = choice_questions(tokenizer, examples, choices)
    report = voted.facts()
    for side, one in {"base": None, "adapter": adapter}.items():
        if side == "base" or one is not None:
            picked = voted.picked(model, one)
            counts = np.bincount(picked, minlength=len(choices)).tolist()
            report[side] = {"choice_accuracy": float((picked == voted.right).mean()), "chosen": counts}
    return report


def _right(asked: Sequence[Question], choices: Sequence[str]) -> list[int]:
    """The number of the choice that each question wants."""
    place = {" ".join(choice.split()): number for number, choice in enumerate(choices)}
    strangers = sorted({q.wanted.strip() for q in asked if " ".join(q.wanted.split()) not in place})
    if strangers:
        raise Refusal(
            "not-a-choice",
            "rows want answers that are none of the choices",
            found=[_brief(one) for one in strangers],
            expected=f"one of {', '.join(map(_brief, choices))}",
            fix="give --choices once for every answer that the rows have"
            if len(strangers) <= MOST
            else f"leave --choices out: the rows want {len(strangers)} other answers",
        )
    return [place[" ".join(q.wanted.split())] for q in asked]


def _brief(answer: str) -> str:
    """The first words of an answer."""
    words = " ".join(answer.split())
    return words if len(words) <= LONGEST else f"{words[:LONGEST].rstrip()} ..."


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
            rows = [_row(head, [*choice, *end], example.origin) for choice in ids]
            return [replace(row, pictures=asked.prompt.pictures) for row in rows]
    raise Refusal(
        "choice-tokens",
        "a response's tokens are not those of its choice alone",
        where=example.origin,
        fix="leave out --choices: the answers are then compared as texts",
    )


def _row(head: list[int], response: list[int], origin: str) -> Example:
    supervised = [False] * len(head) + [True] * len(response)
    return Example(np.array(head + response, np.int32), np.array(supervised, bool), origin)
