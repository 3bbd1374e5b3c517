"""What a base's files hold against what its configuration asks for, and whether its numbers are numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from halter.errors import Refusal
from halter.files.checkpoint import ModelFolder
from halter.model.config import ModelConfig
from halter.pretrained.load import refuse_mismatch
from halter.run.ends import not_finite

MOST_LOOKED_AT = 1 << 30
"""Bytes of weights up to which every number is looked at before training (about a second); of a larger base the first
step that goes wrong looks."""


def shapes(checkpoint: ModelFolder, config: ModelConfig) -> Iterator[Refusal]:
    """Refusals ``checkpoint-mismatch`` with every missing, unexpected and misshapen tensor (headers alone are read) and
    ``base-not-finite``."""
    try:
        refuse_mismatch(checkpoint, config)
    except Refusal as refusal:
        yield refusal
        return
    if looks_at_values(checkpoint):
        bad = [name for name, tensor in checkpoint.stream() if not _finite(tensor)]
        if bad:
            yield not_finite(bad, str(checkpoint.folder))


def looks_at_values(checkpoint: ModelFolder) -> bool:
    """Whether ``shapes`` reads the numbers too."""
    return sum(spec.nbytes for spec in checkpoint.names().values()) <= MOST_LOOKED_AT


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
