"""Mean, spread and bootstrap: how sure a difference between two methods is, given these test rows and these seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

LEVEL = 0.95


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1) over seeds; one value has no spread."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def draws(rows: Mapping[str, np.ndarray], weights: np.ndarray, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """{name: float64 [resamples]}: weighted means over test rows, drawn again and again (Efron's bootstrap, 1979).

    ``rows`` holds values [seeds, rows] of each name, ``weights`` [rows]. Every name gets the same draws of rows, which
    is what pairs them, and draws of its own seeds. Rows without weight count nothing, be their value nan.
    """
    size = len(weights)
    generator = np.random.default_rng([seed, 0])
    chosen = generator.integers(0, size, (resamples, size)) if size else np.zeros((resamples, 0), int)
    counts = np.stack([np.bincount(one, minlength=size) for one in chosen]) * weights  # [resamples, rows]
    total = counts.sum(1)
    found = {}
    for number, (name, values) in enumerate(rows.items()):
        known = np.where(weights > 0, values, 0.0)
        seeds = np.random.default_rng([seed, 1, number]).integers(0, len(known), (resamples, len(known)))
        each = counts @ known.T  # [resamples, seeds]
        found[name] = np.take_along_axis(each, seeds, 1).mean(1) / np.where(total > 0, total, np.nan)
    return found


def interval(sample: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of draws (percentile method)."""
    low, high = np.nanquantile(sample, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def ties(drawn: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """Pairs of names whose paired difference is inside the noise: its interval holds 0."""
    found = []
    for one, other in combinations(drawn, 2):
        low, high = interval(drawn[one] - drawn[other])
        if low <= 0 <= high:
            found.append((one, other))
    return found
