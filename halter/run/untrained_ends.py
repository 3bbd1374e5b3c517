"""Whether the tokens that end an answer can be learned: rows of the head that were never trained are alike, and what
is alike gets the same logit whatever an adapter makes of the hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

import numpy as np
import torch

from halter.errors import HalterError
from halter.files.checkpoint import open_checkpoint
from halter.files.vocabulary_rows import rows_of
from halter.planning.dry import dry_adapter
from halter.run.prepare import Job

SAMPLED, ROWS = 512, 64
"""Rows of the head that an end's row is compared with, and rows of data that are looked at for learned ends."""
ALIKE, SEVERAL = 0.01, 4
"""Rows are alike that differ by less than this share of the median's length; one row alone that is alike may be a copy,
such as a pad token's. Trained rows of the models here differ by 0.24 of it and more, untrained ones by 0.0003."""


def of_untrained_ends(job: Job) -> Iterator[str]:
    """A warning where an end that is learned cannot be told from other tokens, and nothing trains its row."""
    ends = {id for id in job.tokenizer.stop_ids if id < job.config.vocab_size}
    learned: set[int] = set()
    for row in islice(iter(job.data.train), ROWS):
        learned |= ends & {int(id) for id in row.tokens[row.supervised]}
    alike = _alike(job, sorted(learned)) if learned else {}
    lost = {id: count for id, count in alike.items() if not _trained(job, id)}
    if lost:
        named = ", ".join(f"{job.tokenizer.token(id)} (as {count} of {SAMPLED} others)" for id, count in lost.items())
        names = ",".join(choice.name for choice in job.recipe.methods)
        way = f"--method {names},token_rows trains its row as well"
        if _rows_method(job):
            way = f"add {sorted(lost)} to the tokens whose rows are trained"
        yield (
            f"this base was never trained on the token that ends an answer, {named}: the adapter cannot learn to end, "
            f"and answers run on; {way}"
        )


def _alike(job: Job, ids: list[int]) -> dict[int, int]:
    """{id: how many of the sampled rows are like its row in the head} of those that several are like."""
    found: dict[int, int] = {}
    with suppress(HalterError, KeyError, OSError):  # no weights here, or what is told elsewhere
        checkpoint = open_checkpoint(job.folder)
        try:
            table, head = (place.weight_name for place in job.config.layout.vocabulary)
            name = head if head in checkpoint.names() else table
            size = int(checkpoint.names()[name].shape[0])
            sample = np.unique(np.linspace(0, size - 1, min(size, SAMPLED)).astype(int)).tolist()
            own, others = rows_of(checkpoint, name, ids), rows_of(checkpoint, name, sample)
        finally:
            checkpoint.close()
        near = ALIKE * float(others.norm(dim=1).median())
        which = torch.tensor(sample)
        for id, row in zip(ids, own):
            count = int((((others - row).norm(dim=1) <= near) & (which != id)).sum())
            if count >= SEVERAL:
                found[id] = count
    return found


def _trained(job: Job, id: int) -> bool:
    """Whether the job's adapter trains the row of a token, or all rows, of the head."""
    places = ("embed_tokens", "lm_head") if job.config.tied else ("lm_head",)
    slots = dry_adapter(job.config, [choice.options for choice in job.recipe.methods]).slots
    rows = [slot.piece.token_ids for slot in slots if slot.layer is None and slot.place in places]
    return any(one is None or id in one for one in rows)


def _rows_method(job: Job) -> bool:
    """Whether rows of tokens are trained already, though others."""
    slots = dry_adapter(job.config, [choice.options for choice in job.recipe.methods]).slots
    return any(slot.layer is None and slot.piece.token_ids is not None for slot in slots)
