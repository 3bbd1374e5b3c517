"""A Linear whose weight is stored in 8 bits. The codes are the truth; nothing dequantised is kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from halter.errors import Refusal
from halter.model.linear import Linear
from halter.numerics import int8
from halter.numerics.int8 import Int8
from halter.numerics.int8_product import product, product_of_few


class Int8Linear(Linear):
    """y = x W^T + b, W in 8 bits with a scale for each row (numerics.int8); only dL/dx flows backward. Computed in x's
    dtype: x is never rounded to 8 bits, as LLM.int8() does it (numerics.int8_product)."""

    storage = "int8"
    codes: Tensor
    absmax: Tensor

    def __init__(self, data: Int8, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(data.codes.shape[1], data.codes.shape[0])
        self._dtype = dtype
        self.register_buffer("codes", data.codes, persistent=False)
        self.register_buffer("absmax", data.absmax, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    @classmethod
    def quantize(
        cls, weight: Tensor, bias: Tensor | None = None, compute_dtype: torch.dtype | None = None
    ) -> Int8Linear:
        """Quantise weight [out, in]; computes in ``compute_dtype``, default the weight's."""
        return cls(int8.quantise(weight), bias, compute_dtype or weight.dtype)

    @classmethod
    def dry(cls, shape: tuple[int, int], bias: Tensor | None, dtype: torch.dtype) -> Int8Linear:
        """One of this shape without memory (on meta)."""
        codes = torch.empty(shape, dtype=torch.int8, device="meta")
        return cls(Int8(codes, torch.empty(shape[0], device="meta")), bias, dtype)

    @classmethod
    def from_bitsandbytes(
        cls,
        tensors: Mapping[str, Tensor],
        shape: tuple[int, ...],
        bias: Tensor | None = None,
        compute_dtype: torch.dtype = torch.float32,
    ) -> Int8Linear:
        """From the tensors that bitsandbytes saves for a linear layer: "weight" int8 [out, in], "SCB" (absmax, float32
        [out]), and "weight_format" uint8 [], 0 for rows, which old files lack.

        Refusal ``int8-state`` where it is another format, dtype or shape.
        """
        codes, absmax = tensors["weight"], tensors["SCB"]
        wrong = [
            f"{name} {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(wanted)}"
            for name, tensor, dtype, wanted in (
                ("weight", codes, torch.int8, tuple(shape)),
                ("SCB", absmax, torch.float32, (shape[0],)),
            )
            if tensor.dtype != dtype or tensor.shape != wanted
        ]
        if (kind := int(tensors.get("weight_format", torch.zeros(())))) != 0:
            wrong.append(f"weight_format {kind}, not 0 (rows)")
        if not wrong and not bool((absmax.isfinite() & (absmax >= 0)).all()):
            wrong.append("SCB holds scales that are negative or not finite")
        if wrong:
            raise Refusal(
                "int8-state",
                "8-bit weights of a kind that is not read",
                found=wrong,
                fix="give the 16-bit checkpoint and quantize: int8",
            )
        return cls(Int8(codes, absmax), bias, compute_dtype)

    def to_bitsandbytes(self) -> dict[str, Tensor]:
        """What ``from_bitsandbytes`` reads, and bitsandbytes and transformers as well."""
        return {"weight": self.codes, "SCB": self.absmax, "weight_format": torch.zeros((), dtype=torch.uint8)}

    @property
    def data(self) -> Int8:
        """The stored form."""
        return Int8(self.codes, self.absmax)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x [..., in] -> [..., out]; ``weight`` and ``bias`` stand in for the base's where given."""
        bias = self.bias if bias is None else bias
        if weight is not None:
            return F.linear(x, weight, bias)
        return (product_of_few if self.decoding else product)(x, self.data, bias)

    def weight(self) -> Tensor:
        return int8.dequantise(self.data, self._dtype)

    def rows(self, index: Tensor) -> Tensor:
        return int8.rows(self.data, index.reshape(-1), self._dtype).unflatten(0, index.shape)
