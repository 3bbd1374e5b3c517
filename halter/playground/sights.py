"""What is said of drawings: captions, and questions of several types with their answers; as rows for training.

Every picture and every word is drawn by ``Dice`` of a seed and a number, and by nothing else.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from halter.errors import Refusal, meant
from halter.files import writing
from halter.playground.drawings import (
    COLOURS,
    FINE,
    SHAPES,
    SIDE,
    Colour,
    Drawing,
    DrawnThing,
    Form,
    FormLine,
    Things,
    png,
)
from halter.playground.tasks import Exchange
from halter.playground.words import Dice

NUMBERS = ("none", "one", "two", "three", "four")
LINES = ("first", "second")
FORMS = 0.15
"""The share of forms among drawings."""
CAPTIONED = 0.7
"""The share of pre-training's drawings whose caption is asked for."""
CAPTION = "What is in the picture?"


def drawing(dice: Dice) -> Drawing:
    return form(dice) if dice.chance(FORMS) else things(dice)


def things(dice: Dice, most: int = 4) -> Things:
    """One to ``most`` things; whatever the number, every shape and colour is as likely as another."""
    quarters = sorted(dice.some(range(4), dice.between(1, most)))
    return Things(tuple(_thing(dice, quarter) for quarter in quarters), ground(dice))


def _thing(dice: Dice, quarter: int) -> DrawnThing:
    shape, colour = dice.pick(tuple(SHAPES)), dice.pick(tuple(COLOURS))
    return placed(dice, quarter, shape, colour)


