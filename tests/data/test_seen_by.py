"""A row for who sees otherwise: its words and what is learned stay, its pictures have as many tokens as wanted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import seeing
import sighted
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.data.example import Example
from halter.data.examples import Builder, Examples
from halter.encoders.sight import AdapterSight

many = st.integers(0, 5)
pieces = st.lists(st.one_of(st.integers(1, 9), st.sampled_from("abc")), min_size=1, max_size=9)


def sees(tokens):
    return AdapterSight((), tokens)


def example(made, each):
    """Words, each by its number and learned where it is odd, and pictures by their names, of ``each`` tokens."""
    tokens, learned, pictures = [], [], []
    for one in made:
        if isinstance(one, str):
            pictures.append(seeing.placed(one * 4, len(tokens), each))
        tokens += [0] * each if isinstance(one, str) else [one]
        learned += [False] * each if isinstance(one, str) else [one % 2 == 1]
    return Example(np.array(tokens, np.int32), np.array(learned, bool), "file:1", "yes", pictures=tuple(pictures))


def same(one, other):
    assert one.tokens.tolist() == other.tokens.tolist() and one.tokens.dtype == other.tokens.dtype
    assert one.supervised.tolist() == other.supervised.tolist() and one.supervised.dtype == bool
    assert one.pictures == other.pictures and (one.origin, one.answer) == (other.origin, other.answer)


@given(pieces, many, many)
@settings(max_examples=150)
def test_a_row_is_what_it_would_have_been_for_whoever_sees(made, mine, theirs):
    row = example(made, mine)
    there = row.seen_by(sees(theirs))
    same(there, example(made, theirs))
    same(there.seen_by(sees(mine)), row)
    same(row.seen_by(None), example([one for one in made if not isinstance(one, str)], 0))


@given(st.lists(pieces, min_size=1, max_size=5), many, many)
@settings(max_examples=40)
def test_all_rows_at_once(rows, mine, theirs):
    builder = Builder()
    for number, made in enumerate(rows):
        builder.add(example(made, mine), number // 2, 1.0 + number)
    held = Examples.of(builder.store())
    there = held.seen_by(sees(theirs))
    for number, made in enumerate(rows):
        same(replaced(there[number]), replaced(example(made, theirs)))
    assert there.documents.tolist() == held.documents.tolist() and there.weights.tolist() == held.weights.tolist()
    seen = any(isinstance(one, str) for made in rows for one in made)
    assert (there is held) == (not seen)


def replaced(row):
    """Without what rows in memory keep elsewhere: the bytes of pictures, and answers that tokens say."""
    placeless = tuple(replace(one, place=seeing.placed("a", 0, 0).place) for one in row.pictures)
    return replace(row, answer="", pictures=placeless)


@pytest.mark.parametrize("tokens", [0, 3])
def test_a_picture_may_stand_anywhere(tokens):
    """At the very beginning, at the end, and side by side."""
    row = example(["a", 1, "b", "c"], tokens)
    assert [one.start for one in row.pictures] == ([0, 1, 1] if not tokens else [0, 4, 7])
    same(row.seen_by(sees(2)).seen_by(sees(tokens)), row)
    assert len(sighted.row([1, 2, 3], [False, True, True], sees(tokens), 0).tokens) == 3 + tokens
