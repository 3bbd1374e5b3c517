"""Papers with fields: invoices, receipts and the like in several layouts, one of which is never trained on.

Every paper is drawn by ``Dice`` of a seed and a number, and by nothing else. A field's value is from a closed list,
which can be learned by heart, or copied: a number, an amount or an invented name that stands on this paper alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from halter.playground import words
from halter.playground.drawings import Colour
from halter.playground.sheets import ACROSS, DOWN, HIGH, MARGIN, SCALE, SIDE, WIDE, Sheet
from halter.playground.words import Dice
from halter.playground.world import family_name, world

LONGEST_NAME, LONGEST_TOWN, LONGEST_MONTH = 6, 7, 5
"""Letters, so that a label has room before them."""
KINDS: dict[str, tuple[str, ...]] = {
    "invoice": ("number", "name", "goods", "total", "month"),
    "receipt": ("town", "goods", "total", "payment"),
    "order": ("name", "goods", "count", "month"),
    "delivery": ("number", "town", "goods", "count"),
    "reminder": ("number", "name", "total", "status"),
    "offer": ("name", "goods", "count", "total"),
}
"""{kind of paper: its further fields, in the order of answers}."""
GOODS = ("lamp", "ladder", "basket", "kettle", "hammer", "mirror", "chair", "table", "barrel", "clock", "boat", "broom")
PAYMENTS = ("cash", "card", "bank", "post")
MONTHS = tuple(month for month in words.MONTHS if len(month) <= LONGEST_MONTH)
STATES = ("open", "late", "paid", "lost")
TOWNS = tuple(place.name for place in world().places if len(place.name) <= LONGEST_TOWN)
CLOSED: dict[str, tuple[str, ...]] = {
    "kind": tuple(KINDS),
    "town": TOWNS,
    "goods": GOODS,
    "month": MONTHS,
    "payment": PAYMENTS,
    "status": STATES,
}
"""{field: all values that it can have}."""
COPIED = ("number", "name", "count", "total")
NUMBERS = 10_000


@dataclass(frozen=True)
class PaperLayout:
    """How a paper looks. ``order``: of all fields that there are. ``labels``: what says which field a value is; a field
    without one is known by its value alone. ``label``: to the left of its value, above it, or left with both pushed to
    the edges (apart)."""

    name: str
    order: tuple[str, ...]
    labels: Mapping[str, str]
    label: str = "left"
    align: str = "left"
    frame: bool = False
    sign: str = " "
    """Between a label and its value."""


FIRST = {
    "number": "NR",
    "name": "TO",
    "count": "QTY",
    "total": "SUM",
    "month": "DATE",
    "town": "AT",
    "payment": "BY",
    "status": "IS",
}
SECOND = {
    "number": "NO",
    "name": "FOR",
    "count": "PCS",
    "total": "PAY",
    "month": "WHEN",
    "town": "IN",
    "payment": "PER",
    "status": "NOW",
}
LAYOUTS = (
    PaperLayout(
        "plain",
        ("kind", "number", "name", "town", "goods", "count", "total", "payment", "status", "month"),
        FIRST,
    ),
    PaperLayout(
        "letter",
        ("kind", "town", "month", "name", "number", "goods", "count", "total", "payment", "status"),
        SECOND,
        frame=True,
    ),
    PaperLayout(
        "colons",
        ("number", "kind", "goods", "count", "total", "status", "payment", "name", "town", "month"),
        {field: label for field, label in FIRST.items() if field not in ("town", "month")},
        sign=": ",
        align="middle",
    ),
    PaperLayout(
        "table",
        ("kind", "month", "number", "goods", "count", "total", "payment", "name", "status", "town"),
        SECOND,
        label="apart",
        frame=True,
    ),
    PaperLayout(
        "boxes",
        ("kind", "number", "total", "payment", "count", "name", "month", "town", "goods", "status"),
        {field: label for field, label in FIRST.items() if field != "month"},
        label="above",
    ),
    PaperLayout(
        "counter",
        ("town", "status", "name", "kind", "goods", "count", "number", "month", "payment", "total"),
        SECOND,
        align="right",
    ),
)
"""Those that are trained on."""
UNSEEN = PaperLayout(
    "ledger",
    ("month", "payment", "status", "total", "count", "goods", "town", "name", "number", "kind"),
    {
        "number": "REF",
        "name": "MR",
        "count": "PC",
        "total": "DUE",
        "month": "FIX",
        "town": "OF",
        "payment": "AS",
        "status": "YET",
    },
    align="right",
    frame=True,
)
"""The one that is not."""
SPLITS = ("train", "test", "new-layout")


@dataclass(frozen=True, eq=False)
class Paper:
    """A paper with its ``fields`` {name: value}, in the order of answers, ``kind`` first."""

    fields: Mapping[str, str]
    layout: PaperLayout
    moved: tuple[int, int]
    """Where in the room that is left (across, down) its lines begin, each from 0 to 3."""
    ground: Colour
    ink: Colour

    @property
    def lines(self) -> tuple[str, ...]:
        """The texts that stand on it, from the top, as a reader sees them: words with one space between them."""
        return tuple(" ".join(_shown(line).split()) for line in self._set())

    def draw(self, scale: int = SCALE) -> np.ndarray:
        """uint8 [SIDE * scale, SIDE * scale, 3]."""
        return self.sheet().draw(scale)

    def sheet(self) -> Sheet:
        lines = [_shown(line, apart=self.layout.label == "apart") for line in self._set()]
        widths = [len(line) * (WIDE + 1) - 1 for line in lines]
        pitch = HIGH + 2 if len(lines) < DOWN or not self.layout.frame else HIGH + 1
        left, top = MARGIN, MARGIN if self.layout.frame else 1
        room = SIDE - left - MARGIN - max(widths), SIDE - 2 * top - (len(lines) - 1) * pitch - HIGH
        across, down = (space * part // 3 for space, part in zip(room, self.moved, strict=True))
        share = {"left": 0, "middle": 1, "right": 2}[self.layout.align]
        begins = tuple(
            (left + across + (max(widths) - width) * share // 2, top + down + at * pitch)
            for at, width in enumerate(widths)
        )
        return Sheet(tuple(lines), begins, self.layout.frame, self.ground, self.ink)

    def caption(self) -> str:
        """All that stands on it, in one sentence."""
        said = {
            "number": "number {}",
            "name": "for {}",
            "town": "from {}",
            "goods": "{}",
            "count": "{} pieces",
            "total": "{} coins",
            "month": "in {}",
            "payment": "by {}",
            "status": "{}",
        }
        rest = ", ".join(said[name].format(value) for name, value in self.fields.items() if name != "kind")
        kind = words.article(self.fields["kind"])
        return f"{kind[0].upper()}{kind[1:]}: {rest}."

    def _set(self) -> list[tuple[str, ...]]:
        """The cells of each line: a text alone, or two with what stands between them."""
        here = [name for name in self.layout.order if name in self.fields]
        lines: list[tuple[str, ...]] = []
        skipped = ""
        for name, after in zip(here, [*here[1:], ""], strict=True):
            value, label = self.fields[name].upper(), self.layout.labels.get(name)
            if name == skipped:
                continue
            if label is None:
                lines.append((value,))
            elif self.layout.label != "above":
                lines.append((label, self.layout.sign, value))
            else:
                beside = (
                    (self.layout.labels[after], self.fields[after].upper()) if after in self.layout.labels else ("", "")
                )
                wide = max(len(label), len(value))
                if beside[0] and wide + 1 + max(map(len, beside)) <= ACROSS:
                    skipped = after
                    lines += [(first.ljust(wide), " ", second) for first, second in zip((label, value), beside)]
                else:
                    lines += [(label,), (value,)]
        return lines


def _shown(cells: Sequence[str], apart: bool = False) -> str:
    if apart and len(cells) > 1:
        return cells[0] + cells[-1].rjust(ACROSS - len(cells[0]))
    return "".join(cells)


def name(dice: Dice, test: bool) -> str:
    """An invented name in capitals, short enough for a line; one in five is kept for tests and never trained on."""
    while True:
        found = family_name(dice)
        if len(found) <= LONGEST_NAME and (sum(map(ord, found)) % 5 == 0) == test:
            return found.upper()


def paper(dice: Dice, split: str = "train") -> Paper:
    """A paper of "train", "test" (the same layouts, names that are not in train) or "new-layout"."""
    kind = dice.pick(tuple(KINDS))
    copied: dict[str, Callable[[], str]] = {
        "number": lambda: str(dice.between(NUMBERS // 10, NUMBERS - 1)),
        "name": lambda: name(dice, split != "train"),
        "count": lambda: str(dice.between(2, 99)),
        "total": lambda: f"{dice.between(1, 99)}.{dice.between(0, 99):02}",
    }
    fields = {"kind": kind}
    for field in KINDS[kind]:
        fields[field] = dice.pick(CLOSED[field]) if field in CLOSED else copied[field]()
    layout = UNSEEN if split == "new-layout" else dice.pick(LAYOUTS)
    ground, ink = dice.between(215, 255), dice.between(10, 50)
    r, g, b = (min(255, ground + dice.between(-8, 8)) for _ in range(3))
    return Paper(fields, layout, (dice.between(0, 3), dice.between(0, 3)), (r, g, b), (ink, ink, ink + 10))


def papers(seed: object, split: str, count: int) -> Iterator[Paper]:
    """``count`` different papers; those of each split are different draws."""
    seen: set[tuple[str, ...]] = set()
    draw = 0
    while len(seen) < count:
        found = paper(Dice("papers", seed, split, draw), split)
        draw += 1
        if found.lines not in seen:
            seen.add(found.lines)
            yield found
