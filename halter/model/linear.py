"""How the base stores a weight matrix: one interface over every storage. Nothing here is ever trained."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.numerics.products import FEW, lay_out, linear


class Linear(nn.Module):
    """y = x W^T + b with W [out_features, in_features] stored in some form; the base's weights are buffers.

    ``dtype`` is the dtype computed in. Subclasses give ``forward``, ``weight``, ``rows`` and ``nbytes``. ``decoding``
    counts those who are generating with it (model.packing): a few rows then go by the way that is quick here.
    """

    storage: ClassVar[str]
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.decoding = 0

    @property
    def dtype(self) -> torch.dtype:
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes held, bias and caches included."""
        return sum(b.numel() * b.element_size() for b in self.buffers())

    def weight(self) -> Tensor:
        """The dense weight [out_features, in_features] in ``dtype``."""
        raise NotImplementedError

    def rows(self, index: Tensor) -> Tensor:
        """Rows ``index`` (int64, any shape) of the weight: [*index.shape, in_features]."""
        raise NotImplementedError


class DenseLinear(Linear):
    """The weight as it is, in the dtype computed in."""

    storage = "dense"
    matrix: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight.shape[1], weight.shape[0])
        self.register_buffer("matrix", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self._laid: Tensor | None = None
        self._steps_to_laying: int | None = None

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x [..., in] -> [..., out]; ``weight`` and ``bias`` stand in for the base's where given."""
        if weight is not None:
            return F.linear(x, weight, self.bias if bias is None else bias)
        if not self.decoding:
            return F.linear(x, self.matrix, self.bias)
        if self._steps_to_laying is not None and x.numel() <= FEW[-1] * x.shape[-1]:
            self._come_nearer_to_laying()
        return linear(x, self.matrix, self.bias, self._laid)

    def lay_out_after(self, steps: int | None) -> None:
        """Keep a copy in a quicker order (numerics.products) from that many products of few rows on; None: drop it, and
        keep none. It is counted in ``nbytes``, and the weight stays what it is."""
        self._steps_to_laying = steps
        if steps is None:
            self._laid = None

    def _come_nearer_to_laying(self) -> None:
        assert self._steps_to_laying is not None
        self._steps_to_laying -= 1
        if self._steps_to_laying < 0:
            self._laid, self._steps_to_laying = lay_out(self.matrix), None

    @property
    def awaits_laying(self) -> bool:
        """Whether there is such a copy, or will be."""
        return self._laid is not None or self._steps_to_laying is not None

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self._laid is None else self.matrix.nbytes)

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    def weight(self) -> Tensor:
        return self.matrix

    def rows(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.matrix)


class Norm(nn.Module):
    """An RMSNorm's weight [dim]; the normalising itself is numerics.pointwise.normalise."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, normal: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """normal [..., dim] times the weight, or times the one that stands in."""
        y = normal * (self.scale if weight is None else weight)
        return y if bias is None else y + bias

    def weight(self) -> Tensor:
        return self.scale


class Embedding(nn.Module):
    """The token table [vocab, dim]."""

    matrix: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", weight, persistent=False)

    def forward(self, tokens: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """tokens int64 [N] -> [N, dim]."""
        return F.embedding(tokens, self.matrix if weight is None else weight)

    def weight(self) -> Tensor:
        return self.matrix
