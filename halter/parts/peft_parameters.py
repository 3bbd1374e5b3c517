"""PEFT's layout of low-rank pairs at routed experts (target_parameters), and the way back.

peft 0.21 files one A [experts * r, out] and one B [in, r * experts] for a tensor [experts, in, out] of Llama 4, whose
first two sides it takes for out and in: expert e's update of its matrix is B[:, e::experts] A[e r : e r + r], so that
its A is our B turned round. Versions before filed A [experts * r, in] and B [out, r * experts]; the sizes tell which it
is. Experts that are not adapted are zeros there, and of unequal ranks the lower ones are filled with zeros, which needs
one strength for all. Tensors of one module are nested, the last one outside. Read from peft's code, and compared by
logits in tests/methods/test_experts_in_peft.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from halter.contract import targets
from halter.contract.experts import name_of
from halter.contract.method import PEFT_PREFIX, Method
from halter.model.config import ModelConfig
from halter.model.experts import EXPERTS
from halter.model.layout import Place
from halter.parts.experts import Experts

A, B = "lora_A.weight", "lora_B.weight"


@dataclass(frozen=True)
class ExpertPairs:
    """The pairs at one place of routed experts: the rank and the strength of each expert that has one."""

    at: Place
    filed: str
    """What PEFT's names of its tensors begin with."""
    ranks: Mapping[int, int]
    scales: Mapping[int, float]
    shared: bool
    """Whether all have one A."""

    @property
    def rank(self) -> int:
        """As PEFT files it: of all experts alike."""
        return max(self.ranks.values())

    @property
    def scale(self) -> float | None:
        """Of all alike; None where they differ."""
        found = set(self.scales.values())
        return found.pop() if len(found) == 1 else None

    def own(self, expert: int) -> tuple[str, str]:
        """Halter's names of an expert's A and B."""
        first = min(self.ranks) if self.shared else expert
        return f"{self.at.path}.{first}.{A}", f"{self.at.path}.{expert}.{B}"


def pairs_in(method: Method, shape: ModelConfig) -> list[ExpertPairs]:
    """Of every place of routed experts at which the method has low-rank pairs."""
    if not shape.layout.of(EXPERTS):
        return []
    found: list[ExpertPairs] = []
    with torch.device("meta"):
        for layer in shape.layout.everywhere:
            built = method.build(shape, layer)
            here = [place for place in shape.layout.here(layer, EXPERTS) if place.name in built]
            for place in here:
                found.append(_at(place, built[place.name], here))
    return found


def _at(place: Place, piece: Any, here: Sequence[Place]) -> ExpertPairs:
    assert isinstance(piece, Experts)
    pairs = {expert: own.pair() for expert, own in piece.pieces.items()}
    ranks = {expert: pair.rank for expert, pair in pairs.items() if pair is not None}
    module = place.path.rpartition(".")[0]
    beside = [other for other in here if other.path.rpartition(".")[0] == module]
    filed = f"{module}." + "base_layer." * (len(beside) - 1 - beside.index(place))
    firsts = {id(pair.a) for pair in pairs.values() if pair is not None}
    scales = {expert: pair.scale for expert, pair in pairs.items() if pair is not None}
    return ExpertPairs(place, filed, ranks, scales, len(firsts) == 1 < len(pairs))


