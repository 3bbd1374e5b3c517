"""Routed experts in 4 and in 8 bits, quantised one expert at a time. The codes are the truth; nothing dequantised is
kept.

An expert's matrix W [in, out] is held as the Linear that computes the same would be: the codes are those of NF4Linear
or Int8Linear of W's transpose [out, in]. So a block of 4 bits lies within the numbers that one output sums over, and
each output has its scale in 8 bits, as with every other layer of the model; and the products are the Linears'. It is
what a checkpoint holds that stores each expert as a Linear of its own.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from halter.model.experts import ExpertStack
from halter.model.layout import Place
from halter.numerics import int8, int8_product, nf4, nf4_product
from halter.numerics.int8 import Int8
from halter.numerics.nf4 import BLOCK, BLOCK2, NF4, Nested
from halter.numerics.nf4_kernels import dequantise


class QuantisedExperts(ExpertStack):
    """Experts in few bits, made empty and filled by ``put``; computed in x's dtype. ``double_quant`` is NF4's."""

    def __init__(
        self, place: Place, dtype: torch.dtype, device: torch.device | str = "meta", double_quant: bool = True
    ) -> None:
        super().__init__(place.shape)
        self._dtype, self._double = dtype, double_quant
        for name, size, kind in self.sizes():
            held = torch.zeros(self.shape[0], *size, dtype=kind, device=device)
            self.register_buffer(name, held, persistent=False)

    def sizes(self) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        """(name, shape, dtype) of what is held of each expert."""
        raise NotImplementedError

    def quantised(self, weight: Tensor) -> list[Tensor]:
        """What is held of ``weight`` [out, in], in the order of ``sizes``."""
        raise NotImplementedError

    def put(self, expert: int, matrix: Tensor) -> None:
        """Hold ``matrix`` [in, out] as that expert's. It is quantised where it lies. Refusal ``weight-not-finite``;
        ValueError for another shape."""
        if tuple(matrix.shape) != self.shape[1:]:
            raise ValueError(f"an expert is {list(self.shape[1:])}, not {list(matrix.shape)}")
        for (name, size, _), part in zip(self.sizes(), self.quantised(matrix.t().contiguous()), strict=True):
            getattr(self, name)[expert] = part.reshape(size)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def weight(self) -> Tensor:
        held = next(self.buffers())
        whole = torch.empty(self.shape, dtype=self._dtype, device=held.device)
        for expert in range(self.shape[0]):
            whole[expert] = self.one(expert)
        return whole


class NF4Experts(QuantisedExperts):
    """Each expert in NF4 (numerics.nf4), with scales and their mean of its own."""

    storage = "nf4"
    codes: Tensor
    absmax: Tensor
    absmax_codes: Tensor
    offset: Tensor

    def sizes(self) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        count = prod(self.shape[1:])
        blocks = -(-count // BLOCK)
        codes = ("codes", (-(-count // 2), 1), torch.uint8)
        if not self._double:
            return [codes, ("absmax", (blocks,), torch.float32)]
        scales = ("absmax_codes", (blocks,), torch.uint8), ("absmax", (-(-blocks // BLOCK2),), torch.float32)
        return [codes, *scales, ("offset", (), torch.float32)]

    def quantised(self, weight: Tensor) -> list[Tensor]:
        made = nf4.quantise(weight, self._double)
        scales = made.absmax
        return [made.codes, *([scales.codes, scales.absmax, scales.offset] if isinstance(scales, Nested) else [scales])]

    def data(self, expert: int) -> NF4:
        """The stored form of one expert, [out, in]."""
        _, width, out = self.shape
        absmax: Tensor | Nested = self.absmax[expert]
        if self._double:
            absmax = Nested(self.absmax_codes[expert], self.absmax[expert], self.offset[expert])
        return NF4(self.codes[expert], absmax, (out, width))

    def product(self, rows: Tensor, expert: int) -> Tensor:
        return nf4_product.product(rows, self.data(expert))

    def one(self, expert: int) -> Tensor:
        return dequantise(self.data(expert), self._dtype).t()


class Int8Experts(QuantisedExperts):
    """Each expert in 8 bits, with a scale for each of its outputs (numerics.int8)."""

    storage = "int8"
    codes: Tensor
    absmax: Tensor

    def sizes(self) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        _, width, out = self.shape
        return [("codes", (out, width), torch.int8), ("absmax", (out,), torch.float32)]

    def quantised(self, weight: Tensor) -> list[Tensor]:
        made = int8.quantise(weight)
        return [made.codes, made.absmax]

    def data(self, expert: int) -> Int8:
        """The stored form of one expert, [out, in]."""
        return Int8(self.codes[expert], self.absmax[expert])

    def product(self, rows: Tensor, expert: int) -> Tensor:
        return int8_product.product(rows, self.data(expert))

    def one(self, expert: int) -> Tensor:
        return int8.dequantise(self.data(expert), self._dtype).t()