def placed(dice: Dice, quarter: int, shape: str, colour: str) -> DrawnThing:
    """A thing of this shape and colour somewhere in its quarter, as large and as bright as it is drawn."""
    reach, half = dice.between(4 * FINE + 2, 7 * FINE), SIDE * FINE // 2
    middle = tuple(half * side + dice.between(reach, half - reach) for side in (quarter % 2, quarter // 2))
    r, g, b = (min(255, max(0, level + dice.between(-20, 20))) for level in COLOURS[colour])
    return DrawnThing(shape, colour, quarter, (middle[0], middle[1]), reach, (r, g, b))


def form(dice: Dice) -> Form:
    first, second = (FormLine(dice.chance(0.5), dice.between(10, 99)) for _ in LINES)
    return Form((first, second), (dice.between(0, 1), dice.between(0, 3)), ground(dice))


def ground(dice: Dice) -> Colour:
    level = dice.between(215, 255)
    r, g, b = (min(255, level + dice.between(-8, 8)) for _ in range(3))
    return r, g, b


def caption(dice: Dice, seen: Drawing) -> str:
    """All that is in a drawing, in one sentence."""
    if isinstance(seen, Form):
        said = (f"{which} line {line.number}, {'ticked' if line.ticked else 'open'}" for which, line in _lines(seen))
        return f"A form: {'; '.join(said)}."
    order = dice.shuffled(seen.things)
    if dice.chance(0.5):
        said = (f"a {thing.name} at the {thing.where}" for thing in order)
    else:
        said = (f"at the {thing.where} a {thing.name}" for thing in order)
    text = ", ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def described(seen: Drawing) -> str:
    """All that is in a drawing, in one form: its things in the order of the quarters."""
    if isinstance(seen, Form):
        return caption(Dice(0), seen)  # which has one form already
    text = ", ".join(f"a {thing.name} at the {thing.where}" for thing in seen.things)
    return f"{text[0].upper()}{text[1:]}."


def _lines(seen: Form) -> list[tuple[str, FormLine]]:
    return list(zip(LINES, seen.lines, strict=True))


def colour(dice: Dice, seen: Drawing) -> Exchange | None:
    """By a shape that only one thing has, or by a quarter."""
    thing = _one(dice, seen, lambda thing: thing.shape)
    if thing is not None and dice.chance(0.5):
        return f"What colour is the {thing.shape}?", f"{thing.colour.capitalize()}."
    if not isinstance(seen, Things):
        return None
    thing = dice.pick(seen.things)
    return f"What colour is the thing at the {thing.where}?", f"{thing.colour.capitalize()}."


def shape(dice: Dice, seen: Drawing) -> Exchange | None:
    """By a colour that only one thing has, or by a quarter."""
    thing = _one(dice, seen, lambda thing: thing.colour)
    if thing is not None and dice.chance(0.5):
        return f"Which shape is {thing.colour}?", f"A {thing.shape}."
    if not isinstance(seen, Things):
        return None
    thing = dice.pick(seen.things)
    return f"Which shape is at the {thing.where}?", f"A {thing.shape}."


def count(dice: Dice, seen: Drawing) -> Exchange | None:
    """Of all things, or of those of one shape or colour that is there."""
    if not isinstance(seen, Things):
        return None
    if dice.chance(0.5):
        return "How many things are there?", f"{NUMBERS[len(seen.things)].capitalize()}."
    one, by_shape = dice.pick(seen.things), dice.chance(0.5)
    number = sum(t.shape == one.shape if by_shape else t.colour == one.colour for t in seen.things)
    what = f"{one.shape}{'es' if one.shape.endswith('s') else 's'}" if by_shape else f"{one.colour} things"
    return f"How many {what} are there?", f"{NUMBERS[number].capitalize()}."


def position(dice: Dice, seen: Drawing) -> Exchange | None:
    """Where a thing is that there is only once."""
    thing = _one(dice, seen, lambda thing: thing.name)
    if thing is None:
        return None
    return f"Where is the {thing.name}?", f"{thing.where.capitalize()}."


def number(dice: Dice, seen: Drawing) -> Exchange | None:
    if not isinstance(seen, Form):
        return None
    which, line = dice.pick(_lines(seen))
    return f"Which number is in the {which} line?", f"{line.number}."


def tick(dice: Dice, seen: Drawing) -> Exchange | None:
    if not isinstance(seen, Form):
        return None
    which, line = dice.pick(_lines(seen))
    return f"Is the {which} line ticked?", "Yes." if line.ticked else "No."


def _one(dice: Dice, seen: Drawing, name: Callable[[DrawnThing], str]) -> DrawnThing | None:
    """A thing that by this name no other is called; None where there is none."""
    if not isinstance(seen, Things):
        return None
    names = [name(thing) for thing in seen.things]
    alone = [thing for thing in seen.things if names.count(name(thing)) == 1]
    return dice.pick(alone) if alone else None


QUESTIONS: dict[str, Callable[[Dice, Drawing], Exchange | None]] = {
    "colour": colour,
    "shape": shape,
    "count": count,
    "position": position,
    "number": number,
    "tick": tick,
}
"""{type: makes a question about a drawing and its answer; None where nothing of the kind can be asked of it}."""
DESCRIBE = "Describe the picture."
TASKS = (*QUESTIONS, "caption")
"""The types of questions, and captions in one form."""
TALK, TALKED, CAPTIONS = "talk", 4, 0.4
"""Rows of several questions about one drawing, how many at most, and the share of captions among the rows."""
QUIZ, ASKED = "quiz", 3
"""Rows of questions with the caption behind them, and how many questions at most."""
FILES = (*TASKS, TALK, QUIZ)
"""The kinds of rows that are written as files."""
LEFT_OUT = "colour"
"""The type of question that pre-training never asks."""


def asked(name: str, seed: object, split: str, rows: int) -> Iterator[tuple[Drawing, Exchange]]:
    """``rows`` drawings with one question of a type, or a caption, each; those of "train" and "test" are different
    draws."""
    if name not in TASKS:
        what, known = "no such type of question about pictures", ", ".join(TASKS)
        raise Refusal("unknown-task", what, found=[name], expected=f"one of {known}", fix=meant(name, TASKS))
    made = draw = 0
    while made < rows:
        dice = Dice("sights", name, seed, split, draw)
        draw += 1
        seen = drawing(dice)
        exchange = QUESTIONS[name](dice, seen) if name in QUESTIONS else (DESCRIBE, described(seen))
        if exchange is not None:
            made += 1
            yield seen, exchange


def talk(seed: object, split: str, at: int) -> tuple[Drawing, list[Exchange]]:
    """A drawing and what is said about it: its caption alone, or up to ``TALKED`` questions of every type in drawn
    order. A caption behind questions, or ahead of them, would be learned from their words in place of the picture."""
    dice = Dice("sights", TALK, seed, split, at)
    seen = drawing(dice)
    return seen, [(DESCRIBE, described(seen))] if dice.chance(CAPTIONS) else _questions(dice, seen, TALKED)


def quiz(seed: object, split: str, at: int) -> tuple[Drawing, list[Exchange]]:
    """A drawing, up to ``ASKED`` questions about it, and its caption behind them: the caption tells of every thing,
    which an answer of one word does not, and makes the adapter look. Who learns from these answers questions, and
    cannot give a caption that is asked for first."""
    dice = Dice("sights", QUIZ, seed, split, at)
    seen = drawing(dice)
    return seen, [*_questions(dice, seen, ASKED), (DESCRIBE, described(seen))]


def _questions(dice: Dice, seen: Drawing, most: int) -> list[Exchange]:
    """Up to ``most`` different ones, of every type, in drawn order."""
    made = (QUESTIONS[name](dice, seen) for name in [*QUESTIONS, *QUESTIONS])
    return dice.shuffled([exchange for exchange in dict.fromkeys(made) if exchange is not None])[:most]


TALKS = {TALK: talk, QUIZ: quiz}
"""{kind of row: makes one of several exchanges about a drawing, of a seed, a split and a number}."""


def row(seen: Drawing | None, *said: Exchange) -> dict[str, object]:
    """A row that ``halter train`` takes: the picture as a PNG in a data URI, the first question below it, the answer,
    and so on; None: without a picture."""
    who = ("user", "assistant")
    turns = [{"role": role, "content": text} for one in said for role, text in zip(who, one, strict=True)]
    if seen is None:
        return {"messages": turns}
    uri = f"data:image/png;base64,{base64.b64encode(png(seen.draw())).decode()}"
    turns[0]["content"] = f"<image>{turns[0]['content']}"
    return {"messages": turns, "images": [uri]}


def rows(name: str, seed: object, split: str, count: int) -> list[dict[str, object]]:
    """Rows of one of ``FILES``."""
    if name in TALKS:
        return [row(seen, *said) for seen, said in (TALKS[name](seed, split, at) for at in range(count))]
    return [row(seen, exchange) for seen, exchange in asked(name, seed, split, count)]


def write_sights(folder: Path, seed: int = 0, train: int = 600, test: int = 150) -> list[Path]:
    """Write KIND/train.jsonl and KIND/test.jsonl for each of ``FILES``; returns the paths."""
    written = []
    for name in FILES:
        for split, number_of in (("train", train), ("test", test)):
            path = Path(folder) / name / f"{split}.jsonl"
            writing.write_text(path, "".join(json.dumps(one) + "\n" for one in rows(name, seed, split, number_of)))
            written.append(path)
    return written


def lesson(
    seed: object, at: int, types: Sequence[str], nursery: bool = False, most: int = 4
) -> tuple[Drawing, list[Exchange]]:
    """A drawing of pre-training, in the ``nursery`` of one thing, and ``most`` exchanges about it in drawn order: now
    and then its caption, and questions."""
    dice = Dice("nursery" if nursery else "lessons", seed, at)
    seen = things(dice, 1) if nursery else drawing(dice)
    said = [(CAPTION, caption(dice, seen))] if dice.chance(CAPTIONED) else []
    for name in dice.shuffled([*types, *types]):
        exchange = QUESTIONS[name](dice, seen)
        if exchange is not None and exchange not in said and len(said) < most:
            said.append(exchange)
    return seen, dice.shuffled(said)
