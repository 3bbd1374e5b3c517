"""What a piece says of the low-rank pair that it is: warm starts, compression and combining ask for it, and not which
method made the piece."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """scale (B A + c), less scale B0 A0 where it started there, added to what a place computes; the piece's own
    tensors, not copies.

    a [r, in], b [out, r], c [out]. ``looked_up``: at the table of the tokens, whose weight [rows, columns] gets A^T B^T
    and where A is the factor that is zero at the start; elsewhere the weight gets B A and B is.
    """

    a: Tensor
    b: Tensor
    scale: float
    c: Tensor | None = None
    start: tuple[Tensor, Tensor] | None = None
    """A0 [r, in] and B0 [out, r]."""
    lengths: Tensor | None = None
    """Lengths to which the weight with the sum in it is brought afterwards (DoRA): together they are no sum."""
    looked_up: bool = False

    @property
    def rank(self) -> int:
        """Of the whole sum, the start's included."""
        return len(self.a) * (1 if self.start is None else 2)

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B as left [rows, r] and right [r, columns] of the weight as the base has it, without scale or start."""
        return (self.a.t(), self.b.t()) if self.looked_up else (self.b, self.a)

    def whole(self) -> tuple[Tensor, Tensor]:
        """A [rank, in] and B [out, rank] of the whole sum without its scale: [A; A0] and [B, -B0]."""
        if self.start is None:
            return self.a, self.b
        a0, b0 = self.start
        return torch.cat((self.a, a0)), torch.cat((self.b, -b0), 1)

    @torch.no_grad()
    def begin_as(self, earlier: Pair) -> None:
        """Be the same sum as an ``earlier`` pair of no higher rank, exactly up to one rounding: its directions first,
        those that are left as they are drawn and without effect. ``lengths`` are not touched."""
        (a, b), ratio = earlier.whole(), earlier.scale / self.scale
        (self.a if self.looked_up else self.b).zero_()
        self.a[: len(a)] = a * ratio if self.looked_up else a
        self.b[:, : len(a)] = b if self.looked_up else b * ratio
        if self.c is not None:
            self.c.zero_()
            if earlier.c is not None:
                self.c.copy_(earlier.c * ratio)
