"""What every importer does: take tensors from a file one by one, and fill an adapter with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from halter.adapters.adapter import Adapter
from halter.adapters.loading import restore
from halter.contract.method import Method
from halter.errors import Refusal
from halter.model.config import ModelConfig

MOST_STAND_INS = 1 << 24
"""Numbers of a tensor that is not there, beyond which looking for further faults is given up."""


@dataclass(frozen=True)
class ImportOptions:
    """What another program's file does not say about itself."""

    adapter_len: int = 10
    """Prompts a layer, in the authors' files, which hold all layers' in one table."""
    gate_activation: Literal["tanh", "identity"] | None = None
    """What gates pass through; not given: tanh for the authors' per-head gates, as they trained them (their released
    inference code leaves it out), identity for their first version's single gates and for litgpt."""
    prompt_rows: Literal["own", "grouped"] | None = None
    """What litgpt's prompts went through: own (k_proj and v_proj, litgpt before 0.5.5) or grouped (0.5.5 and later);
    not given: what the file's names and gates say, else grouped."""
    alpha: float | None = None
    """LoRA's alpha, in litgpt's files; not given: from hyperparameters.yaml beside the file."""
    qkv: str | None = None
    """Which of litgpt's fused q, k and v have LoRA, such as q,v; not given: from hyperparameters.yaml."""


@dataclass(frozen=True)
class Imported:
    """An adapter from another program's file, what the file was, and what the conversion could not carry over."""

    adapter: Adapter
    format: str
    notes: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    """What was taken for granted where the file does not say, and what differs from Halter's defaults."""


class Taking:
    """Tensors of a file, taken one by one under their names; what does not fit is collected and told at the end."""

    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        self.left, self.where = dict(state), where
        self.wrong: list[str] = []

    def take(self, name: str, *shapes: tuple[int, ...]) -> Tensor:
        """The tensor in float32, in the first of ``shapes`` whichever of them it has; zeros where it does not fit."""
        tensor = self.left.pop(name, None)
        if tensor is None:
            self.wrong.append(f"{name} is missing")
        elif tuple(tensor.shape) not in shapes:
            self.wrong.append(f"{name} is {tuple(tensor.shape)}, not {' or '.join(map(str, shapes))}")
        elif not tensor.dtype.is_floating_point:
            self.wrong.append(f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}")
        else:
            return tensor.float().reshape(shapes[0])
        if prod(shapes[0]) > MOST_STAND_INS:  # sizes may be a hostile file's word
            self._refuse(self.wrong)
        return torch.zeros(shapes[0])

    def done(self) -> None:
        """Refusal ``import-mismatch`` with everything that is wrong."""
        self._refuse(self.wrong + [f"{name} is unexpected" for name in self.left])

    def _refuse(self, wrong: Sequence[str]) -> None:
        if wrong:
            raise Refusal(
                "import-mismatch",
                "this file does not hold one whole adapter for this model",
                where=self.where,
                found=wrong,
                fix="see that the model is the adapter's (--model), and that all of its files are given",
            )


def filled(shape: ModelConfig, method: Method, tensors: Mapping[str, Tensor], where: str) -> Adapter:
    """An adapter of this method with these tensors, by their names in the adapter's file. Refusal
    ``adapter-mismatch``."""
    adapter = Adapter(shape, [method])
    restore(adapter, tensors, where)
    return adapter
