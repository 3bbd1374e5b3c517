"""Drawings and what is said of them: equal on every machine, true of their pixels, and a type of question left out."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from halter.errors import Refusal
from halter.playground import drawings, sights
from halter.playground.drawings import COLOURS, SIDE, Form, Things
from halter.playground.words import Dice
from halter.pretraining.sight import SightTraining

SEEDS = st.integers(0, 2**32)
DIGEST = "8c9daa71846e07471727106e8c02909f3dc99c4c416ce10875d66b23c669602b"


def distance(pixels, colour):
    return np.abs(pixels.astype(int) - np.array(colour)).sum(-1)


def test_the_same_seed_draws_the_same_on_every_machine() -> None:
    made = hashlib.sha256()
    for at in range(60):
        seen, said = sights.lesson(5, at, tuple(sights.QUESTIONS))
        made.update(seen.draw().tobytes() + json.dumps(said).encode())
    assert made.hexdigest() == DIGEST


def test_a_png_of_ours_is_what_pillow_reads() -> None:
    for at in range(4):
        pixels = sights.drawing(Dice(at)).draw()
        assert (np.array(Image.open(io.BytesIO(drawings.png(pixels)))) == pixels).all()


@given(SEEDS)
@settings(max_examples=60)
def test_things_lie_where_and_are_coloured_as_is_said(seed: int) -> None:
    """Told from pixels alone: in each quarter the pixels that are no ground, their middle and their colour."""
    seen = sights.things(Dice(seed))
    pixels, half = seen.draw(), SIDE // 2
    there = {thing.where: thing for thing in seen.things}
    for number, where in enumerate(drawings.QUARTERS):
        down, across = divmod(number, 2)
        part = pixels[down * half : (down + 1) * half, across * half : (across + 1) * half]
        inside = distance(part, seen.ground) > 60
        assert (inside.sum() > half) == (where in there)  # a neighbour's edge may touch the first line
        if where in there:
            way = np.array(there[where].paint) - np.array(seen.ground)
            covered = (part - np.array(seen.ground)) @ way / (way @ way)  # the share of each pixel
            colour = np.median(part[covered > 0.9], axis=0)
            assert min(COLOURS, key=lambda name: distance(colour, COLOURS[name])) == there[where].colour
            share = {"circle": np.pi, "square": (16 / 9) ** 2, "triangle": 2.0, "cross": 20 / 9}[there[where].shape]
            wanted = share * (there[where].reach / drawings.FINE) ** 2
            assert covered[inside].sum() == pytest.approx(wanted, rel=0.25)


@given(SEEDS)
@settings(max_examples=60)
def test_forms_show_their_numbers_and_ticks(seed: int) -> None:
    seen = sights.form(Dice(seed))
    dark = seen.draw().sum(-1) < 100
    left, top = seen.corner
    for at, line in enumerate(seen.lines):
        x, y = 1 + left, 1 + top + 16 * at
        assert dark[y + 2 : y + 9, x + 1 : x + 8].any() == line.ticked
        for place, digit in enumerate(f"{line.number:02}"):
            begin = x + 12 + 8 * place
            found = dark[y : y + 10 : 2, begin : begin + 6 : 2]
            assert "".join("#" if one else "." for one in found.flat) == "".join(drawings.GLYPHS[int(digit)])
    assert len(set(drawings.GLYPHS)) == 10


@given(SEEDS, st.sampled_from(sorted(sights.QUESTIONS)))
@settings(max_examples=200)
def test_answers_are_true(seed: int, name: str) -> None:
    dice = Dice(seed)
    seen = sights.drawing(dice)
    exchange = sights.QUESTIONS[name](dice, seen)
    if exchange is None:
        assert isinstance(seen, Form) or name in ("number", "tick", "position")
        return
    question, answer = exchange
    asked, answer = question.rstrip("?").split(), answer.rstrip(".").lower()
    if isinstance(seen, Form):
        line = seen.lines["second" in asked]
        assert answer == (str(line.number) if name == "number" else "yes" if line.ticked else "no")
        return
    assert isinstance(seen, Things)
    met = [t for t in seen.things if t.where in question or (name != "count" and t.shape in asked)]
    if name == "shape" and "at" not in asked:
        met = [t for t in seen.things if t.colour in asked]
    if name == "position":
        met = [t for t in seen.things if t.colour in asked and t.shape in asked]
    if name == "count":
        of = [t for t in seen.things if asked[2] in (t.colour, t.shape + "s", t.shape + "es", "things")]
        assert answer == ["none", "one", "two", "three", "four"][len(of)]
        return
    assert len(met) == 1
    assert answer == {"colour": met[0].colour, "shape": f"a {met[0].shape}", "position": met[0].where}[name]


def test_a_caption_names_all_that_is_there() -> None:
    for at in range(40):
        dice = Dice(at)
        seen = sights.drawing(dice)
        said = sights.caption(dice, seen).lower()
        parts = seen.things if isinstance(seen, Things) else ()
        assert all(thing.name in said and thing.where in said for thing in parts)
        assert all(str(line.number) in said for line in getattr(seen, "lines", ()))


def test_what_is_left_out_is_never_asked_in_lessons() -> None:
    types = SightTraining().types
    said = [question for at in range(400) for question, _ in sights.lesson(0, at, types)[1]]
    assert len({question.split()[0] for question in said}) >= 4
    assert not [question for question in said if question.startswith("What colour")]
    left = [question for _, (question, _) in sights.asked(sights.LEFT_OUT, 0, "test", 20)]
    assert all(question.startswith("What colour") for question in left)


def test_a_talk_asks_what_single_questions_ask() -> None:
    met = set()
    for at in range(60):
        seen, said = sights.talk(0, "train", at)
        assert 1 <= len(said) == len(set(said)) <= sights.TALKED and (seen, said) == sights.talk(0, "train", at)
        draws = {maker(Dice(n), seen) for n in range(60) for maker in sights.QUESTIONS.values()}
        assert said == [(sights.DESCRIBE, sights.described(seen))] or draws.issuperset(said)
        met |= {question.split()[0] for question, _ in said}
    assert met == {"Describe", "What", "Which", "How", "Where", "Is"}
    first = sights.rows(sights.TALK, 0, "train", 1)[0]["messages"]
    assert isinstance(first, list) and [turn["content"].count("<image>") for turn in first][:3] == [1, 0, 0]


def test_a_quiz_is_questions_and_the_caption_behind_them() -> None:
    for at in range(40):
        seen, said = sights.quiz(0, "train", at)
        draws = {maker(Dice(n), seen) for n in range(60) for maker in sights.QUESTIONS.values()}
        assert 1 <= len(said[:-1]) == len(set(said[:-1])) <= sights.ASKED and draws.issuperset(said[:-1])
        assert said[-1] == (sights.DESCRIBE, sights.described(seen)) and (seen, said) == sights.quiz(0, "train", at)


def test_rows_are_written_for_every_type(tmp_path: Path) -> None:
    written = sights.write_sights(tmp_path, 3, train=4, test=2)
    assert len(written) == 2 * len(sights.FILES)
    rows = [json.loads(line) for line in (tmp_path / "count" / "train.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 4 and all(row["images"][0].startswith("data:image/png;base64,") for row in rows)
    with pytest.raises(Refusal, match="unknown-task"):
        sights.rows("colours", 0, "train", 1)
