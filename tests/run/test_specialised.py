"""What is measured of a router: information by its definition, and costs beside a model whose expert is zeros."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama4 import text_only

from halter.playground.token_kinds import KnownDocument
from halter.run.specialised import Kinds, Routes, chance, information

SHAPE = text_only(moe_layers=(1,))
DRAWN = np.random.default_rng(0)
DOCUMENTS = [
    KnownDocument(DRAWN.integers(3, 40, n, dtype=np.int32), kind, tuple(DRAWN.choice(["name", "sign"], n)))
    for n, kind in ((30, "story"), (12, "song"), (1, "song"), (25, "story"))
]


@pytest.fixture(scope="module")
def routes() -> Routes:
    return Routes(tiny.decoder(SHAPE), DOCUMENTS)


def defined(first: list[int], second: list[int]) -> float:
    """2 I(X; Y) / (H(X) + H(Y)), by counting pairs."""
    n = len(first)
    x, y, both = Counter(first), Counter(second), Counter(zip(first, second, strict=True))
    shared = sum(c / n * math.log(c * n / (x[a] * y[b])) for (a, b), c in both.items())
    entropies = -sum(c / n * math.log(c / n) for counts in (x, y) for c in counts.values())
    return 2 * shared / entropies if entropies else 0.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_information_is_its_definition(pairs: list[tuple[int, int]]) -> None:
    first, second = (list(one) for one in zip(*pairs, strict=True))
    assert information(np.array(first), np.array(second)) == pytest.approx(defined(first, second), abs=1e-12)


def test_information_of_what_tells_all_and_of_what_tells_nothing() -> None:
    labels = np.array([0, 1, 2] * 5)
    assert information(labels, 2 - labels) == pytest.approx(1)
    assert information(labels.repeat(2), np.array([0, 1] * 15)) == pytest.approx(0, abs=1e-12)


def test_shuffling_keeps_runs_whole() -> None:
    """Each run is of one kind, and there are as many runs of each; a kind that each run tells is chance's too."""
    kinds = Kinds.of(["b", "a", "b", "c"], [2, 3, 1, 4])
    assert kinds.names == ("a", "b", "c") and kinds.number.tolist() == [1, 1, 0, 0, 0, 1, 2, 2, 2, 2]
    seen = set()
    for seed in range(30):
        runs = np.split(kinds.shuffled(seed), [2, 5, 6])
        assert all(len(set(run)) == 1 for run in runs)
        assert Counter(int(run[0]) for run in runs) == {0: 1, 1: 2, 2: 1}
        seen.add(tuple(int(run[0]) for run in runs))
    assert len(seen) > 5
    run_numbers = np.array([0, 1, 2, 3]).repeat([2, 3, 1, 4])
    assert chance(run_numbers, kinds) > 0.5


def test_loads_and_shares_are_counts(routes: Routes) -> None:
    chosen, words = routes.chosen[1][:, 0].tolist(), routes.kinds["word"]
    assert routes.layers == [1] and set(chosen) == {0, 1, 2, 3}
    assert routes.loads()[0] == pytest.approx([chosen.count(expert) / len(chosen) for expert in range(4)])
    labels = [word for one in DOCUMENTS for word in one.words]
    for kind, name in enumerate(words.names):
        of_kind = [expert for expert, label in zip(chosen, labels, strict=True) if label == name]
        want = [of_kind.count(expert) / len(of_kind) for expert in range(4)]
        assert routes.shares(words)[0, :, kind] == pytest.approx(want)


def test_a_removed_expert_is_one_of_zeros(routes: Routes) -> None:
    """What removals cost each kind, beside losses of a model in which the expert's last matrix is nothing."""
    experts = "model.layers.1.feed_forward.experts.down_proj"
    for expert in range(4):
        model = tiny.decoder(SHAPE)
        matrix = model.layers[1].experts_out.weight().clone()
        matrix[expert] = 0
        model.set_tensor(experts, matrix)
        more = Routes(model, DOCUMENTS).plain - routes.plain
        for kinds in routes.kinds.values():
            for kind in range(len(kinds.names)):
                want = np.nanmean(more[kinds.number == kind])
                assert routes.costs(kinds)[0, expert, kind] == pytest.approx(want, abs=1e-9)
    assert np.isnan(routes.plain).sum() == len(DOCUMENTS)


def test_rare_kinds_are_left_out() -> None:
    kinds = Kinds.of(["often"] * 199 + ["rare"], [1] * 200)
    assert [kinds.names[kind] for kind in kinds.common()] == ["often"]
