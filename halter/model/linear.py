"""How the base stores a weight matrix: one interface over every storage. Nothing here is ever trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.model.layout import NORM, PARAMETER, TABLE, Place
from halter.numerics.products import FEW, lay_out, linear, pieces


class Linear(nn.Module):
    """y = x W^T + b with W [out_features, in_features] stored in some form; the base's weights are buffers.

    ``dtype`` is the dtype computed in. Subclasses give ``forward``, ``weight``, ``rows`` and ``nbytes``. ``decoding``
    counts those who are generating with it (model.decoding): a few rows then go by the way that is quick here.
    """

    storage: str
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.decoding = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight."""
        return self.out_features, self.in_features

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
        self._laid: list[Tensor] = []
        self._unlaid: list[Tensor] = []
        self._steps_to_laying = 0

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x [..., in] -> [..., out]; ``weight`` and ``bias`` stand in for the base's where given."""
        if weight is not None:
            return F.linear(x, weight, self.bias if bias is None else bias)
        if not self.decoding:
            return F.linear(x, self.matrix, self.bias)
        if self._unlaid and x.numel() <= FEW[-1] * x.shape[-1]:
            self._come_nearer_to_laying()
        return linear(x, self.matrix, self.bias, () if self._unlaid else self._laid)

    def lay_out_after(self, steps: int) -> int:
        """Make a copy in a quicker order (numerics.products) after that many products of few rows, a piece at each, and
        use it from then on; how many pieces. It is counted in ``nbytes``, and the weight stays what it is."""
        self._unlaid, self._steps_to_laying = pieces(self.matrix), steps
        return len(self._unlaid)

    def drop_laid(self) -> None:
        """Drop what ``lay_out_after`` made, and make no more."""
        self._laid, self._unlaid = [], []

    def _come_nearer_to_laying(self) -> None:
        self._steps_to_laying -= 1
        if self._steps_to_laying < 0:
            self._laid.append(lay_out(self._unlaid[0]))
            self._unlaid = self._unlaid[1:]

    @property
    def awaits_laying(self) -> bool:
        """Whether there is such a copy, or will be."""
        return bool(self._laid or self._unlaid)

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(piece.nbytes for piece in self._laid)

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    def weight(self) -> Tensor:
        return self.matrix

    def rows(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.matrix)


Maker = Callable[[Place, torch.dtype, torch.device | str], nn.Module]
"""What makes the module of a place, before there are any numbers in it."""


def fill(
    block: nn.Module,
    places: Iterable[Place],
    dtype: torch.dtype,
    device: torch.device | str,
    own: Mapping[str, Maker] | None = None,
) -> None:
    """A module of ``block`` for each of its places that holds a weight, under the place's name and in their order.
    ``own``: {kind of a place that ``empty`` does not know: what makes its module}."""
    makers = own or {}
    for place in places:
        if place.shape:
            block.add_module(place.name, makers.get(place.kind, empty)(place, dtype, device))


def empty(
    place: Place, dtype: torch.dtype, device: torch.device | str
) -> DenseLinear | Norm | BareParameter | Embedding:
    """What holds the weight of a Linear, a norm, a parameter or a table, before there are any numbers in it."""
    weight = torch.empty(place.shape, dtype=dtype, device=device)
    if place.kind == TABLE:
        return Embedding(weight)
    if place.kind == PARAMETER:
        return BareParameter(weight)
    bias = torch.empty(place.shape[0], dtype=dtype, device=device) if place.bias else None
    return Norm(weight, bias) if place.kind == NORM else DenseLinear(weight, bias)


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a base's module, None where it has none."""
    return module.bias if isinstance(module, Linear | Norm) else None


class Norm(nn.Module):
    """A norm's weight [dim], and a LayerNorm's bias; the normalising itself is in numerics.pointwise."""

    scale: Tensor
    bias: Tensor | None

    def __init__(self, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, normal: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """normal [..., dim] times the weight plus the bias; ``weight`` and ``bias`` stand in where given."""
        scale = self.scale if weight is None else weight
        added = self.bias if bias is None else bias
        return normal * scale if added is None else torch.addcmul(added, normal, scale)  # rounded once

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


class BareParameter(nn.Module):
    """A parameter that is no module's: one vector [dim], or several [rows, dim], for the states that it goes with."""

    matrix: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", weight, persistent=False)

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """The parameter once more for every ``rows`` of ``x`` [N, ...]: [N, dim]. So rows of a batch may each have a
        parameter of their own."""
        matrix = self.matrix if weight is None else weight
        matrix = matrix.reshape(-1, matrix.shape[-1])
        return matrix.repeat(len(x) // len(matrix), 1)

    def weight(self) -> Tensor:
        return self.matrix
