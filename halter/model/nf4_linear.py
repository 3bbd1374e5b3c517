"""A Linear whose weight is stored in 4 bits. The codes are the truth; nothing dequantised is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from halter.errors import Refusal
from halter.model.linear import Linear
from halter.numerics import nf4, nf4_packed
from halter.numerics.nf4 import BLOCK, BLOCK2, NF4, CodeBook, Nested
from halter.numerics.nf4_kernels import dequantise
from halter.numerics.nf4_product import product


class NF4Linear(Linear):
    """y = x W^T + b, W in NF4, or in FP4 as a checkpoint had it (numerics.nf4); only dL/dx flows backward. Computed in
    x's dtype."""

    storage = "nf4"
    codes: Tensor
    absmax: Tensor
    absmax_codes: Tensor | None
    offset: Tensor | None

    def __init__(self, data: NF4, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(data.shape[1], data.shape[0])
        self._dtype, self.storage, self.table = dtype, data.table, data.table
        nested = data.absmax if isinstance(data.absmax, Nested) else None
        self.register_buffer("codes", data.codes, persistent=False)
        absmax = nested.absmax if isinstance(nested, Nested) else data.absmax
        self.register_buffer("absmax", absmax, persistent=False)  # type: ignore[arg-type]
        self.register_buffer("absmax_codes", None if nested is None else nested.codes, persistent=False)
        self.register_buffer("offset", None if nested is None else nested.offset, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self._packed: nf4_packed.Packed | None = None

    @classmethod
    def quantize(
        cls,
        weight: Tensor,
        bias: Tensor | None = None,
        double_quant: bool = True,
        compute_dtype: torch.dtype | None = None,
    ) -> NF4Linear:
        """Quantise weight [out, in]; computes in ``compute_dtype``, default the weight's."""
        return cls(nf4.quantise(weight, double_quant), bias, compute_dtype or weight.dtype)

    @classmethod
    def dry(cls, shape: tuple[int, int], bias: Tensor | None, dtype: torch.dtype) -> NF4Linear:
        """One of this shape without memory (on meta), double quantised."""
        count = prod(shape)
        blocks = -(-count // BLOCK)
        codes = torch.empty(-(-count // 2), 1, dtype=torch.uint8, device="meta")
        scales = torch.empty(blocks, dtype=torch.uint8, device="meta")
        outer = torch.empty(-(-blocks // BLOCK2), device="meta")
        return cls(NF4(codes, Nested(scales, outer, torch.empty((), device="meta")), shape), bias, dtype)

    @classmethod
    def from_bitsandbytes(
        cls,
        tensors: Mapping[str, Tensor],
        shape: tuple[int, ...],
        bias: Tensor | None = None,
        compute_dtype: torch.dtype = torch.float32,
    ) -> NF4Linear:
        """From the tensors that bitsandbytes saves for a weight: "weight", "weight.absmax", "weight.quant_map", with
        double quantisation "weight.nested_absmax" and "weight.nested_quant_map", and
        "weight.quant_state.bitsandbytes__nf4", or __fp4 (JSON in uint8).

        Refusal ``nf4-state`` where that is not this storage with blocks of 64 (and 256), or not of this shape.
        """
        table: CodeBook = "fp4" if _state_key("fp4") in tensors else "nf4"
        state = json.loads(bytes(tensors[_state_key(table)].cpu().numpy()))
        wrong = [
            f"{key} {state.get(key)!r}, not {wanted!r}"
            for key, wanted in (("quant_type", table), ("blocksize", BLOCK), ("shape", list(shape)))
            if state.get(key) != wanted
        ]
        packed = tensors["weight"].view(torch.uint8).view(-1, 1)  # the codes may be filed under any dtype
        absmax: Tensor | Nested = tensors["weight.absmax"]
        if "weight.nested_absmax" in tensors:
            if state.get("nested_blocksize") != BLOCK2:
                wrong.append(f"nested_blocksize {state.get('nested_blocksize')!r}, not {BLOCK2}")
            codes = tensors["weight.absmax"]
            offset = torch.tensor(float(state["nested_offset"]), device=codes.device)
            absmax = Nested(codes, tensors["weight.nested_absmax"], offset)
            if not torch.allclose(tensors["weight.nested_quant_map"].cpu(), nf4.dynamic_map(), atol=1e-7):
                wrong.append("another 8-bit map")
        if not torch.allclose(tensors["weight.quant_map"].cpu(), nf4.codebook(table=table), atol=1e-7):
            wrong.append("another 4-bit codebook")
        if wrong:
            raise Refusal(
                "nf4-state",
                "4-bit weights of a kind that is not read",
                found=wrong,
                fix="give the 16-bit checkpoint and quantize: nf4",
            )
        return cls(NF4(packed, absmax, tuple(shape), table), bias, compute_dtype)

    def to_bitsandbytes(self) -> dict[str, Tensor]:
        """What ``from_bitsandbytes`` reads, and bitsandbytes and transformers as well."""
        state: dict[str, Any] = {
            "quant_type": self.table,
            "blocksize": BLOCK,
            "dtype": str(self._dtype).removeprefix("torch."),
            "shape": [self.out_features, self.in_features],
        }
        absmax = self.absmax if self.absmax_codes is None else self.absmax_codes
        book = nf4.codebook(table=self.table).clone()
        tensors = {"weight": self.codes, "weight.absmax": absmax, "weight.quant_map": book}
        if self.absmax_codes is not None and self.offset is not None:
            state |= {"nested_blocksize": BLOCK2, "nested_dtype": "float32", "nested_offset": float(self.offset)}
            tensors |= {"weight.nested_absmax": self.absmax, "weight.nested_quant_map": nf4.dynamic_map().clone()}
        tensors[_state_key(self.table)] = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
        return tensors

    @property
    def data(self) -> NF4:
        """The stored form."""
        nested = self.absmax_codes is not None and self.offset is not None
        absmax = Nested(self.absmax_codes, self.absmax, self.offset) if nested else self.absmax  # type: ignore[arg-type]
        return NF4(self.codes, absmax, (self.out_features, self.in_features), self.table)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self._packed is None else self._packed.nbytes)

    @property
    def packed(self) -> bool:
        """Whether there is a copy for decoding."""
        return self._packed is not None

    def pack(self) -> bool:
        """Keep a copy for decoding a few rows in bf16 on a CPU (numerics.nf4_packed); False where there is none to be
        had. It is counted in ``nbytes``, and the codes stay what they are."""
        if self._packed is None and self._dtype == torch.bfloat16:
            self._packed = nf4_packed.pack(self.data)
        return self._packed is not None

    def unpack(self) -> None:
        """Drop what ``pack`` keeps."""
        self._packed = None

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x [..., in] -> [..., out]; ``weight`` and ``bias`` stand in for the base's where given."""
        bias = self.bias if bias is None else bias
        if weight is not None:
            return F.linear(x, weight, bias)
        if self._packed is not None and nf4_packed.takes(x):
            y = nf4_packed.product(x, self._packed)
            return y if bias is None else y + bias
        return product(x, self.data, bias)

    def weight(self) -> Tensor:
        return dequantise(self.data, self._dtype)

    def rows(self, index: Tensor) -> Tensor:
        return nf4.rows(self.data, index.reshape(-1), self._dtype).unflatten(0, index.shape)


def _state_key(table: CodeBook) -> str:
    return f"weight.quant_state.bitsandbytes__{table}"
