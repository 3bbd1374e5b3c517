"""Any two methods in a list, in either order, and two adapters of one: what must hold of every pair.

No method is named here: a new file is paired with all others, and with itself. The equations of pairs, written out in
float64, are in tests/methods/test_pairs_by_equation.py.
"""

from __future__ import annotations

import functools
import itertools

import bounds
import pytest
import together
import torch

import halter
from halter.adapters.adapter import adapt
from halter.contract.registry import find, names
from halter.errors import Refusal

PAIRS = list(itertools.product(names(), repeat=2))
KIN = [name for name in names() if hasattr(find(name), "experts")]
"""Those that adapt routed experts."""
REFUSED: dict[tuple[str, str], str] = {}
"""{(first, second): id of the refusal} of pairs that are refused; every other pair works."""


def is_each_alone_where_the_other_is_at_its_start(number, methods, parts):
    """A list in which one of them has not been trained computes what the other does alone: neither is lost, nor is
    changed by the other's mere presence."""
    for here, there in ((0, 1), (1, 0)):
        untrained = together.made(methods[there], number, seed=there + 3, moved=False)
        if not torch.equal(together.logits(number, untrained), together.logits(number, None, untrained)):
            continue  # one that disturbs the base from its start on, as some options say
        pair = [untrained, untrained]
        pair[here] = parts[here]
        both = together.in_order(methods, pair)
        if both.virtual_tokens == parts[here].virtual_tokens:  # no place is shifted by tokens ahead
            bounds.assert_same(together.logits(number, both), together.logits(number, parts[here], both))


def obey(number, methods, folder):
    """Every law of a list of two methods on one base."""
    parts = [together.made(method, number, seed=seed) for seed, method in enumerate(methods)]
    both = together.in_order(methods, parts)
    got = together.logits(number, both)
    for part in parts:
        assert float((got - together.logits(number, part, both)).abs().max()) > 0
    is_each_alone_where_the_other_is_at_its_start(number, methods, parts)
    still = together.without_gradient(number, both)
    if both.virtual_tokens:  # an edit of the last layer's output at tokens ahead, whose output nobody reads
        still = [name for name in still if f".layers.{both.shape.layers - 1}.block." not in name]
    assert not still, still
    together.is_saved_as_it_is(number, both, folder)
    stacked = halter.stack(parts)
    assert torch.equal(together.logits(number, stacked), got)
    together.is_alone_in_a_mixed_batch(number, [both, parts[0], halter.stack(parts[::-1])])
    together.folds_or_says_where(number, both)


def two_sights(methods):
    """Whether a picture would have the tokens of one of them, and be seen by another too."""
    seeing = [one for method in methods if (one := method.equipped()).looks]
    return len(seeing) > 1 and any(method.picture_tokens for method in seeing)


def tried(number, methods, folder, names):
    """``obey``, or the refusal that is expected of these two."""
    try:
        if refused := "two-sights" if two_sights(methods) else REFUSED.get(names):
            with pytest.raises(Refusal, match=refused):
                adapt(together.model(number), methods)
        else:
            obey(number, methods, folder)
    except Exception as error:
        error.add_note(f"on {together.BASES[number]}: {methods}")
        raise


@pytest.mark.parametrize("first", names())
def test_every_ordered_pair_obeys_the_laws(first, tmp_path):
    for second in names():
        tried(0, [find(first)(), find(second)()], tmp_path / "both", (first, second))


def sets_without_experts(name, sets=together.sets_of):
    """Pairs at routed experts have tests of their own; all option sets there would take a third longer."""
    return [one for one in sets(name) if one[0] < together.DENSE]


