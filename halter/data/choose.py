"""Choosing rows by the seed: limits, and the held-out share."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from hashlib import blake2b
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
    documents, of_row, keys = _document_keys(examples)
    _, first = np.unique(keys, return_index=True)
    different = keys[np.sort(first)]  # in the order in which they come
    count = min(max(1, round(share * len(different))), len(different))
    chosen = different[permutation(len(different), seed, 0, HELD_OUT)[:count]]
    held = np.isin(keys, chosen)
    kept = np.zeros(len(documents), bool)
    kept[first] = True
    return examples.select(~held[of_row]), examples.select((held & kept)[of_row])


def without(train: Examples, validation: Examples) -> Examples:
    """The rows to train on, less every document of which some piece is in validation."""
    if not len(validation):
        return train
    found = np.isin(train.digests(), validation.digests())
    return train.select(~np.isin(train.documents, train.documents[found]))


def _document_keys(examples: Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the documents in the order in which they come, of each row the place of its document there, of each document 16
    bytes that are equal where all its rows are)."""
    _, first, inverse, counts = np.unique(
        examples.documents, return_index=True, return_inverse=True, return_counts=True
    )
    digests = examples.digests()
    keys = digests[first]
    if (counts > 1).any():
        rows = np.argsort(inverse, kind="stable")
        ends = np.cumsum(counts)
        for document in np.flatnonzero(counts > 1).tolist():
            every = digests[rows[ends[document] - counts[document] : ends[document]]]
            keys[document] = blake2b(every.tobytes(), digest_size=16).digest()
    order = np.argsort(first)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return examples.documents[first[order]], place[inverse], keys[order]
