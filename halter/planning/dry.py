"""Base and adapter on meta: every tensor with its shape and dtype, and none of them with memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from halter.adapters.adapter import Adapter
from halter.contract.method import Method
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.layout import EXPERTS, TEXT
from halter.model.storages import dry
from halter.model.stored_experts import KINDS
from halter.model.streaming import bytes_apart

CONSTANTS = ("absmax", "absmax_codes", "offset")


@dataclass(frozen=True)
class BaseBytes:
    """What the frozen base takes on the device: ``weights`` (codes where quantised) and the ``constants`` of the
    quantisation. Where layers are streamed, the buffers that they visit count as weights, and the layers themselves as
    ``host`` bytes of CPU memory."""

    weights: int
    constants: int
    host: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.constants


def dry_base(shape: ModelConfig, dtype: torch.dtype, quantize: str | None, experts_too: bool = True) -> Decoder:
    """The decoder as it would be loaded; its linear layers held as ``quantize`` says, routed experts where
    ``experts_too`` (never in FP4, which is read and not made)."""
    base = Decoder(shape, dtype, "meta")
    if quantize:
        for place in shape.layout.in_few_bits():
            if place.kind == EXPERTS and not (experts_too and quantize in KINDS):
                continue
            bias = getattr(base.module(place.layer, place.name), "bias", None)
            base.set_linear(place, dry(quantize, place, bias, dtype))
    return base


def idle_bytes(base: Decoder) -> int:
    """What is held that one token of text does not pass: other experts than its own, and other stacks."""
    shape, idle = base.config, Fraction(0)
    for place, module in base.places():
        held = sum(tensor.nbytes for tensor in module.buffers())
        if place.layer is not None and shape.layout.blocks[place.layer].stack != TEXT:
            idle += held
        elif place.kind == EXPERTS:
            idle += held * (1 - shape.routed_share)
    return int(idle)


def base_bytes(base: Decoder, offload: bool = False) -> BaseBytes:
    """What a decoder's tensors take, tied ones once; ``offload``: with layers in CPU memory (model.streaming)."""
    if offload:
        device, host = bytes_apart([*base.layers], base.outer())
        return BaseBytes(device, 0, host)
    weights = constants = 0
    for name, tensor in _distinct(base.named_buffers()):
        if name.rpartition(".")[2] in CONSTANTS:
            constants += tensor.nbytes
        else:
            weights += tensor.nbytes
    return BaseBytes(weights, constants)


def _distinct(named: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, tensor in named:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def dry_adapter(shape: ModelConfig, methods: Sequence[Method]) -> Adapter:
    """The adapter on meta, which costs nothing. Refusals as Adapter's, and ``adapter-impossible``."""
    try:
        with torch.device("meta"):
            return Adapter(shape, methods)
    except RuntimeError as error:  # more numbers than can be counted
        what = f"the method asks for tensors that cannot be: {str(error).splitlines()[0][:200]}"
        raise Refusal("adapter-impossible", what, fix="a smaller rank") from None


def adapter_bytes(adapter: Adapter) -> int:
    """What its tensors take, trained or frozen."""
    return sum(tensor.nbytes for tensor in {id(t): t for t in (*adapter.parameters(), *adapter.buffers())}.values())


def counts_by_place(adapter: Adapter) -> dict[str, int]:
    """{place: trained numbers}, summed over the layers; a tensor that several places share counts at the first."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    for slot in adapter.slots:
        for parameter in slot.piece.parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                found[slot.place] = found.get(slot.place, 0) + parameter.numel()
    return found
