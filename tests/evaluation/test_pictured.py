"""Pictures of rows that are scored: shown, withheld, shuffled; and rows as who is asked sees them."""

from __future__ import annotations

import numpy as np
import pytest
import seeing
import sighted
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.adapters.adapter import adapt
from halter.data.example import Example
from halter.encoders.sight import AdapterSight
from halter.evaluation.pictured import seen_as, shown_as
from halter.evaluation.score import held_out
from halter.pictures.seen import RowPicture

pytestmark = pytest.mark.usefixtures("small_encoder")
names = st.lists(st.one_of(st.none(), st.sampled_from("abcd"), st.sampled_from(["ab", "cd"])), min_size=1, max_size=8)


def row(name, each=2):
    """Words around a picture, or two, by their names' letters; None: no picture."""
    pictures: list[RowPicture] = []
    for letter in name or "":
        pictures.append(seeing.placed(letter * 4, 1 + each * len(pictures), each))
    tokens = [1, *[0] * each * len(pictures), 7, 8]
    return Example(np.array(tokens, np.int32), np.arange(len(tokens)) > len(tokens) - 2, pictures=tuple(pictures))


def shown(example):
    return [one.digest for one in example.pictures]


@given(names, st.integers(0, 3))
@settings(max_examples=150)
def test_shuffled_is_another_rows_picture_wherever_there_is_one(made, each):
    rows = [row(name, each) for name in made]
    found = shown_as(rows, "shuffled")
    for mine, theirs in zip(rows, found, strict=True):
        assert mine.tokens.tolist() == theirs.tokens.tolist() and (mine.supervised == theirs.supervised).all()
        places = [(one.start, one.length) for one in mine.pictures]
        assert [(one.start, one.length) for one in theirs.pictures] == places
        others = [shown(one) for one in rows if len(one.pictures) == len(mine.pictures) and shown(one) != shown(mine)]
        assert shown(theirs) in (others or [shown(mine)])


@given(names, st.integers(0, 3))
@settings(max_examples=60)
def test_withheld_is_the_row_of_its_words(made, each):
    rows = [row(name, each) for name in made]
    for mine, theirs in zip(rows, shown_as(rows, "withheld"), strict=True):
        assert theirs.tokens.tolist() == [1, 7, 8] and theirs.pictures == ()
        assert theirs.targets == mine.targets == 1
    assert shown_as(rows, "shown") is rows


def test_shuffling_is_the_same_every_time_and_uses_each_picture():
    rows = [row(name) for name in "abcd"]
    once, again = (shown_as(rows, "shuffled") for _ in range(2))
    assert [shown(one) for one in once] == [shown(one) for one in again]
    assert sorted(shown(one) for one in once) == sorted(shown(one) for one in rows)


@pytest.mark.parametrize("name", sighted.SEEING)
def test_the_score_hangs_on_the_pictures(name):
    """Held-out loss of rows as their adapter sees them: shown, shuffled and withheld are three numbers, and those of an
    adapter that is blind, and of the base, are one."""
    model = tiny.decoder()
    adapter, blind = adapt(model, sighted.method_of(name)), adapt(model, "bitfit")
    for one in (adapter, blind):
        tiny.jitter(one)
    words = [[1, 5, 9, 30 + n, 40, 41] for n in range(4)]
    wide = AdapterSight((), 3)
    rows = [sighted.row(one, [n > 3 for n in range(6)], wide, n) for n, one in enumerate(words)]
    losses = [
        held_out(model, seen_as(shown_as(rows, how), model, adapter), adapter).loss
        for how in ("shown", "shuffled", "withheld")
    ]
    assert min(abs(one - other) for n, one in enumerate(losses) for other in losses[:n]) > 1e-5
    for own in (blind, None):
        same = [
            held_out(model, seen_as(shown_as(rows, how), model, own), own).loss
            for how in ("shown", "shuffled", "withheld")
        ]
        assert same[0] == same[1] == same[2]
        plain = [sighted.row(one, [n > 3 for n in range(6)], None, None) for one in words]
        assert held_out(model, plain, own).loss == same[0]
    assert seen_as(plain, model, adapter) is plain
