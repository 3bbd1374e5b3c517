"""The pictures that rows of a plan bring: tiles that have a size and no pixels, each in its place among the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from halter.adapters.sight import Sees, rules_of
from halter.contract.method import Method
from halter.contract.seeing import sizes_of
from halter.encoders.config import EncoderConfig, Preparing
from halter.encoders.encoder import PictureEncoder
from halter.encoders.sight import AdapterSight, EncodedPicture
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.pictures import Grid, Picture, PictureRules, canvases
from halter.model.segments import Segments


def with_pictures(
    shape: ModelConfig, adapter: Sees | None, segments: Segments, grids: Sequence[Grid]
) -> tuple[Segments, list[int]]:
    """(rows of text in which pictures of these grids stand from the start on, as many in every row; the tokens of the
    pass that are no picture's). Refusal ``plan-pictures`` where they are longer than the shortest row."""
    rules, lengths = rules_of(shape, adapter), segments.query_lengths.tolist()
    if not grids or rules is None:
        return segments, list(range(sum(lengths)))
    counts = [len(rules.ids(grid)) for grid in grids]
    if sum(counts) > min(lengths):
        raise Refusal(
            "plan-pictures",
            f"the pictures of a row have {sum(counts)} tokens, and the row {min(lengths)}",
            found=[f"{high} by {wide} tiles: {count}" for (high, wide), count in zip(grids, counts, strict=True)],
            expected="rows that hold their pictures whole",
            fix=f"data.max_length: {sum(counts) + 1} or more",
        )
    rows: list[tuple[Any, ...]] = []
    text: list[int] = []
    first = 0
    for row, length in enumerate(lengths):
        starts = [sum(counts[:number]) for number in range(len(grids))]
        rows.append(
            tuple(
                _picture(rules, f"{row}/{number}", grid, start, count)
                for number, (grid, start, count) in enumerate(zip(grids, starts, counts, strict=True))
            )
        )
        text += range(first + sum(counts), first + length)
        first += length
    return replace(segments, features=rows), text


def _picture(rules: PictureRules, name: str, grid: Grid, start: int, count: int) -> Any:
    """A picture of no other row, as the base gets it, or the adapter."""
    if isinstance(rules, AdapterSight):
        features = {look: torch.empty(look.size, device="meta") for look in rules.looks}
        return EncodedPicture(name, features, start, count)
    return Picture(name, torch.empty(rules.tiles(grid), device="meta"), grid, start, count)


def encoder_bytes(methods: Sequence[Method]) -> int:
    """What the encoders of methods that see take, in float32."""
    seeing: dict[str, Any] = {}
    for method in (one.equipped() for one in methods):
        seeing |= {look.encoder: method for look in method.looks}
    return sum(4 * _numbers(sizes_of(method)) for method in seeing.values())


@lru_cache(maxsize=8)
def _numbers(sizes: EncoderConfig) -> int:
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in PictureEncoder(sizes, Preparing()).parameters())


def largest(shape: ModelConfig, length: int) -> Grid | None:
    """The grid of the most tiles whose picture a row of ``length`` tokens holds, with room for a word; None: none."""
    rules = shape.pictures
    fitting = [grid for grid in canvases(rules.most) if len(rules.ids(grid)) < length] if rules is not None else []
    return max(fitting, key=lambda grid: (grid[0] * grid[1], -abs(grid[0] - grid[1])), default=None)
