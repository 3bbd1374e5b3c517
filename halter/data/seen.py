"""The rows that a run has learned from as digests of their tokens, by which one that is scored later is known again."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import numpy as np

from halter.data.examples import Examples

BYTES = 8
"""Of each row's digest: one in 18 million that any of a million rows is taken for one of a million others."""
MOST = 2_000_000
"""Rows of which digests are kept: 21 MB of text."""


def packed(rows: Examples, before: str | None = None) -> str | None:
    """The digests of different rows, and of those packed ``before``, as text; None where they are too many."""
    known = np.union1d(_short(rows), _unpacked(before)) if before else np.unique(_short(rows))
    return b64encode(known.astype("<u8").tobytes()).decode() if len(known) <= MOST else None


def again(rows: Examples, known: Any) -> int:
    """How many of the rows are among those packed."""
    return int(np.isin(_short(rows), _unpacked(known)).sum()) if isinstance(known, str) and len(rows) else 0


def _short(rows: Examples) -> np.ndarray:
    whole = np.ascontiguousarray(rows.digests())
    return np.ascontiguousarray(whole.view(np.uint8).reshape(len(rows), whole.itemsize)[:, :BYTES]).view("<u8").ravel()


def _unpacked(text: str) -> np.ndarray:
    try:
        return np.frombuffer(b64decode(text, validate=True), "<u8")
    except ValueError:  # a file that somebody edited
        return np.empty(0, "<u8")
