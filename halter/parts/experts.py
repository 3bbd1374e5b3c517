"""Adapters of routed experts: at each chosen expert a piece of its own, as at a Linear with that expert's matrix.

Any piece for a Linear will do (a low-rank pair, scales, a weight of its own), and sees one expert's rows only: those of
an expert without rows are no part of the pass, so that its gradient is none, and no optimizer touches it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.contract import targets
from halter.contract.experts import Reach, one_of
from halter.contract.method import Method, Piece, Site
from halter.contract.targets import ADAPTED
from halter.model.config import ModelConfig
from halter.model.experts import ExpertStack
from halter.model.layout import Place
from halter.model.linear import Linear
from halter.model.places import Act, Routed
from halter.numerics import dropout


class OneExpert(Linear):
    """One expert's matrix as a Linear [out, in], read from where all lie; it holds nothing."""

    storage = "expert"
    bias = None
    _stacked: ExpertStack

    def __init__(self, stacked: ExpertStack, expert: int) -> None:
        _, into, out = stacked.shape
        super().__init__(into, out)
        self.__dict__["_stacked"], self._expert = stacked, expert  # not a module of this one, which would hold it

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        if weight is not None:
            return F.linear(x, weight, bias)
        rows = self._stacked.product(x, self._expert)
        return rows if bias is None else rows + bias

    @property
    def dtype(self) -> torch.dtype:
        return self._stacked.dtype

    def weight(self) -> Tensor:
        return self._stacked.of(self._expert).t()

    def rows(self, index: Tensor) -> Tensor:
        return self.weight()[index]


@dataclass(frozen=True)
class ExpertSite(Site):
    """Where a piece of one expert is bound."""

    expert: int = 0

    @property
    def module(self) -> nn.Module:
        stacked = super().module
        assert isinstance(stacked, ExpertStack)
        return OneExpert(stacked, self.expert)

    def mask_key(self) -> int:
        return dropout.key(self.key, self.layer, self.place, self.expert)


ExpertParts = tuple[Act | None, ...]
"""Each expert's own act; None: nothing acts there."""


@dataclass(frozen=True)
class ExpertsAct(Act):
    """Each expert's own act on its own rows, where all follow their expert's product."""

    parts: ExpertParts

    def act(self, x: Routed, y: Tensor) -> Tensor:
        return _each(self.parts, "act", x, y)

    def beside(self, x: Routed, y: Tensor) -> Tensor:
        return _each(self.parts, "beside", x, y)

    def select(self, index: Tensor) -> ExpertsAct:
        return replace(self, parts=_selected(self.parts, index))


@dataclass(frozen=True)
class EnteringExpertsAct(Act):
    """The same of acts that change what enters an expert's product, or bring a matrix of their own."""

    parts: ExpertParts

    def enter(self, x: Routed) -> Routed:
        return replace(x, rows=_each(self.parts, "enter", x))

    def act(self, x: Routed, y: Tensor) -> Tensor:
        return _each(self.parts, "act", x, y)

    def beside(self, x: Routed, y: Tensor) -> Tensor:
        return _each(self.parts, "beside", x, y)

    def stand_in(self) -> Any:
        """What stands in for each expert's matrix, [in, out] as the base has it; None: the base's."""
        own = [None if part is None else part.stand_in() for part in self.parts]
        if all(one is None for one in own):
            return None
        return tuple(None if one is None else one[0].t() for one in own), None

    def select(self, index: Tensor) -> EnteringExpertsAct:
        return replace(self, parts=_selected(self.parts, index))


def _each(parts: ExpertParts, half: str, x: Routed, *y: Tensor) -> Tensor:
    """That half of every part on its rows of x and y; the last of them where no part has one."""
    if all(part is None or getattr(type(part), half) is getattr(Act, half) for part in parts):
        return (x.rows, *y)[-1]
    rows = (tensor.split(x.counts) for tensor in (x.rows, *y))
    made = [
        own[-1] if part is None or not len(own[0]) else getattr(part, half)(*own)
        for part, *own in zip(parts, *rows, strict=True)
    ]
    return torch.cat(made)


