"""Routed experts: which of them a token takes, and how each computes its own tokens and no others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from halter.model.layout import EXPERTS as EXPERTS
from halter.model.layout import Place
from halter.model.places import Routed


class ExpertStack(nn.Module):
    """The matrices of all experts at one place, ``shape`` [experts, in, out], stored in some form; the base's weights
    are buffers, and only dL/dx flows backward. Subclasses give ``product``, ``of``, ``weight`` and ``dtype``."""

    storage: str

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        experts, width, out = shape
        self.shape = (experts, width, out)

    def forward(
        self, given: Routed, weight: Sequence[Tensor | None] | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """The rows [N, in] through their experts' matrices, [N, out]. An expert without rows computes nothing. There is
        no bias. ``weight``: what stands in for the base's, expert by expert."""
        parts = []
        for expert, rows in enumerate(given.rows.split(given.counts)):
            if len(rows):
                own = None if weight is None else weight[expert]
                parts.append(self.product(rows, expert) if own is None else rows @ own)
        return torch.cat(parts) if parts else given.rows.new_zeros(0, self.shape[2])

    def product(self, rows: Tensor, expert: int) -> Tensor:
        """rows [n, in] times one expert's matrix: [n, out]."""
        raise NotImplementedError

    def of(self, expert: int) -> Tensor:
        """One expert's matrix [in, out], dense, in ``dtype``."""
        raise NotImplementedError

    def weight(self) -> Tensor:
        """All of them, dense: [experts, in, out]."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """The dtype computed in."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(buffer.nbytes for buffer in self.buffers())


class StackedExperts(ExpertStack):
    """The matrices as they are, in the dtype computed in."""

    storage = "dense"
    matrix: Tensor

    def __init__(self, place: Place, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(place.shape)
        self.register_buffer("matrix", torch.empty(place.shape, dtype=dtype, device=device), persistent=False)

    def product(self, rows: Tensor, expert: int) -> Tensor:
        return rows @ self.of(expert)

    def of(self, expert: int) -> Tensor:
        return self.matrix[expert]

    def weight(self) -> Tensor:
        return self.matrix

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype


def leading(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(values, numbers int64), [N, count] each, of the largest ``scores`` [N, experts] of every token, the largest
    first; of equal ones the lower number goes first, which torch's topk does not promise."""
    if count == 1:
        chosen = scores.argmax(-1, keepdim=True)  # of equal ones the first
    else:
        chosen = scores.detach().sort(stable=True, dim=-1, descending=True).indices[:, :count]
    return scores.gather(-1, chosen), chosen


def strengths(scores: Tensor) -> Tensor:
    """The sigmoid of ``scores``, made in float32 at least, in their dtype."""
    wide = scores if scores.dtype == torch.float64 else scores.float()
    return wide.sigmoid().to(scores.dtype)


class Routing:
    """N tokens with ``count`` experts each, as N * count rows in the order of the experts, and the way back."""

    def __init__(self, chosen: Tensor, experts: int) -> None:
        """``chosen`` int64 [N, count]: the experts of every token."""
        self._tokens, self._count = chosen.shape
        flat = chosen.flatten()
        self._order = flat.argsort(stable=True)
        # A tensor without memory has no numbers: a plan reckons with rows spread evenly, which is as much work.
        each, more = divmod(flat.numel(), experts)
        even = [each + (expert < more) for expert in range(experts)]
        self.counts: list[int] = even if flat.is_meta else flat.bincount(minlength=experts).tolist()
        """How many rows are each expert's."""
        self.tokens = self._order // self._count
        """Which token each row is of, int64 [N * count]."""

    def gather(self, x: Tensor, strength: Tensor) -> Routed:
        """x [N, dim] times ``strength`` [N, count], a row for each token and expert [N * count, dim]."""
        rows = x.index_select(0, self.tokens)
        return self.routed(rows * strength.flatten().index_select(0, self._order)[:, None])

    def routed(self, rows: Tensor) -> Routed:
        """What comes to the experts where these are the rows [N * count, width]."""
        return Routed(rows, self.counts, self.tokens)

    def scatter(self, y: Tensor) -> Tensor:
        """The sum over each token's experts [N, dim] of what they made of ``gather``'s rows [N * count, dim]."""
        back = y.index_select(0, self._order.argsort())
        return back if self._count == 1 else back.unflatten(0, (self._tokens, self._count)).sum(1)
