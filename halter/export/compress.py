"""An adapter's file made smaller: 8, 4 or 1 bits a number, or the important numbers only, with the loss measured.

The folder stays an adapter folder that Halter opens like any other (files.few_bits says how numbers are spelt); numbers
are float32 again once it is loaded, so that nothing is faster or leaner in memory, only on disk and on the wire.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from halter.adapters.adapter import Adapter
from halter.adapters.loading import restore
from halter.adapters.saving import save_adapter, state_of
from halter.errors import Refusal
from halter.export.low_rank_parts import pairs_of
from halter.files.few_bits import CODES, pack, unpack

SMALL = 256
"""Tensors of fewer numbers (gates, a few biases) stay as they are: they weigh nothing, and much hangs on each."""
Partners = dict[str, tuple[str, bool]]
"""{a factor's name: (the other's, whether this is the inner one, A)} of every low-rank pair."""


@dataclass(frozen=True)
class CompressOptions:
    """How an adapter's file is made smaller."""

    bits: Literal[32, 8, 4, 1] = 8
    """Bits a number: 8 (one scale for 64 numbers), 4 (NF4), 1 (signs, and one magnitude for 64), or 32 (as it is)."""
    keep: float = 1.0
    """Share of the numbers that is kept, the most important ones of each place; the others become zero."""
    importance: Literal["update", "magnitude"] = "update"
    """What counts as important: in a low-rank pair the change of the update that leaving a number out makes (its
    magnitude times the norm of the other factor's row or column), elsewhere and with "magnitude" the magnitude."""


@dataclass(frozen=True)
class CompressReport:
    """What it saved and what it cost. Errors are norms of the difference over norms of the original.

    ``error``: over all numbers together; ``tensors``: of each; ``updates``: of each place's change of weights, where
    the adapter is made of low-rank sums; ``update_error``: of all those together, None where there are none.
    Bytes are of the numbers themselves (4 each before). ``numbers`` stored of ``of``.
    """

    bits: int
    bytes_before: int
    bytes_after: int
    numbers: int
    of: int
    error: float
    update_error: float | None
    tensors: dict[str, float]
    updates: dict[str, float]

    def __str__(self) -> str:
        kept = "" if self.numbers == self.of else f", {self.numbers:,} of {self.of:,} numbers"
        smaller = f"{self.bytes_before:,} -> {self.bytes_after:,} bytes ({self.bytes_before / self.bytes_after:.1f} x)"
        update = "" if self.update_error is None else f", of the change of weights {self.update_error:.3g}"
        held = "1 bit" if self.bits == 1 else f"{self.bits} bits"
        return f"{held}{kept}: {smaller}, relative error of the numbers {self.error:.3g}{update}"


def compress(
    adapter: Adapter, folder: str | Path, options: CompressOptions | None = None
) -> tuple[Adapter, CompressReport]:
    """Write the compressed adapter into a new folder; returns it as it will be loaded, and what it lost.

    Refusals: ``compress-options``; ``already-exists``.
    """
    options = options or CompressOptions()
    bad = [f"bits {options.bits}"] if options.bits not in CODES else []
    bad += [] if 0 < options.keep <= 1 else [f"keep {options.keep}"]
    if bad or (options.bits == 32 and options.keep == 1):
        what = "a compressed file has 8, 4 or 1 bits a number, or keeps a share of them below 1"
        raise Refusal("compress-options", what, found=bad, fix="--bits 8, or --keep 0.5")
    adapter = adapter.plain()  # a form that only training needs is not what is saved
    own = {name: tensor.float() for name, tensor in state_of(adapter).items()}
    keep = kept_numbers(own, options, partners_in(adapter)) if options.keep < 1 else {}
    stored: dict[str, Tensor] = {}
    for name, tensor in own.items():
        stored |= {name: tensor} if tensor.numel() < SMALL else pack(name, tensor, options.bits, keep.get(name))
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    got, wrong = unpack(stored, shapes)
    assert not wrong, wrong
    count = sum(tensor.numel() for tensor in own.values())
    smaller = deepcopy(adapter)
    restore(smaller, got, str(folder))
    smaller.facts = {**adapter.facts, "compression": {**asdict(options), "numbers": count}}
    save_adapter(smaller, folder, packed=stored)
    numbers = sum(int(keep[n].sum()) if n in keep else t.numel() for n, t in own.items())
    errors = {name: (float((got[name] - t).norm()), float(t.norm())) for name, t in own.items()}
    updates = _updates(adapter, smaller)
    report = CompressReport(
        options.bits,
        count * 4,
        sum(tensor.nbytes for tensor in stored.values()),
        numbers,
        count,
        _share(errors),
        _share(updates) if updates else None,
        {name: lost / whole if whole else 0.0 for name, (lost, whole) in errors.items()},
        {name: lost / whole if whole else 0.0 for name, (lost, whole) in updates.items()},
    )
    return smaller, report


def partners_in(adapter: Adapter) -> Partners:
    """The factors of the adapter's pairs, by their names in its file."""
    names = {id(slot.tensor(attribute)): name for name, slot, attribute in adapter.named_tensors()}
    found: Partners = {}
    for slot in adapter.slots:
        for pair in slot.piece.pairs():
            a, b = names[id(pair.a)], names[id(pair.b)]
            found |= {a: (b, True), b: (a, False)}
    return found


def kept_numbers(own: dict[str, Tensor], options: CompressOptions, partners: Partners) -> dict[str, Tensor]:
    """{name: bool, which numbers stay}; the two factors of a pair are weighed together, other tensors by themselves."""
    found: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if tensor.numel() < SMALL or name in found:
            continue
        partner, inner = partners.get(name, (None, False)) if options.importance == "update" else (None, False)
        weights = {name: tensor.abs()}
        if partner is not None and own[partner].numel() >= SMALL:
            weights |= {name: weights[name] * _norms(own[partner], inner)}
            weights |= {partner: own[partner].abs() * _norms(tensor, not inner)}
        flat = torch.cat([w.flatten() for w in weights.values()])
        index = flat.topk(max(1, int(options.keep * len(flat)))).indices
        chosen = torch.zeros(len(flat), dtype=torch.bool)
        chosen[index] = True
        for (n, w), part in zip(weights.items(), chosen.split([w.numel() for w in weights.values()]), strict=True):
            found[n] = part.view_as(w)
    return found


def _norms(partner: Tensor, inner: bool) -> Tensor:
    """The norm that each number of a factor is multiplied by in the product: B's columns for A's rows."""
    return partner.norm(dim=0)[:, None] if inner else partner.norm(dim=1)


def _updates(before: Adapter, after: Adapter) -> dict[str, tuple[float, float]]:
    """{path: (norm of the difference, norm) of the change of weights}, {} where the adapter is no low-rank sum."""
    try:
        old, new = pairs_of(before), pairs_of(after)
    except Refusal:
        return {}
    return {name: (pair.minus(new[name]).norm(), pair.norm()) for name, pair in old.items()}


def _share(parts: dict[str, tuple[float, float]]) -> float:
    whole = math.hypot(*(w for _, w in parts.values()))
    return math.hypot(*(lost for lost, _ in parts.values())) / whole if whole else 0.0
