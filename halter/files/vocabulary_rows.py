"""A few rows of a model's vocabulary matrices, without reading the rest where the layout allows that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from halter.files.checkpoint import ModelFolder
from halter.files.names import of_text
from halter.files.tensors import TensorFile


def rows_of(checkpoint: ModelFolder, name: str, ids: Sequence[int]) -> Tensor:
    """Rows ``ids`` of tensor ``name``, fp32 [len(ids), width]. KeyError where there is no such tensor."""
    if checkpoint.layout == "huggingface":
        for path in checkpoint.files:
            with TensorFile(path) as file:
                for stored in file.specs:
                    if of_text(stored, checkpoint.config.get("model_type")) == name:
                        return file.rows(stored, ids).float()
        raise KeyError(name)
    return checkpoint.read(name)[torch.tensor(ids, dtype=torch.long)].float()
