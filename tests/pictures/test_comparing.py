"""Wherever rows are compared by their tokens a picture compares by its digest: rows of equal ids and different pictures
share nothing from the picture on, and equal pictures are shared."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
import seeing
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.data import share
from halter.data.example import Example
from halter.data.pack import pack
from halter.data.share import share_beginnings
from halter.generation.beginnings import SHORTEST, shared
from halter.generation.prompts import EncodedPrompt
from halter.pictures.seen import between
from halter.pictures.tokens import compared, compared_array, outside

PATCH = 7
"""The id of every token of every picture here: tokens alone tell none from another."""
Piece = int | tuple[str, int]

pieces = st.lists(
    st.one_of(st.integers(0, 1), st.tuples(st.sampled_from("ab"), st.integers(1, 3))), min_size=2, max_size=6
)


def laid(made: list[Piece]):
    """(tokens, pictures) of a row of tokens and (picture's name, its length)."""
    tokens, pictures = [], []
    for one in made:
        if isinstance(one, tuple):
            pictures.append(seeing.placed(one[0] * 4 + str(one[1]), len(tokens), one[1]))
            tokens += [PATCH] * one[1]
        else:
            tokens.append(one)
    return tokens, tuple(pictures)


def example(made, prompt):
    tokens, pictures = laid([*made, 3])
    learned = np.arange(len(tokens)) >= min(prompt, len(tokens) - 1)
    for one in pictures:
        learned[one.start : one.end] = False
    return Example(np.array(tokens, np.int32), learned, pictures=pictures)


def whole(tokens, pictures):
    """What stands at each place of a row: a token, or a picture and which of its tokens."""
    at = {one.start + n: (one.digest, n) for one in pictures for n in range(one.length)}
    return [at.get(place, token) for place, token in enumerate(tokens)]


@given(pieces, pieces)
@settings(max_examples=200)
def test_two_rows_agree_as_far_as_their_tokens_and_pictures_do(first, second):
    rows = [laid(first), laid(second)]
    agree = [a == b for a, b in zip(*(whole(*row) for row in rows), strict=False)]
    alike = len(list(takewhile(bool, agree)))
    a, b = (compared(*row) for row in rows)
    assert len(list(takewhile(bool, [x == y for x, y in zip(a, b, strict=False)]))) == alike
    assert compared_array(np.array(rows[0][0]), rows[0][1]).tolist() == list(a)


@given(pieces, pieces)
def test_rows_agree_in_nothing_ahead_of_pictures_that_are_not_all_alike(first, second):
    """They agree in all as far as their last picture, or in nothing; behind it as their tokens do."""
    rows = [laid(first), laid(second)]
    examples = [Example(np.array(t, np.int32), np.array([False] * len(t)), pictures=p) for t, p in rows]
    a, b = (one.tolist() for one in (pack([one]).compared(True)[0] for one in examples))
    plain = [pack([one]).compared()[0].tolist() for one in examples]
    ends = [pictures[-1].end if pictures else 0 for _, pictures in rows]
    alike = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    as_plain = next((n for n, (x, y) in enumerate(zip(*plain, strict=False)) if x != y), min(len(a), len(b)))
    whole = ends[0] == ends[1] and as_plain >= ends[0]
    assert alike == (as_plain if whole else 0)


@given(st.lists(st.tuples(pieces, st.integers(2, 9)), min_size=2, max_size=6))
@settings(max_examples=150, deadline=None)
def test_a_beginning_that_rows_share_in_training_has_their_pictures_and_ends_in_none(drawn):
    examples = [example(made, prompt) for made, prompt in drawn]
    batch = pack(examples)
    old, share.SHORTEST = share.SHORTEST, 1
    try:
        found = share_beginnings(batch)
    finally:
        share.SHORTEST = old
    if found is batch:
        return
    starts = np.cumsum([0, *found.lengths]).tolist()
    held = found.pictures or [()] * len(found.lengths)
    for place, number in enumerate(found.rows):
        tokens = found.tokens[starts[place] : starts[place + 1]].tolist()
        before = found.continues[place]
        assert all(one.end <= found.lengths[place] and one.start + one.length <= len(tokens) for one in held[place])
        if number < 0:
            assert all(one.start >= 0 for one in held[place])
        elif before is not None:
            begun = found.lengths[before]
            head = found.tokens[starts[before] : starts[before + 1]].tolist()
            own = tuple(one.moved(-begun) for one in held[place])
            assert own == examples[number].pictures
            assert own[: len(held[before])] == held[before]
            assert whole(head + tokens, own) == whole(examples[number].tokens.tolist(), examples[number].pictures)
            assert not any(one.start < begun < one.end for one in own)


def test_equal_pictures_are_shared_and_different_ones_are_not():
    words = list(range(10, 10 + SHORTEST))
    rows = [example([*words, (name, 4), 1, 1], 99) for name in ("a", "a", "b")]
    assert len({tuple(row.tokens.tolist()) for row in rows}) == 1
    one, two = share_beginnings(pack(rows[:2])), share_beginnings(pack(rows[1:]))
    assert one.lengths[0] == SHORTEST + 5 and two.lengths[0] == SHORTEST
    assert [len(held) for held in one.pictures] == [1, 1, 1] and [len(held) for held in two.pictures] == [0, 1, 1]
    prompts = [EncodedPrompt(tuple(r.tokens.tolist()), False, pictures=r.pictures) for r in rows]
    keys = [compared(one.tokens, one.pictures) for one in prompts]
    (both,) = shared(keys[:2], [0, 0])
    (words_alone,) = shared(keys[1:], [0, 0])
    assert (both.length, words_alone.length) == (len(rows[0].tokens) - 1, SHORTEST)


def test_a_picture_right_ahead_of_what_is_learned_stays_out_of_the_beginning():
    words = list(range(10, 10 + SHORTEST))
    found = share_beginnings(pack([example([*words, ("a", 4), n], SHORTEST + 4) for n in (1, 2)]))
    assert found.lengths[0] == SHORTEST and all(held[-1].start == 0 for held in found.pictures[1:])


@given(pieces, st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_each_step_of_a_prompt_brings_the_pictures_of_which_it_has_tokens(made, steps):
    tokens, pictures = laid(made)
    fed, seen = 0, {}
    for count in (*steps, len(tokens)):
        end = min(len(tokens), fed + count)
        for one in between(pictures, fed, end):
            assert one.start < end - fed and one.end > 0
            for n in range(max(one.start, 0), min(one.end, end - fed)):
                seen[fed + n] = (one.digest, n - one.start)
        fed = end
    assert [seen.get(place, token) for place, token in enumerate(tokens)] == whole(tokens, pictures)


@given(pieces, st.integers(0, 18))
def test_a_place_to_cut_lies_in_no_picture_and_is_the_last_such(made, cut):
    tokens, pictures = laid(made)
    found = outside(pictures, cut)
    inside = {n for one in pictures for n in range(one.start + 1, one.end)}
    assert found not in inside
    assert found == max((n for n in range(cut + 1) if n not in inside), default=0) or cut > len(tokens)


def test_torch_and_numpy_see_the_same():
    tokens, pictures = laid([1, ("a", 3), 2])
    batch = pack([Example(np.array(tokens, np.int32), np.array([False] * 4 + [True]), pictures=pictures)])
    assert batch.compared()[0].tolist() == list(compared(tokens, pictures))
    assert torch.equal(batch.tokens, torch.tensor(tokens))
