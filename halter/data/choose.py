"""Choosing rows by the seed: limits, and the held-out share."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from halter.data.examples import Examples
from halter.data.order import HELD_OUT, LIMIT, bits, permutation

T = TypeVar("T")
_BLOCK = 4096


def sample(items: Iterable[T], most: int, seed: int, number: int) -> tuple[list[T], int]:
    """(at most ``most`` of the items in their old order, how many there were).

    Each item draws a word and those with the smallest stay, so that one pass suffices and only they are held.
    """
    heap: list[tuple[int, int, T]] = []
    count = 0
    for count, (word, item) in enumerate(zip(_words(seed, number), items), 1):
        entry = (-word, -count, item)
        if len(heap) < most:
            heapq.heappush(heap, entry)
        elif entry[:2] > heap[0][:2]:
            heapq.heapreplace(heap, entry)
    return [item for _, _, item in sorted(heap, key=lambda entry: -entry[1])], count


def _words(seed: int, number: int) -> Iterator[int]:
    source = bits(seed, LIMIT, number)
    while True:
        yield from source.random_raw(_BLOCK).tolist()


def hold_out(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """(train, validation): validation has ``share`` of the different documents, at least one. What was split stays
    together, and rows that are equal to a held-out one are in neither."""
    keys = _document_keys(examples)
    different = list(dict.fromkeys(keys.values()))
    count = min(max(1, round(share * len(different))), len(different))
    chosen = {different[place] for place in permutation(len(different), seed, 0, HELD_OUT)[:count]}
    first: dict[bytes, int] = {}
    for document, key in keys.items():
        first.setdefault(key, document)
    held = np.array([keys[d] in chosen for d in examples.documents.tolist()], bool)
    kept = np.array([first[keys[d]] == d for d in examples.documents.tolist()], bool)
    return examples.select(~held), examples.select(held & kept)


def without(train: Examples, validation: Examples) -> Examples:
    """The rows to train on, less every document of which some piece is in validation."""
    held = set(validation.digests())
    if not held:
        return train
    found = np.array([digest in held for digest in train.digests()], bool)
    return train.select(~np.isin(train.documents, train.documents[found]))


def _document_keys(examples: Examples) -> dict[int, bytes]:
    """{document: the digests of its rows, one after the other}."""
    keys: dict[int, bytes] = {}
    for document, digest in zip(examples.documents.tolist(), examples.digests()):
        keys[document] = keys.get(document, b"") + digest
    return keys
