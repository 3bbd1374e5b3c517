"""Packing: rows end to end, labels where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.data.example import Example
from halter.data.examples import Examples
from halter.data.pack import IGNORED, pack


@st.composite
def an_example(draw: st.DrawFn) -> Example:
    size = draw(st.integers(1, 30))
    tokens = draw(st.lists(st.integers(0, 2**31 - 1), min_size=size, max_size=size))
    supervised = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    origin = draw(st.sampled_from(["a.jsonl:7", "b.json[12]", "c", "d:007", "e:9\n:3", ":", "[]", "f:" + "9" * 30]))
    return Example(np.array(tokens, np.int32), np.array(supervised, bool), origin)


EXAMPLES = st.lists(an_example(), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(EXAMPLES)
def test_labels_are_found_again(examples: list[Example]) -> None:
    """Undoing the packing gives the tokens and, shifted back, exactly the supervised ones."""
    batch = pack(examples, rows=range(5, 5 + len(examples)))
    assert batch.lengths == [len(e.tokens) for e in examples] and batch.rows == [5 + i for i in range(len(examples))]
    tokens, targets = batch.tokens.split(batch.lengths), batch.targets.split(batch.lengths)
    for example, ids, labels, prompt in zip(examples, tokens, targets, batch.prompt_lengths):
        assert ids.tolist() == example.tokens.tolist()
        labels_at_their_token = [IGNORED, *labels.tolist()[:-1]]
        wanted = [
            int(token) if learnt and place else IGNORED
            for place, (token, learnt) in enumerate(zip(example.tokens, example.supervised))
        ]
        assert labels_at_their_token == wanted
        assert labels[-1] == IGNORED  # nothing is predicted across the border of two rows
        assert sum(label != IGNORED for label in labels.tolist()) == example.targets
        learnt = example.supervised.tolist()
        assert prompt == (learnt.index(True) if True in learnt else len(ids))


@settings(max_examples=100, deadline=None)
@given(EXAMPLES, st.data())
def test_the_store_gives_back_what_went_in(examples: list[Example], data: st.DataObject) -> None:
    store = Examples(examples)
    rows = data.draw(st.lists(st.integers(0, len(examples) - 1), max_size=10))
    chosen = store.select(rows)
    assert len(store) == len(examples) and len(chosen) == len(rows)
    for got, wanted in [*zip(store, examples), *zip(chosen, [examples[row] for row in rows])]:
        assert got.tokens.tolist() == wanted.tokens.tolist() and got.supervised.tolist() == wanted.supervised.tolist()
        assert got.origin == wanted.origin and got.tokens.dtype == np.int32 and got.supervised.dtype == np.bool_
    assert chosen.lengths.tolist() == [len(examples[row].tokens) for row in rows]
    assert chosen.targets.tolist() == [examples[row].targets for row in rows]
    if examples:
        assert store[-1].tokens.tolist() == examples[-1].tokens.tolist()
        assert [e.origin for e in store[1:]] == [e.origin for e in examples[1:]]
    with pytest.raises(IndexError):
        store[len(examples)]


def test_many_rows_take_little_memory() -> None:
    """5 bytes a token and at most 100 a row; the 15 % are the arrays' room to grow."""
    import tracemalloc

    tokens, learnt = np.arange(50, dtype=np.int32), np.ones(50, bool)
    tracemalloc.start()
    store = Examples(Example(tokens, learnt, f"some/folder/file.jsonl:{line}") for line in range(20_000))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(store) == 20_000
    assert held < 20_000 * (50 * 5 * 1.15 + 100)
