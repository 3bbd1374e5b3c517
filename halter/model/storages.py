"""Every way to hold a linear layer's weight, or experts', in fewer bits than is computed in, in one table."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from halter.model.decoder import Decoder
from halter.model.experts import EXPERTS, ExpertStack
from halter.model.int8_linear import Int8Linear
from halter.model.layout import Place
from halter.model.nf4_linear import NF4Linear
from halter.model.stored_experts import QuantisedExperts

Quantize = Literal["nf4", "int8"]
"""Those that may be asked for, as options have them."""
StorageName = Literal["nf4", "fp4", "int8"]
"""Those that a checkpoint may be stored in."""
STORAGES: dict[str, type[NF4Linear] | type[Int8Linear]] = {"nf4": NF4Linear, "int8": Int8Linear}
STORED: dict[str, type[NF4Linear] | type[Int8Linear]] = {**STORAGES, "fp4": NF4Linear}
BITS = {"nf4": "4 bits", "fp4": "4 bits", "int8": "8 bits"}
"""{name: in words}."""


def held_in(model: Decoder) -> StorageName | None:
    """How the linear layers of a decoder are held; None where all are dense."""
    found = {getattr(module, "storage", None) for _, module in model.places()}
    return next((kind for kind in get_args(StorageName) if kind in found), None)


def experts_too(model: Decoder) -> bool:
    """Whether routed experts are held in few bits as well; True of a decoder without any."""
    return all(module.storage != "dense" for _, module in model.places() if isinstance(module, ExpertStack))


def dry(kind: str, place: Place, bias: Tensor | None, dtype: torch.dtype) -> NF4Linear | Int8Linear | QuantisedExperts:
    """What holds a place's weight as ``kind`` names, without memory (on meta)."""
    if place.kind == EXPERTS:
        return QuantisedExperts(kind, place, dtype)
    out, width = place.shape
    return STORED[kind].dry((out, width), bias, dtype)


def quantised(
    kind: str, weight: Tensor, bias: Tensor | None = None, double_quant: bool = True
) -> NF4Linear | Int8Linear:
    """A linear layer with ``weight`` [out, in] held as ``kind`` names, computed in the weight's dtype; ``double_quant``
    is NF4's. Refusal ``weight-not-finite``."""
    if kind == "nf4":
        return NF4Linear.quantize(weight, bias, double_quant)
    return Int8Linear.quantize(weight, bias)
