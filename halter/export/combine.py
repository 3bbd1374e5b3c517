"""Several low-rank adapters of one base made into one: sums with weights, TIES, DARE, pruning, and a lower rank.

    cat               sum_i w_i dW_i, exactly: the factors side by side, ranks add
    svd               the same sum at rank r: the nearest matrix of that rank
    ties              arXiv 2306.01708: the largest entries of each, a sign elected per entry, mean of those agreeing
    dare_linear       arXiv 2311.03099: random entries of each dW_i kept, divided by the share kept, summed
    dare_ties         DARE's entries, TIES' election
    magnitude_prune   the largest entries of each dW_i, summed

Everything works on the updates dW = s B A themselves, never on A and B apart: sqrt(w) A and sqrt(w) B, which PEFT's
modes without ``_svd`` sum, bring the cross products of different adapters along (a third of the norm on random ones).
A negative weight subtracts, a fraction scales, one adapter alone is scaled or brought to a lower rank.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from halter.adapters.adapter import Adapter
from halter.adapters.stacked import tell_loud
from halter.contract.registry import find
from halter.errors import Refusal
from halter.export.low_rank_parts import Factors, decompose, decompose_pair, pairs_of
from halter.model.config import ModelConfig
from halter.numerics.dropout import key

Mode = Literal["cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
KEPT_FACTS = ("base", "tokenizer", "template", "template_source", "template_date", "quantize")


@dataclass(frozen=True)
class CombineOptions:
    """How adapters become one."""

    mode: Mode = "cat"
    """cat (exact, ranks add), svd (a lower rank), ties, dare_linear, dare_ties or magnitude_prune."""
    rank: int | None = None
    """Rank of the result, at most; not given: the largest of the adapters' (cat: their sum)."""
    tolerance: float | None = None
    """svd: the lowest rank at each place whose relative error stays within this, instead of one rank for all."""
    density: float = 0.5
    """Share of entries that ties, DARE and magnitude_prune keep of each adapter."""
    sign: Literal["total", "frequency"] = "total"
    """Which sign an entry gets in TIES: of the sum of the adapters' updates, or of the greater number of them."""
    seed: int = 0
    """Which entries DARE keeps."""


@dataclass(frozen=True)
class CombineReport:
    """What the combination is: the rank at each place, and what the rank leaves out of the combined update.

    An error is the Frobenius norm of what is left out over the norm of the whole, 0 where nothing is; ``error`` is that
    of all places together.
    """

    mode: str
    ranks: dict[str, int]
    errors: dict[str, float]
    error: float

    def __str__(self) -> str:
        low, high = min(self.ranks.values()), max(self.ranks.values())
        rank = f"rank {low}" if low == high else f"ranks {low} to {high}"
        worst = max(self.errors, key=lambda name: self.errors[name])
        lost = f"relative error {self.error:.3g}, at most {self.errors[worst]:.3g} ({worst})" if self.error else "exact"
        return f"{self.mode} over {len(self.ranks)} places, {rank}: {lost}"


def combine(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    options: CombineOptions | None = None,
    names: Sequence[str] | None = None,
) -> tuple[Adapter, CombineReport]:
    """sum_i weights[i] * adapters[i] as one LoRA adapter of scale 1, on the CPU, and what became of it. ``names``: what
    the adapters are called in messages.

    An adapter that does not act at a place brings nothing there: in TIES it has no voice, as in PEFT. Refusals:
    ``not-low-rank`` (naming places), ``bases-differ``, ``combine-options``.
    """
    options = options or CombineOptions()
    _check(adapters, weights, options)
    tell_loud(weights)
    _refuse_other_bases(adapters, names or [f"adapter {i}" for i in range(1, len(adapters) + 1)])
    tables = [pairs_of(adapter) for adapter in adapters]
    shape = adapters[0].shape
    made: dict[str, Factors] = {}
    lost: dict[str, float] = {}
    whole: dict[str, float] = {}
    for name in _paths(shape, {name for table in tables for name in table}):
        parts = [(i, w, table[name]) for i, (w, table) in enumerate(zip(weights, tables, strict=True)) if name in table]
        made[name], lost[name], whole[name] = _combined(name, parts, options)
    errors = {name: lost[name] / whole[name] if whole[name] else 0.0 for name in made}
    total = math.hypot(*whole.values())
    ranks = {name: pair.rank for name, pair in made.items()}
    report = CombineReport(options.mode, ranks, errors, math.hypot(*lost.values()) / total if total else 0.0)
    adapter = lora_of(shape, made)
    adapter.facts = {k: adapters[0].facts[k] for k in KEPT_FACTS if _agreed(adapters, k)}
    adapter.facts["combined"] = {**asdict(options), "weights": list(weights), "error": report.error}
    return adapter, report


