"""What is asked of papers, as rows for training: all fields, one of them, or those of closed lists; from a picture of
the paper, from the text that stands on it, or from that text with a few wrong letters, as readers of print (OCR) err.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from halter.errors import Refusal, meant
from halter.files import writing
from halter.playground.drawings import png
from halter.playground.papers import CLOSED, SPLITS, Paper, papers
from halter.playground.tasks import Exchange
from halter.playground.words import Dice

TRAIN, TEST = 600, 150
WRONG = 0.03
"""The share of letters and digits of a noisy text that are wrong."""
ALIKE = ("O0", "I1", "S5", "B8", "Z2", "G6", "T7", "EF", "MN", "UV", "PR", "CG", "KX", "38", "17", "69")
"""Letters and digits that are taken for one another."""


def fields(dice: Dice, seen: Paper) -> Exchange:
    return "Which are the fields of this paper?", _said(seen.fields)


def field(dice: Dice, seen: Paper) -> Exchange:
    name = dice.pick(tuple(seen.fields))
    return f"What is the {name} of this paper?", _said({name: seen.fields[name]})


def closed(dice: Dice, seen: Paper) -> Exchange:
    kept = {name: value for name, value in seen.fields.items() if name in CLOSED}
    return "Which known words are on this paper?", _said(kept)


def _said(these: Mapping[str, str]) -> str:
    """A line "name: value" for each field."""
    return "\n".join(f"{name}: {value}" for name, value in these.items())


ASKED: dict[str, Callable[[Dice, Paper], Exchange]] = {"fields": fields, "field": field, "closed": closed}
"""{what is asked: makes the question and its answer}."""
FORMS = ("picture", "text", "noisy")


@dataclass(frozen=True)
class PaperTask:
    asks: str
    form: str

    def row(self, seen: Paper, dice: Dice) -> dict[str, object]:
        """A row that ``halter train`` takes: the paper as a PNG in a data URI, or its lines; the question below."""
        question, wanted = ASKED[self.asks](dice, seen)
        said = {"role": "assistant", "content": wanted}
        if self.form == "picture":
            return {"messages": [{"role": "user", "content": f"<image>{question}"}, said], "images": [picture(seen)]}
        text = "\n".join(noisy(dice, line) if self.form == "noisy" else line for line in seen.lines)
        return {"messages": [{"role": "user", "content": f"{text}\n\n{question}"}, said]}


@lru_cache(maxsize=1)
def picture(seen: Paper) -> str:
    """A PNG in a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png(seen.draw())).decode()}"


PAPER_TASKS = {
    asks if form == "picture" else f"{asks}-{form}": PaperTask(asks, form) for asks in ASKED for form in FORMS
}
"""{name: task}: fields, fields-text, fields-noisy, field, ..."""


def noisy(dice: Dice, line: str, wrong: float = WRONG) -> str:
    """``line`` with about that share of its letters and digits as others that look alike."""
    read = []
    for letter in line:
        others = [other for pair in ALIKE if letter in pair for other in pair if other != letter]
        read.append(dice.pick(others) if others and dice.chance(wrong) else letter)
    return "".join(read)


def rows(name: str, seed: object, split: str, count: int) -> list[dict[str, object]]:
    """``count`` rows of a task's "train", "test" or "new-layout"; the papers of a split are the same in every task."""
    if name not in PAPER_TASKS:
        what, known = "no such task about papers", ", ".join(PAPER_TASKS)
        raise Refusal("unknown-task", what, found=[name], expected=f"one of {known}", fix=meant(name, PAPER_TASKS))
    return [_row(name, seed, split, number, seen) for number, seen in enumerate(papers(seed, split, count))]


def _row(name: str, seed: object, split: str, number: int, seen: Paper) -> dict[str, object]:
    return PAPER_TASKS[name].row(seen, Dice("asked", name, seed, split, number))


def write_papers(
    folder: Path, seed: int = 0, train: int = TRAIN, test: int = TEST, names: Sequence[str] = tuple(PAPER_TASKS)
) -> list[Path]:
    """Write TASK/train.jsonl, TASK/test.jsonl and TASK/new-layout.jsonl (``test`` rows) for these tasks; the paths."""
    written = []
    for split in SPLITS:
        made: dict[str, list[str]] = {name: [] for name in names}
        for number, seen in enumerate(papers(seed, split, train if split == "train" else test)):
            for name, lines in made.items():  # the tasks of one paper together: its picture is drawn once
                lines.append(json.dumps(_row(name, seed, split, number, seen)) + "\n")
        for name, lines in made.items():
            path = Path(folder) / name / f"{split}.jsonl"
            writing.write_text(path, "".join(lines))
            written.append(path)
    return written
