"""How many tiles the rows of a run bring."""

from __future__ import annotations

from halter.model.pictures import Grid
from halter.run.prepare import Job

LOOKED_AT = 10_000
"""Rows that are looked at, at most, evenly spread over all."""


def most_pictures(job: Job) -> tuple[Grid, ...]:
    """Tiles high and wide of the pictures of the training row that has the most tiles; () where none has any."""
    rows, rules = job.data.train, job.rules
    if rules is None:
        return ()
    step = 1 + len(rows) // LOOKED_AT
    found = (tuple(one.grid for one in rows[number].pictures) for number in range(0, len(rows), step))
    return max(found, key=lambda grids: sum(rules.tiles(grid)[0] for grid in grids), default=())