def reduce_rank(
    adapter: Adapter, rank: int | None = None, tolerance: float | None = None
) -> tuple[Adapter, CombineReport]:
    """The adapter at a lower rank, or at the lowest that stays within ``tolerance`` of each place's update."""
    return combine([adapter], [1.0], CombineOptions("svd", rank, tolerance))


def lora_of(shape: ModelConfig, pairs: dict[str, Factors]) -> Adapter:
    """A LoRA adapter of scale 1 with these updates; PEFT and servers read its folder."""
    most = Counter(pair.rank for pair in pairs.values()).most_common(1)[0][0]
    other: dict[str, Any] = {name: pair.rank for name, pair in pairs.items() if pair.rank != most}
    method = find("lora")(  # type: ignore[call-arg]
        r=most,
        alpha=float(most),
        target_modules=_targets(shape, pairs),
        rank_pattern=other,
        alpha_pattern={name: float(rank) for name, rank in other.items()},
    )
    adapter = Adapter(shape, [method])
    with torch.no_grad():
        for slot in adapter.slots:
            for own in slot.piece.pairs():
                for mine, theirs in zip(own.factors, (pairs[slot.path].left, pairs[slot.path].right), strict=True):
                    mine.copy_(theirs)
    return adapter


def _check(adapters: Sequence[Adapter], weights: Sequence[float], options: CombineOptions) -> None:
    bad = [f"weight {w}" for w in weights if not math.isfinite(w)]
    if len(weights) != len(adapters) or not adapters:
        bad.append(f"{len(weights)} weights for {len(adapters)} adapters")
    if weights and not any(weights):
        bad.append("every weight is 0, so nothing would be left")
    if options.rank is not None and options.rank < 1:
        bad.append(f"rank {options.rank}")
    if options.rank is not None and options.mode == "cat":
        bad.append("rank with cat, whose ranks add; svd makes them fewer")
    if options.tolerance is not None and (options.mode != "svd" or not 0 <= options.tolerance < 1):
        bad.append(f"tolerance {options.tolerance} with {options.mode}; svd takes 0 <= tolerance < 1")
    if not 0 < options.density <= 1:
        bad.append(f"density {options.density}; a share is above 0 and at most 1")
    if bad:
        each = ",".join(["0.5"] * len(adapters))
        fix = f"one weight for each, such as --weights {each}" if len(weights) != len(adapters) and adapters else ""
        raise Refusal("combine-options", "adapters cannot be combined like this", found=bad, fix=fix)


def _refuse_other_bases(adapters: Sequence[Adapter], names: Sequence[str]) -> None:
    """Refusal ``bases-differ``, with each base and the adapters that were trained over it."""
    facts = [adapter.facts.get("base") or {} for adapter in adapters]
    marks = [[one[kind] for one in facts if one.get(kind)] for kind in ("digest", "fingerprint")]
    if len({adapter.shape for adapter in adapters}) == 1 and all(len(set(mark)) <= 1 for mark in marks):
        return
    by_base: dict[str, list[str]] = {}
    for adapter, one, name in zip(adapters, facts, names, strict=True):
        called = Path(str(one.get("name") or "a base that is not recorded")).name
        known = [str(one[kind])[:12] for kind in ("digest", "fingerprint") if one.get(kind)][:1]
        told = f"{' '.join([called, *known])} ({adapter.shape.dim} wide, {adapter.shape.layers} layers)"
        by_base.setdefault(told, []).append(name)
    most = max(by_base, key=lambda told: len(by_base[told]))
    others = [name for told, those in by_base.items() if told != most for name in those]
    found = [f"{_few(those)} over {told}" for told, those in by_base.items()]
    raise Refusal(
        "bases-differ",
        "these adapters were not trained over one base, and what one adds to its own means nothing in another",
        found=found,
        groups=found if len(found) <= 3 else [*found[:3], f"and {len(found) - 3} more"],
        fix=f"leave out {_few(others)}, or train anew over {most}" if others else "combine adapters of one base",
    )


