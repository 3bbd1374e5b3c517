"""Choice accuracy where every row lists its own choices (ScienceQA, ARC, MMLU): the likeliest of their names counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from halter.adapters.adapter import Adapter
from halter.data.example import Example
from halter.errors import Refusal
from halter.evaluation.choices import variants
from halter.evaluation.comparing import by_kind
from halter.evaluation.questions import question
from halter.evaluation.score import held_out
from halter.files import writing
from halter.model.decoder import Decoder
from halter.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class OwnChoices:
    """Questions that list what they can be answered, under names of which one is right."""

    examples: tuple[Example, ...]
    rows: tuple[int, ...]
    """Their places among all rows."""
    names: tuple[tuple[str, ...], ...]
    right: tuple[int, ...]
    left_out: int
    """Rows that list no choices."""
    variants: tuple[Example, ...]
    """Each question with every name in turn, all of a question together."""
    _found: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def score(self, side: str, model: Decoder, adapter: Adapter | None = None) -> dict[str, Any]:
        """``choice_accuracy``: the share of questions whose right name has the lowest loss of its own, of equal ones
        the first; losses are sums over tokens, the end of the answer among them, in nats."""
        means = held_out(model, self.variants, adapter).by_row
        sums = np.array(means) * [row.targets for row in self.variants]
        self._found[side] = np.split(sums, np.cumsum([len(names) for names in self.names])[:-1])
        return {"choice_accuracy": float(self._hits(side).mean())}

    def _hits(self, side: str) -> np.ndarray:
        """bool [questions]: whether the right one was picked."""
        picked = [losses.argmin() for losses in self._found[side]]
        return np.array([one == right for one, right in zip(picked, self.right, strict=True)])

    def facts(self) -> dict[str, Any]:
        """``rows``, ``left_out`` (rows that list none), ``choices`` (fewest and most),
        ``chance`` (a guess among each question's own) and ``majority`` (the name that is right most often, always)."""
        counts = [len(names) for names in self.names]
        wanted = Counter(names[right] for names, right in zip(self.names, self.right, strict=True))
        return {
            "rows": len(self.right),
            "left_out": self.left_out,
            "choices": [min(counts), max(counts)],
            "chance": float(np.mean([1 / count for count in counts])),
            "majority": max(wanted.values()) / len(self.right),
        }

    def by(self, columns: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
        """Of each kind of row its accuracy, and chance as a side of its own."""
        values = {side: {"choice_accuracy": self._hits(side).astype(np.float64)} for side in self._found}
        chance = np.array([1 / len(names) for names in self.names])
        return by_kind(self.examples, columns, {**values, "chance": {"choice_accuracy": chance}})

    def write(self, path: Path) -> None:
        """One object a question: its row, its choices, the right one, and each side's losses and pick."""
        lines = []
        for number, (example, names) in enumerate(zip(self.examples, self.names, strict=True)):
            line: dict[str, Any] = {"row": self.rows[number], "origin": example.origin, "choices": list(names)}
            line |= {"wanted": names[self.right[number]]}
            for side, found in self._found.items():
                picked = names[int(found[number].argmin())]
                line[side] = {"picked": picked, "right": picked == line["wanted"], "losses": found[number].tolist()}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        writing.write_text(path, "".join(lines))


def own_choices(tokenizer: Tokenizer, examples: Sequence[Example]) -> OwnChoices:
    """The questions of ``examples`` that list choices of their own. Refusals ``no-own-choices`` where none does, and
    ``choice-tokens``."""
    found = [
        (row, example, asked)
        for row, example in enumerate(examples)
        if example.beside.choices and (asked := question(example, tokenizer)) is not None
    ]
    if not found:
        raise Refusal(
            "no-own-choices",
            "no row lists what its question can be answered",
            where="--measures choices",
            expected='rows as {"question": ..., "choices": ["...", "..."], "answer": "B"}',
            fix="give such rows; where all questions have the same answers: --choices A --choices B",
        )
    names = [example.beside.choices for _, example, _ in found]
    right = [names.index(asked.wanted.strip()) for names, (_, _, asked) in zip(names, found, strict=True)]
    every = [
        one
        for (_, example, asked), mine, wanted in zip(found, names, right, strict=True)
        for one in variants(example, asked, tokenizer, mine, wanted)
    ]
    rows = tuple(row for row, _, _ in found)
    asking = tuple(example for _, example, _ in found)
    return OwnChoices(asking, rows, tuple(names), tuple(right), len(examples) - len(found), tuple(every))