def config(method: Method, shape: ModelConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """The adapter_config.json of a method of LoRA's family, ``plain`` being that of its modules."""
    found = pairs_in(method, shape)
    if not found:
        return plain
    if any(pairs.scale is None for pairs in found):
        return plain | {"peft_type": f"HALTER_{method.name().upper()}"}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for pairs in found:
        path, r = pairs.at.path, pairs.rank
        alpha = (pairs.scale or 0.0) * (math.sqrt(r) if plain["use_rslora"] else r)
        said = targets.by_pattern(plain["rank_pattern"], path, plain["r"])
        strong = targets.by_pattern(plain["alpha_pattern"], path, plain["lora_alpha"])
        if said != r or not math.isclose(strong, alpha, rel_tol=1e-12):
            ranks[path], alphas[path] = r, targets.whole(alpha)
    kept = {key: {k: v for k, v in plain[key].items() if not _of_one(k)} for key in ("rank_pattern", "alpha_pattern")}
    return plain | {
        "target_parameters": _names([pairs.at for pairs in found], shape),
        "rank_pattern": ranks | kept["rank_pattern"],
        "alpha_pattern": alphas | kept["alpha_pattern"],
        "lora_dropout": 0.0,  # peft opens no folder with target_parameters and dropout; it is of training alone
    }


def _of_one(key: str) -> bool:
    """Whether a key of a pattern speaks of one expert, whose number it ends in."""
    return key.rpartition(".")[2].isdigit()


def _names(places: Sequence[Place], shape: ModelConfig) -> list[str]:
    """As PEFT's users write them where all layers are adapted, else whole paths."""
    names: list[str] = []
    for name in dict.fromkeys(place.name for place in places):
        mine = [place for place in places if place.name == name]
        every = [place for place in shape.layout.of(EXPERTS) if place.name == name]
        names += [name_of(mine[0])] if mine == every else [place.path for place in mine]
    return names


def pack(file: dict[str, Tensor], method: Method, shape: ModelConfig) -> dict[str, Tensor]:
    """{PEFT's name: tensor} of {Halter's name behind the prefix: tensor}; only reshaped, and filled with zeros. As it
    is where PEFT has no layout for it."""
    found = pairs_in(method, shape)
    if any(pairs.scale is None for pairs in found):
        return file
    made = dict(file)
    for pairs in found:
        experts, into, out = pairs.at.shape
        r = pairs.rank
        first, second = torch.zeros(experts, r, out), torch.zeros(into, r, experts)
        for expert, rank in pairs.ranks.items():
            a, b = (file[PEFT_PREFIX + name] for name in pairs.own(expert))
            first[expert, :rank], second[:, :rank, expert] = b.t(), a.t()
        for expert in pairs.ranks:
            for name in pairs.own(expert):
                made.pop(PEFT_PREFIX + name, None)
        made[f"{PEFT_PREFIX}{pairs.filed}{A}"] = first.flatten(0, 1)
        made[f"{PEFT_PREFIX}{pairs.filed}{B}"] = second.flatten(1)
    return made


def unpack(stored: dict[str, Tensor], method: Method, shape: ModelConfig) -> dict[str, Tensor]:
    """The way back, of names without the prefix. What does not fit stays under its name, to be told."""
    found = pairs_in(method, shape)
    files = {pairs.filed: (stored.get(pairs.filed + A), stored.get(pairs.filed + B)) for pairs in found}
    turned = not any(_fits(files[p.filed], p, False) and not _fits(files[p.filed], p, True) for p in found)
    made = dict(stored)
    for pairs in found:
        first, second = files[pairs.filed]
        if first is None or second is None or not _fits((first, second), pairs, turned):
            continue
        experts = pairs.at.shape[0]
        firsts, seconds = first.unflatten(0, (experts, -1)), second.unflatten(1, (-1, experts))
        del made[pairs.filed + A], made[pairs.filed + B]
        for expert, rank in pairs.ranks.items():
            one, other = firsts[expert, :rank], seconds[:, :rank, expert]
            a, b = (other.t(), one.t()) if turned else (one, other)
            for name, tensor in zip(pairs.own(expert), (a, b), strict=True):
                made[name] = tensor.contiguous()
    return made


def _fits(file: tuple[Tensor | None, Tensor | None], pairs: ExpertPairs, turned: bool) -> bool:
    experts, into, out = pairs.at.shape
    rows = experts * pairs.rank
    wanted = ((rows, out), (into, rows)) if turned else ((rows, into), (out, rows))
    return all(tensor is not None and tuple(tensor.shape) == size for tensor, size in zip(file, wanted, strict=True))


ALIKE = "routed experts of several strengths get one: B is multiplied, and rounded once"


def alike(own: dict[str, Tensor], method: Any, shape: ModelConfig) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(options, tensors) of the same pairs with one rank and one strength a place: the lower ranks are filled with
    zeros, and B takes up what differs in strength."""
    made: dict[str, Tensor] = dict(own)
    ranks: dict[str, Any] = {}
    alphas: dict[str, float] = {}
    for pairs in pairs_in(method, shape):
        path, r = pairs.at.path, pairs.rank
        scale = max(pairs.scales.values(), key=abs)
        ranks[path], alphas[path] = r, scale * (math.sqrt(r) if method.rslora else r)
        for expert in pairs.ranks:
            a, b = pairs.own(expert)
            made[a] = F.pad(own[a], (0, 0, 0, r - len(own[a])))
            made[b] = F.pad(own[b], (0, r - own[b].shape[1])) * (pairs.scales[expert] / scale)
    patterns = {"rank_pattern": ranks, "alpha_pattern": alphas}
    kept = {key: {k: v for k, v in getattr(method, key).items() if not _of_one(k)} for key in patterns}
    return {key: said | kept[key] for key, said in patterns.items()}, made
