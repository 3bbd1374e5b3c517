"""What the encoder of pictures learns from: pictures, and texts of which each is true of some of them.

What is true of a picture is a set of facts, and each fact is a text: a thing and its place, a colour or a shape and its
place, a line's number, a digit. Its caption says all of them. So of every text and every picture it is known whether
the one is true of the other, and no picture is ever called wrong for a text that is right. Pictures come in families: a
first one, and others that differ from it in one fact, which makes them hard to tell apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from halter.playground import sights
from halter.playground.drawings import COLOURS, QUARTERS, SHAPES, Drawing, Form, FormLine, Things
from halter.playground.papers import Paper, paper
from halter.playground.words import Dice

WORDS = re.compile(r"[a-z]+|[0-9]|[^\s\w]")
"""What a text is cut into; a number is its digits."""
PAPER_SCALE = 2
"""Pixels of a paper's point while an encoder learns: shrunk, it looks as one of four does, and is drawn in a quarter of
the time."""
Seen = Drawing | Paper


@dataclass(frozen=True)
class Told:
    """A picture, and what is true of it."""

    pixels: np.ndarray
    """uint8 [height, width, 3]."""
    caption: str
    facts: frozenset[str]
    """All that the caption says, each a text of its own."""


def words(text: str) -> list[str]:
    return WORDS.findall(text.lower())


def family(dice: Dice, members: int, forms: float, papers: float) -> Iterator[Told]:
    """A picture, with probability ``papers`` of a paper, else with ``forms`` of a form, and ``members`` less one others
    that differ from it in one fact."""
    if dice.chance(papers):
        first: Seen = paper(dice)
    else:
        first = sights.form(dice) if dice.chance(forms) else sights.things(dice)
    for number in range(members):
        yield told(dice, changed(dice, first) if number else first)


def told(dice: Dice, seen: Seen) -> Told:
    """A picture with its facts, and its caption; of a paper it may be the lines that stand on it."""
    if isinstance(seen, Paper):
        caption = seen.caption() if dice.chance(0.5) else "; ".join(seen.lines)
    else:
        caption = sights.caption(dice, seen)
    pixels = seen.draw(PAPER_SCALE) if isinstance(seen, Paper) else seen.draw()
    return Told(pixels, caption, facts_of(seen))


def facts_of(seen: Seen) -> frozenset[str]:
    """All that is true of a picture: what its caption says, the answers to what sights asks, a paper's fields."""
    if isinstance(seen, Paper):
        return frozenset(f"{name} {value}" for name, value in seen.fields.items())
    if isinstance(seen, Form):
        lines = zip(sights.LINES, seen.lines, strict=True)
        return frozenset(fact for which, line in lines for fact in _facts(which, line))
    found = {f"{sights.NUMBERS[len(seen.things)]} {'things' if len(seen.things) > 1 else 'thing'}"}
    for one in seen.things:
        found |= {f"{what} at the {one.where}" for what in (f"a {one.name}", one.colour, f"a {one.shape}")}
    empty = set(QUARTERS) - {one.where for one in seen.things}
    return frozenset(found | {f"nothing at the {where}" for where in empty})


def _facts(which: str, line: FormLine) -> list[str]:
    tens, ones = divmod(line.number, 10)
    ticked = "ticked" if line.ticked else "open"
    begins, ends = f"{which} line begins with {tens}", f"{which} line ends with {ones}"
    return [f"{which} line {line.number}", begins, ends, f"{which} line {ticked}"]


def changed(dice: Dice, seen: Seen) -> Seen:
    """Another picture that differs in one fact, and in all that no text tells: places within quarters, sizes, hues, a
    paper's layout."""
    if isinstance(seen, Paper):
        return _other_paper(dice, seen)
    if isinstance(seen, Form):
        first, second = _lines(dice, seen)
        return Form((first, second), (dice.between(0, 1), dice.between(0, 3)), sights.ground(dice))
    layout = {thing.quarter: (thing.shape, thing.colour) for thing in seen.things}
    dice.pick(CHANGES)(dice, layout)
    things = tuple(sights.placed(dice, quarter, *layout[quarter]) for quarter in sorted(layout))
    return Things(things, sights.ground(dice))