def _selected(parts: ExpertParts, index: Tensor) -> ExpertParts:
    return tuple(None if part is None else part.select(index) for part in parts)


class Experts(Piece):
    """A piece for each of some experts of one place, by their numbers; ``count`` of all."""

    def __init__(self, pieces: Mapping[int, Piece], count: int) -> None:
        super().__init__()
        self.count = count
        self.each = nn.ModuleDict({str(expert): piece for expert, piece in pieces.items()})
        self.folds = all(piece.folds for piece in pieces.values())
        self.replaces = any(piece.replaces for piece in pieces.values())
        self.saved_names = {
            f"each.{expert}.{name}": f"{expert}.{saved}"
            for expert, piece in pieces.items()
            for name, saved in piece.saved_names.items()
        }

    @property
    def pieces(self) -> dict[int, Piece]:
        """{expert: its piece}."""
        return {int(expert): piece for expert, piece in self.each.items()}  # type: ignore[misc]

    def share(self, name: str) -> Experts:
        """Let all experts have one parameter of that name in common."""
        first, *others = self.pieces.values()
        for piece in others:
            setattr(piece, name, getattr(first, name))
        return self

    def reset(self, generator: torch.Generator) -> None:
        """An expert begins alike whichever others are chosen beside it."""
        seed = generator.initial_seed()
        for expert, piece in reversed(self.pieces.items()):  # of what they share the first one's draw stays
            piece.reset(torch.Generator().manual_seed(dropout.key(seed, expert)))

    def start(self, module: nn.Module) -> None:
        assert isinstance(module, ExpertStack)
        for expert, piece in self.pieces.items():
            piece.start(OneExpert(module, expert))

    def bind(self, site: Site) -> Act:
        here = {field.name: getattr(site, field.name) for field in fields(Site)}
        parts: list[Act | None] = [None] * self.count
        for expert, piece in self.pieces.items():
            act = piece.bind(ExpertSite(**here, expert=expert))
            assert isinstance(act, Act)
            parts[expert] = act
        follow = all(part is None or part.follows for part in parts)
        return (ExpertsAct if follow else EnteringExpertsAct)(tuple(parts))

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Of all experts, [experts, in, out]. A bias [experts, out] comes where a piece brings one: no checkpoint has
        room for it, and who merges refuses it."""
        made, biases = weight.clone(), None
        for expert, piece in self.pieces.items():
            one, own = piece.fold(weight[expert].t(), None)
            made[expert] = one.t()
            if own is not None:
                biases = weight.new_zeros(self.count, weight.shape[-1]) if biases is None else biases
                biases[expert] = own
        return made, biases


def adapted(options: object, shape: ModelConfig) -> bool:
    """Whether the options mean routed experts of this model."""
    reach = Reach.of(options)
    return any(reach.places(shape, layer) for layer in shape.layout.everywhere)


def beyond_peft(method: Method, shape: ModelConfig) -> dict[str, str]:
    """The peft_type of a method that PEFT has for modules alone, where it acts on routed experts; {} elsewhere."""
    return {"peft_type": f"HALTER_{method.name().upper()}"} if adapted(method, shape) else {}


MakePiece = Callable[[Place], Piece]
"""The piece of one place."""


def build(
    options: object, shape: ModelConfig, layer: int | None, make: MakePiece, kinds: Sequence[str] = ADAPTED
) -> dict[str, Piece]:
    """{place: piece} of one layer, or outside the layers, where the options say: at places of these ``kinds``, and a
    piece for each chosen expert at those of routed experts, each made as for a Linear with its matrix."""
    reach = Reach.of(options)
    modules = reach.for_modules(shape)
    chosen = targets.chosen(shape, layer, modules, reach.exclude, reach.layers, kinds) if modules else []
    made = {place.name: make(place) for place in chosen}
    for place in reach.places(shape, layer):
        own = {expert: make(one_of(place, expert)) for expert in reach.numbers(place)}
        made[place.name] = Experts(own, place.shape[0])
    return made