def _few(several: Sequence[str]) -> str:
    names = list(dict.fromkeys(several))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _agreed(adapters: Sequence[Adapter], name: str) -> bool:
    first = adapters[0].facts
    return name in first and all(a.facts.get(name) == first[name] for a in adapters)


def _combined(
    name: str, parts: list[tuple[int, float, Factors]], options: CombineOptions
) -> tuple[Factors, float, float]:
    """The pair for one place, the norm of what its rank leaves out, and the norm of all."""
    side = Factors(torch.cat([w * p.left for _, w, p in parts], 1), torch.cat([p.right for _, _, p in parts]))
    rank = options.rank or max(p.rank for _, _, p in parts)
    if options.mode == "cat":
        return side, 0.0, side.norm()
    if options.mode == "svd":
        left, values, right = decompose_pair(side)
        if options.tolerance is not None:
            rank = min(options.rank or len(values), _least(values, options.tolerance))
        lost, whole = float(values[rank:].norm()), float(values.norm())
    else:
        matrix = mixed([p.matrix() for _, _, p in parts], [w for _, w, _ in parts], options, name).double()
        left, values, right = decompose(matrix, min(rank, *matrix.shape))
        rank, whole = min(rank, len(values)), float(matrix.norm())
        lost = float((matrix - left[:, :rank] * values[:rank] @ right[:rank]).norm())
    root = values[:rank].sqrt()  # halved between the factors, so that neither is tiny in 16 bits
    return Factors((left[:, :rank] * root).float(), (root[:, None] * right[:rank]).float()), lost, whole


def _least(values: Tensor, tolerance: float) -> int:
    """The lowest rank, at least 1, whose left-out values are at most ``tolerance`` of all."""
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt()  # of what rank i leaves out
    return max(1, int((tails > tolerance * tails[0]).sum()))


def mixed(updates: Sequence[Tensor], weights: Sequence[float], options: CombineOptions, name: str = "") -> Tensor:
    """One update of several, entry by entry; each float32 [rows, columns]. ``name`` seeds DARE's choice."""
    dare, elects = options.mode.startswith("dare"), options.mode.endswith("ties")
    kept = [
        random_share(u, options.density, key(options.seed, i, name)) if dare else largest_share(u, options.density)
        for i, u in enumerate(updates)
    ]
    weighted = [w * u for w, u in zip(weights, kept, strict=True)]
    if not elects:
        return torch.stack(weighted).sum(0)
    ballots = [u if options.sign == "total" else u.sign() for u in kept]
    elected = torch.where(torch.stack(ballots).sum(0) >= 0, 1.0, -1.0)
    agree = [u.sign() == elected for u in kept]
    total = sum(torch.where(a, u, 0.0) for a, u in zip(agree, weighted, strict=True))
    count = sum(a.to(torch.float32) for a in agree)
    return total / count.clamp(min=1.0)  # type: ignore[union-attr,operator,return-value]


def largest_share(update: Tensor, share: float) -> Tensor:
    """The entries largest in magnitude, ``share`` of them rounded down, the others zero."""
    flat = torch.zeros(update.numel(), dtype=update.dtype)
    index = update.abs().flatten().topk(int(share * update.numel())).indices
    flat[index] = update.flatten()[index]
    return flat.view_as(update)


def random_share(update: Tensor, share: float, seed: int) -> Tensor:
    """Each entry kept with probability ``share`` and divided by it, which keeps the expectation."""
    drawn = torch.rand(update.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(drawn < share, update / share, 0.0)


def _paths(shape: ModelConfig, names: set[str]) -> list[str]:
    """In the model's order, which makes files equal however the adapters list their places."""
    order = {name: n for n, name in enumerate(n.removesuffix(".weight") for n in shape.tensor_shapes())}
    return sorted(names, key=lambda name: order.get(name, len(order)))


def _targets(shape: ModelConfig, names: dict[str, Factors]) -> tuple[str, ...]:
    """Last parts of names where every layer has them, whole paths otherwise."""
    ends = Counter(name.rpartition(".")[2] for name in names)
    everywhere = Counter(place.name for place in shape.layout)
    if all(count == everywhere[end] for end, count in ends.items()):
        return tuple(ends)
    return tuple(names)
