"""An adapter's change of weights as pairs of factors, whatever method made it: what combining works on.

A piece of one low-rank pair and nothing else gives its own factors. Another whose fold adds the same matrix to every
weight (PiSSA, OLoRA) is factorised at its numerical rank. DoRA, scales and whole weights are no sums and are refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halter.adapters.adapter import Adapter, Slot
from halter.contract.targets import ADAPTED
from halter.errors import Refusal
from halter.model.config import ModelConfig

EXACT_SIDE = 2048
"""Matrices with a shorter side up to this are decomposed exactly, larger ones by subspace iteration."""


@dataclass(frozen=True)
class Factors:
    """The update left @ right of one weight as the base has it [rows, columns]: left [rows, r], right [r, columns],
    float32, scale included in ``left``."""

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    def norm(self) -> float:
        """The update's Frobenius norm, by traces of [r, r] matrices in float64; the update itself is not made."""
        left, right = self.left.double(), self.right.double()
        return max(0.0, float(((left.T @ left) * (right @ right.T)).sum())) ** 0.5

    def minus(self, other: Factors) -> Factors:
        """This update less another of the same weight."""
        return Factors(torch.cat([self.left, -other.left], 1), torch.cat([self.right, other.right]))

    def matrix(self) -> Tensor:
        """The update itself, float32 [rows, columns]."""
        return self.left @ self.right


def pairs_of(adapter: Adapter) -> dict[str, Factors]:
    """{module path: Factors} of an adapter whose effect is low-rank sums. Refusal ``not-low-rank``, naming the rest."""
    wrong = [slot.path for slot in adapter.slots if not slot.piece.folds]
    found: dict[str, Factors] = {}
    for slot in adapter.slots if not wrong else ():
        if slot.path in found:
            wrong.append(f"{slot.path} (two methods at one place)")
            continue
        pair = _pair(adapter.shape, slot)
        if pair is None:
            wrong.append(slot.path)
        else:
            found[slot.path] = pair
    if wrong:
        folds = all(slot.piece.folds for slot in adapter.slots)
        merged = "merge others one after the other (halter merge), or stack" if folds else "and stack"
        raise Refusal(
            "not-low-rank",
            "this adapter's effect at these places is no low-rank matrix added to a weight; it cannot be combined",
            found=wrong,
            fix=f"combine LoRA adapters, {merged} others when asking",
        )
    return found


@torch.no_grad()
def _pair(shape: ModelConfig, slot: Slot) -> Factors | None:
    if slot.at.kind not in ADAPTED:
        return None  # a norm
    rows, columns = slot.at.shape
    update, bias = slot.piece.fold(torch.zeros(rows, columns), None)
    if bias is not None:
        return None
    update = update.detach().cpu()
    held = {id(tensor) for tensor in (*slot.piece.parameters(), *slot.piece.buffers())}
    for pair in slot.piece.pairs():
        if {id(pair.a), id(pair.b)} != held:
            continue
        left, right = (factor.detach().cpu().float().contiguous() for factor in pair.factors)
        # Eight random directions tell equal matrices from others; a product of 4096 x 11008 need not be made.
        probes = torch.randn(columns, 8, generator=torch.Generator().manual_seed(0))
        seen, wanted = left @ (right @ probes), update @ probes
        energy = float(seen.double().square().sum())
        scale = float((seen.double() * wanted.double()).sum()) / energy if energy else 0.0
        simple = round(scale * 4096) / 4096  # nearly every alpha / r is such a number; the fit is off by 1e-7
        scale = simple if abs(simple - scale) <= 1e-6 * abs(scale) else scale
        if _near(seen * scale, wanted):
            return Factors(left * scale, right)
    probe = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    if not _near(slot.piece.fold(probe, None)[0].detach().cpu() - probe, update, 1e-4 * float(probe.norm())):
        return None  # it depends on the weight: no sum
    left, values, right = decompose(update.double(), min(rows, columns))
    kept = max(1, int((values > 1e-6 * values.max()).sum()))
    return Factors((left[:, :kept] * values[:kept]).float(), right[:kept].float())


def _near(a: Tensor, b: Tensor, slack: float = 0.0) -> bool:
    return bool((a - b).norm() <= 1e-5 * b.norm() + slack)


def decompose(matrix: Tensor, rank: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` largest singular values of float64 ``matrix``: left [rows, r], values [r], right [r, columns].

    Exact up to EXACT_SIDE; beyond it eight rounds of subspace iteration (Halko, Martinsson and Tropp, arXiv
    0909.4061), whose error is measured by whoever uses it, never assumed.
    """
    short = min(matrix.shape)
    if short <= EXACT_SIDE or rank * 2 >= short:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank]
    width = min(short, rank + 16)
    drawn = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(seed), dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ drawn).Q
    for _ in range(8):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.t() @ basis).Q).Q
    small, values, right = torch.linalg.svd(basis.t() @ matrix, full_matrices=False)
    return (basis @ small)[:, :rank], values[:rank], right[:rank]


def decompose_pair(pair: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """All singular values of a pair's product, exactly and without making it (QR of both factors), in float64."""
    outer, inner = torch.linalg.qr(pair.left.double()), torch.linalg.qr(pair.right.double().t())
    left, values, right = torch.linalg.svd(outer.R @ inner.R.t(), full_matrices=False)
    return outer.Q @ left, values, right @ inner.Q.t()