def _other_paper(dice: Dice, seen: Paper) -> Paper:
    name = dice.pick(tuple(seen.fields)[1:])  # another kind has other fields
    while True:
        other = paper(dice)
        if other.fields.get(name, seen.fields[name]) != seen.fields[name]:
            return replace(other, fields={**seen.fields, name: other.fields[name]})


def _lines(dice: Dice, seen: Form) -> Sequence[FormLine]:
    lines = list(seen.lines)
    at = dice.below(2)
    line = lines[at]
    tens, ones = divmod(line.number, 10)
    what = dice.below(5)
    if what == 0:
        lines[at] = replace(line, ticked=not line.ticked)
    elif what < 3:
        lines[at] = replace(line, number=10 * dice.pick([n for n in range(1, 10) if n != tens]) + ones)
    else:
        lines[at] = replace(line, number=10 * tens + dice.pick([n for n in range(10) if n != ones]))
    return lines


Quarters = dict[int, tuple[str, str]]
"""{quarter: (shape, colour) of the thing in it}."""


def _other_shape(dice: Dice, layout: Quarters) -> None:
    quarter = dice.pick(sorted(layout))
    shape, colour = layout[quarter]
    layout[quarter] = dice.pick([one for one in SHAPES if one != shape]), colour


def _other_colour(dice: Dice, layout: Quarters) -> None:
    quarter = dice.pick(sorted(layout))
    shape, colour = layout[quarter]
    layout[quarter] = shape, dice.pick([one for one in COLOURS if one != colour])


def _moved(dice: Dice, layout: Quarters) -> None:
    """Into a free quarter; where all are full, two things change places."""
    quarter = dice.pick(sorted(layout))
    target = dice.pick([one for one in range(4) if one not in layout] or [one for one in layout if one != quarter])
    thing, other = layout.pop(quarter), layout.get(target)
    layout[target] = thing
    if other is not None:
        layout[quarter] = other


def _more_or_fewer(dice: Dice, layout: Quarters) -> None:
    free = [one for one in range(4) if one not in layout]
    if len(layout) > 1 and (not free or dice.chance(0.5)):
        del layout[dice.pick(sorted(layout))]
    else:
        layout[dice.pick(free)] = dice.pick(tuple(SHAPES)), dice.pick(tuple(COLOURS))


def _colours_swapped(dice: Dice, layout: Quarters) -> None:
    if len(layout) < 2:
        return _other_colour(dice, layout)
    one, two = dice.some(sorted(layout), 2)
    (shape, colour), (other_shape, other_colour) = layout[one], layout[two]
    layout[one], layout[two] = (shape, other_colour), (other_shape, colour)
    return None


CHANGES: tuple[Callable[[Dice, Quarters], None], ...] = (
    *(_other_shape,) * 4,
    _other_colour,
    _moved,
    _more_or_fewer,
    _colours_swapped,
)
"""Shapes are what takes longest to see, so half of all changes are theirs."""


def batch(seed: object, step: int, pictures: int, members: int, forms: float, papers: float) -> list[Told]:
    """The pictures of one step: families of ``members``, ``pictures`` in all."""
    made: list[Told] = []
    at = 0
    while len(made) < pictures:
        made += family(Dice("contrast", seed, step, at), min(members, pictures - len(made)), forms, papers)
        at += 1
    return made


def captions_true(batch: Sequence[Told]) -> np.ndarray:
    """bool [pictures, captions]: whose caption is true of which picture."""
    return np.array([[one.facts == two.facts for two in batch] for one in batch])


def facts_true(batch: Sequence[Told]) -> tuple[list[str], np.ndarray]:
    """Every fact of a step, sorted, and bool [pictures, facts]: which are true of which picture."""
    facts = sorted({fact for one in batch for fact in one.facts})
    return facts, np.array([[fact in one.facts for fact in facts] for one in batch])