@functools.cache
def schedule(sets):
    """{(first, second): [(base, set of the first, set of the second)]}, of each ordered pair one or more, in which each
    of a method's ``sets`` stands beside another method."""
    left = {name: list(enumerate(sets_without_experts(name, sets))) for name in names()}
    there = {name: [on for on, _ in sets_without_experts(name, sets)] for name in names()}
    found = {pair: [] for pair in PAIRS}

    def take(name, number):
        """A set of that base that has not stood in a pair yet, or any."""
        fresh = [one for one in left[name] if one[1][0] == number]
        if fresh:
            left[name].remove(fresh[0])
            return fresh[0][1][1]
        return sets_for(name, number)[-1]

    for first, second in PAIRS:
        if first != second:
            open_ = [on for _, (on, _) in left[first]] or [on for _, (on, _) in left[second]] or there[first]
            found[first, second].append((open_[0], take(first, open_[0]), take(second, open_[0])))
    for name in names():
        other = "lora" if name != "lora" else "bitfit"
        while left[name]:
            number = left[name][0][1][0]
            found[name, other].append((number, take(name, number), find(other)()))
    return found


@pytest.mark.parametrize("first", names())
def test_every_value_stands_in_a_pair_that_obeys_the_laws(first, tmp_path):
    """Each value of each option beside another method; nightly each two values."""
    for second in names():
        for number, *methods in schedule(together.few_of)[first, second]:
            tried(number, methods, tmp_path / "both", (first, second))


@pytest.mark.nightly
@pytest.mark.parametrize("first", names())
def test_every_option_set_stands_in_a_pair_that_obeys_the_laws(first, tmp_path):
    for second in names():
        for number, *methods in schedule(together.sets_of)[first, second]:
            tried(number, methods, tmp_path / "both", (first, second))


@pytest.mark.parametrize("name", names())
def test_the_same_adapter_twice_is_a_list_of_two(name):
    part = together.made(find(name)())
    if two_sights([find(name)()] * 2):
        with pytest.raises(Refusal, match="two-sights"):
            together.logits(0, halter.stack([part, part]))
        return
    twice = together.in_order([find(name)(), find(name)()], [part, part])
    got = together.logits(0, halter.stack([part, part]))
    assert torch.equal(got, together.logits(0, twice))
    assert not torch.equal(got, together.logits(0, part))


def sets_for(name, number):
    found = [method for on, method in sets_without_experts(name) if on == number]
    return found or [find(name)()]


def at_experts(name, which):
    """A method on these routed experts of base ``together.DENSE``, or where it knows none on what it acts on there."""
    kind = find(name)
    return kind(experts=which) if name in KIN else kind()


@pytest.mark.parametrize("number", range(len(names())), ids=names())
def test_pairs_at_routed_experts_obey_the_laws(number, tmp_path):
    """Each of those that adapt experts after another one, on all and on one of two that overlap, and beside one that
    adapts none; all ordered pairs are a nightly test."""
    name = names()[number]
    other = KIN[(KIN.index(name) + 1) % len(KIN)] if name in KIN else KIN[number % len(KIN)]
    first, second = at_experts(name, "all"), at_experts(other, (1,))
    methods, pair = ([first, second], (name, other)) if number % 2 else ([second, first], (other, name))
    tried(together.DENSE, methods, tmp_path / "both", pair)


@pytest.mark.nightly
@pytest.mark.parametrize("first,second", [pair for pair in PAIRS if {*pair} & {*KIN}], ids="-".join)
@pytest.mark.parametrize("which", [("all", (1,)), ((1,), "all"), ((0,), (1,))], ids=str)
def test_every_ordered_pair_at_routed_experts_obeys_the_laws(first, second, which, tmp_path):
    methods = [at_experts(name, own) for name, own in zip((first, second), which, strict=True)]
    tried(together.DENSE, methods, tmp_path / "both", (first, second))


@pytest.mark.nightly
@pytest.mark.parametrize("first,second", PAIRS, ids="-".join)
def test_every_ordered_pair_obeys_the_laws_whatever_its_options(first, second, tmp_path):
    """Each method's covering sets beside the other's, as many as the longer list has, on every kind of base."""
    for number in range(together.DENSE):
        a, b = sets_for(first, number), sets_for(second, number)
        for i in range(max(len(a), len(b))):
            tried(number, [a[i % len(a)], b[(i + 1) % len(b)]], tmp_path / "both", (first, second))
