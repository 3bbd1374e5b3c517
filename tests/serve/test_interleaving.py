"""Whatever comes, goes, is loaded and replaced meanwhile: each answer is what it is alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest


@pytest.fixture(scope="module")
def versions(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from interleaving import Versions

    return Versions(world, tmp_path_factory.mktemp("versions"))


@pytest.mark.parametrize("seed, count", [(1, 150), pytest.param(2, 10_000, marks=pytest.mark.nightly)])
def test_each_answer_is_what_it_is_alone(
    world: Any, versions: Any, record_property: Any, seed: int, count: int
) -> None:
    """16 adapters of 8 methods, two versions of each, stacks, three tenants; prompts in pieces, what is kept of earlier
    ones, clients that leave. Log-probabilities within 1e-5, and the same greedy tokens but behind a place whose two
    best lie within that; how often there is one is told."""
    from interleaving import Alone, Interleaving, parted

    asked = Interleaving(world, versions, seed, count)
    asyncio.run(asked.run())
    alone = Alone(world, versions)
    places = Counter(filter(None, (parted(told, alone.of(told)) for told in asked.told)))
    record_property("seen", dict(asked.seen))
    record_property("parted", dict(places))
    print(dict(asked.seen), len(asked.told), "answers;", dict(places) or "none parted")
    digests = {digest for told in asked.told for digest, _ in told.adapters}
    assert len(digests) > 16 and len(asked.told) > 0.8 * count  # of both versions
    wanted = ("cancelled", "length", "read from what was kept", "replaced", "unloaded and loaded")
    assert all(asked.seen[what] for what in wanted), asked.seen
