"""A few rows of a model's vocabulary matrices, without reading the rest where the layout allows that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from halter.files.checkpoint import HFCheckpoint, ModelFolder
from halter.files.tensors import TensorFile


def rows_of(checkpoint: ModelFolder, name: str, ids: Sequence[int]) -> Tensor:
    """Rows ``ids`` of tensor ``name``, fp32 [len(ids), width]. KeyError where there is no such tensor."""
    if isinstance(checkpoint, HFCheckpoint):
        path, stored = checkpoint.stored_at(name)
        with TensorFile(path) as file:
            return file.rows(stored, ids).float()
    return checkpoint.read(name)[torch.tensor(ids, dtype=torch.long)].float()
