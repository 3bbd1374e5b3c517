"""Prompts that begin alike: which rows can take a beginning's keys and values from another row, and the taking."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from halter.generation.rows import ActiveRow
from halter.model.cache import Cache

SHORTEST = 16  # tokens: below it the copies cost about what they save

Tokens = Sequence[int]


@dataclass(frozen=True)
class Beginning:
    """The first ``length`` tokens of prompt ``source``, which ``rows`` begin with as well; a row keeps at least one
    token of its own, after which its first answer token is predicted."""

    source: int
    rows: tuple[int, ...]
    length: int


def common(a: Tokens, b: Tokens) -> int:
    """How many tokens two prompts begin with alike."""
    return next((at for at, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def shared(prompts: Sequence[Tokens], owners: Sequence[Hashable]) -> list[Beginning]:
    """Beginnings of at least SHORTEST tokens that several prompts of one owner have, one for each group that agrees in
    its first SHORTEST tokens. The source is the group's first."""
    groups: dict[tuple[Hashable, tuple[int, ...]], list[int]] = {}
    for row, (prompt, owner) in enumerate(zip(prompts, owners, strict=True)):
        if len(prompt) > SHORTEST:
            groups.setdefault((owner, tuple(prompt[:SHORTEST])), []).append(row)
    found = []
    for source, *rest in groups.values():
        if rest:
            own = min(len(prompts[row]) for row in (source, *rest)) - 1
            length = min(own, *(common(prompts[source], prompts[row]) for row in rest))
            found.append(Beginning(source, tuple(rest), length))
    return found


def wait_for_shared(rows: Sequence[ActiveRow], new: Sequence[ActiveRow]) -> None:
    """Let rows that are ``new`` among ``rows`` wait for the beginning that they have in common with an earlier one of
    their party, so that it is computed once for all."""
    for alike in shared([row.compared for row in rows], [(row.owner, row.party) for row in rows]):
        for row in (rows[at] for at in alike.rows):
            if row in new and row.fed < alike.length:
                row.source, row.begins = rows[alike.source], alike.length


def hand_on(rows: Sequence[ActiveRow], cache: Cache) -> None:
    """Give beginnings that the cache has by now to the rows that wait for them."""
    taking: dict[tuple[int, int], list[ActiveRow]] = {}
    for row in rows:
        if row.source is not None and row.source.fed >= row.begins:
            taking.setdefault((row.source.slot, row.begins), []).append(row)
    for (source, length), takers in taking.items():
        cache.copy(source, [row.slot for row in takers], length)
        for row in takers:
            row.begun(length)
