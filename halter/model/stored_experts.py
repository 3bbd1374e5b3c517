"""Routed experts in 4 and in 8 bits, quantised one expert at a time. The codes are the truth; nothing dequantised is
kept.

An expert's matrix W [in, out] is held as the Linear that computes the same would be: the codes are those of NF4Linear
or Int8Linear of W's transpose [out, in]. So a block of 4 bits lies within the numbers that one output sums over, and
each output has its scale in 8 bits, as with every other layer of the model; and the products are the Linears'. It is
what a checkpoint holds that stores each expert as a Linear of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from halter.model.experts import ExpertStack
from halter.model.layout import Place
from halter.numerics import int8, int8_product, nf4, nf4_product
from halter.numerics.int8 import Int8
from halter.numerics.nf4 import BLOCK, BLOCK2, NF4, Nested
from halter.numerics.nf4_kernels import dequantise

CodeParts = list[tuple[str, tuple[int, ...], torch.dtype]]
"""(name, shape, dtype) of each tensor that is held of an expert."""


class ExpertCode(Protocol):
    """How one matrix [out, in] is held in few bits."""

    def sizes(self, out: int, width: int) -> CodeParts:
        """What is held of a matrix of that shape."""
        ...

    def quantised(self, weight: Tensor) -> list[Tensor]:
        """What is held of ``weight`` [out, in], in the order of ``sizes``."""
        ...

    def data(self, parts: Sequence[Tensor], out: int, width: int) -> Any:
        """The stored form, of what is held."""
        ...

    def product(self, rows: Tensor, data: Any) -> Tensor:
        """rows [n, in] times the transpose of the stored form."""
        ...

    def dense(self, data: Any, dtype: torch.dtype) -> Tensor:
        """The stored form as a matrix [out, in]."""
        ...


class NF4Code:
    """NF4 (numerics.nf4), with scales of its own, and their mean where these are in 8 bits (``double``)."""

    def __init__(self, double: bool) -> None:
        self._double = double

    def sizes(self, out: int, width: int) -> CodeParts:
        blocks = -(-out * width // BLOCK)
        codes = ("codes", (-(-out * width // 2), 1), torch.uint8)
        if not self._double:
            return [codes, ("absmax", (blocks,), torch.float32)]
        scales = ("absmax_codes", (blocks,), torch.uint8), ("absmax", (-(-blocks // BLOCK2),), torch.float32)
        return [codes, *scales, ("offset", (), torch.float32)]

    def quantised(self, weight: Tensor) -> list[Tensor]:
        made = nf4.quantise(weight, self._double)
        scales = made.absmax
        return [made.codes, *([scales.codes, scales.absmax, scales.offset] if isinstance(scales, Nested) else [scales])]

    def data(self, parts: Sequence[Tensor], out: int, width: int) -> NF4:
        codes, *scales = parts
        return NF4(codes, Nested(*scales) if self._double else scales[0], (out, width))

    def product(self, rows: Tensor, data: NF4) -> Tensor:
        return nf4_product.product(rows, data)

    def dense(self, data: NF4, dtype: torch.dtype) -> Tensor:
        return dequantise(data, dtype)


class Int8Code:
    """8 bits, with a scale for each output (numerics.int8)."""

    def sizes(self, out: int, width: int) -> CodeParts:
        return [("codes", (out, width), torch.int8), ("absmax", (out,), torch.float32)]

    def quantised(self, weight: Tensor) -> list[Tensor]:
        made = int8.quantise(weight)
        return [made.codes, made.absmax]

    def data(self, parts: Sequence[Tensor], out: int, width: int) -> Int8:
        codes, absmax = parts
        return Int8(codes, absmax)

    def product(self, rows: Tensor, data: Int8) -> Tensor:
        return int8_product.product(rows, data)

    def dense(self, data: Int8, dtype: torch.dtype) -> Tensor:
        return int8.dequantise(data, dtype)


KINDS = ("nf4", "int8")
"""Ways to hold experts in few bits. No checkpoint is read whose experts are stored so: they are put in few bits while
they are read."""


class QuantisedExperts(ExpertStack):
    """Experts in few bits, made empty and filled by ``put``; computed in x's dtype.

    ``kind`` is one of ``KINDS``, ``double_quant`` is NF4's."""

    def __init__(
        self,
        kind: str,
        place: Place,
        dtype: torch.dtype,
        device: torch.device | str = "meta",
        double_quant: bool = True,
    ) -> None:
        super().__init__(place.shape)
        experts, width, out = self.shape
        self.storage, self._dtype = kind, dtype
        self._code: ExpertCode = NF4Code(double_quant) if kind == "nf4" else Int8Code()
        self._sizes = self._code.sizes(out, width)
        for name, size, held_in in self._sizes:
            held = torch.zeros(experts, *size, dtype=held_in, device=device)
            self.register_buffer(name, held, persistent=False)

    def put(self, expert: int, matrix: Tensor) -> None:
        """Hold ``matrix`` [in, out] as that expert's. It is quantised where it lies. Refusal ``weight-not-finite``;
        ValueError for another shape."""
        if tuple(matrix.shape) != self.shape[1:]:
            raise ValueError(f"an expert is {list(self.shape[1:])}, not {list(matrix.shape)}")
        for (name, size, _), part in zip(self._sizes, self._code.quantised(matrix.t().contiguous()), strict=True):
            getattr(self, name)[expert] = part.reshape(size)

    def data(self, expert: int) -> NF4 | Int8:
        """The stored form of one expert's transpose [out, in]."""
        _, width, out = self.shape
        parts = [getattr(self, name)[expert] for name, _, _ in self._sizes]
        stored: NF4 | Int8 = self._code.data(parts, out, width)
        return stored

    def product(self, rows: Tensor, expert: int) -> Tensor:
        return self._code.product(rows, self.data(expert))

    def of(self, expert: int) -> Tensor:
        return self._code.dense(self.data(expert), self._dtype).t()

    def weight(self) -> Tensor:
        whole = torch.empty(self.shape, dtype=self._dtype, device=next(self.buffers()).device)
        for expert in range(self.shape[0]):
            whole[expert] = self.of(expert)
        return whole

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype
