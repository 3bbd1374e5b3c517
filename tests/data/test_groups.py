"""Rows that belong together: planned, packed and cut as one, with their labels, whatever holds them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.data.cache_entry import Writer, open_entry
from halter.data.example import Example
from halter.data.examples import Builder, Examples
from halter.data.order import epoch_groups, epoch_rows
from halter.data.pack import pack
from halter.data.report import DataReport
from halter.data.store import joined
from halter.data.tokenise import Account
from halter.recipe import load
from halter.run.prepare import plan_of
from halter.training import objective
from halter.training.objective import Objective
from halter.training.splitting import Splitter

GROUPS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=40)
"""(group, tokens) of each row; the rows of a group need not be neighbours."""


def row(length: int, group: int | None = None, label: float | None = None, learnt: bool = True) -> Example:
    return Example(np.arange(length, dtype=np.int32), np.full(length, learnt), f"f:{group}", group=group, label=label)


@settings(max_examples=150, deadline=None)
@given(GROUPS, st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0]), st.integers(0, 99), st.integers(0, 5))
def test_every_group_comes_whole(groups: list[tuple[int, int]], weight: float, seed: int, epoch: int) -> None:
    of = np.array([group for group, _ in groups])
    rows, starts = epoch_groups(of, np.full(len(of), weight), seed, epoch)
    units = [rows[a:b].tolist() for a, b in zip(starts, starts[1:])]
    for unit in units:
        assert unit == np.flatnonzero(of == of[unit[0]]).tolist()
    first_seen = list(dict.fromkeys(of.tolist()))
    drawn = epoch_rows(np.full(len(first_seen), weight), seed, epoch)  # as if each group were one row
    assert [of[unit[0]] for unit in units] == [first_seen[number] for number in drawn]


class Grouped(Objective):
    """Of whom a plan asks one thing."""

    grouped = True


@settings(max_examples=60, deadline=None)
@given(
    GROUPS,
    st.integers(1, 80),
    st.integers(1, 60),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_no_step_and_no_pass_tears_a_group(
    groups: list[tuple[int, int]], tokens: int, micro: int, weight: float, halvings: int, epoch: int
) -> None:
    """From the data to the passes that memory has room for; a row that comes twice is in two groups."""
    builder = Builder()
    for group, length in groups:
        builder.add(row(length + 1, group), group, weight)
    train = builder.examples()
    recipe = load({"model": "m", "data": "d", "train": {"tokens_per_step": tokens}})
    made, objective.make = objective.make, lambda _: Grouped()
    try:
        plan = plan_of(recipe, SimpleNamespace(train=train), micro)(epoch)  # type: ignore[arg-type]
        seen: Counter[int] = Counter()
        for number, step in enumerate(plan):
            for rows in step:
                assert all(plan.holding(one) <= number for one in rows)  # type: ignore[operator]
                batch = pack([train[one] for one in rows], rows, grouped=True)
                for part in Splitter(halvings=halvings).parts(batch):
                    for unit in part.units():
                        numbers = [part.rows[place] for place in unit]
                        of = {int(train.documents[one]) for one in numbers}
                        assert len(of) == 1 and numbers == np.flatnonzero(train.documents == of.pop()).tolist()
                        seen.update(numbers)
    finally:
        objective.make = made
    wanted, _ = epoch_groups(train.documents, train.weights, recipe.train.seed, epoch)
    assert seen == Counter(wanted.tolist())


def test_a_group_of_which_a_row_teaches_nothing_is_left_out() -> None:
    builder = Builder()
    for group, learnt in ((0, True), (0, False), (1, True), (1, True)):
        builder.add(row(5, group, learnt=learnt), group)
    made, objective.make = objective.make, lambda _: Grouped()
    try:
        plan = plan_of(load({"model": "m", "data": "d"}), SimpleNamespace(train=builder.examples()), 100)(0)  # type: ignore[arg-type]
    finally:
        objective.make = made
    assert list(plan) == [[[2, 3]]] and plan.holding(0) is None and plan.holding(3) == 0


def test_labels_and_groups_reach_the_batch() -> None:
    given_ = [row(4, 7, 1.0), row(5, 7, -1.0), row(6), row(3, 7, 0.5)]
    for held in (given_, Examples(given_)):
        batch = pack([held[place] for place in (0, 1, 3)], grouped=True)
        assert batch.groups == [0, 0, 0] and batch.labels == [1.0, -1.0, 0.5]
        batch = pack([held[place] for place in (1, 2, 3)], grouped=True)
        assert batch.groups == [0, 1, 2] and batch.labels is not None
        assert [math.isnan(one) for one in batch.labels] == [False, True, False]
        kept = batch.select([2, 0])
        assert kept.labels == [0.5, -1.0] and kept.groups == [2, 0] and kept.lengths == [3, 5]
        assert kept.origins == (batch.origins[2], batch.origins[0])
    assert pack(given_).groups is None and pack([row(4)]).labels is None
    # A row that comes again begins a group of its own.
    twice = pack([given_[0], given_[1], given_[0], given_[1]], rows=[0, 1, 0, 1], grouped=True)
    assert twice.groups == [0, 0, 2, 2] and twice.units() == [[0, 1], [2, 3]]


def test_labels_stay_where_rows_lie(tmp_path: Path) -> None:
    """In a cache's folder, and beside rows that have none; no label, no file of labels."""
    some, none = Examples([row(4, 1, 1.5), row(3, 1)]), Examples([row(2)])
    both = joined([some._store, none._store])
    writer = Writer(tmp_path)
    builder = Builder(writer.put)
    for number, example in enumerate(Examples.of(both)):
        builder.add(example, number)
    writer.finish(builder.store(), Account(DataReport(), []))
    opened = open_entry(tmp_path)
    assert opened is not None
    again = Examples.of(opened[0])
    assert [example.label for example in again] == [1.5, None, None] == [example.label for example in Examples.of(both)]
    assert none._store.labels is None and joined([none._store, none._store]).labels is None
