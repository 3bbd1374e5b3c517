"""The container that gives every method, for free, all that is not its own: see the methods of Adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halter.adapters.acting import acts_of, joined, rows_at
from halter.adapters.folding import fold_together
from halter.adapters.misfit import refuse_unfit
from halter.adapters.saving import save_adapter
from halter.adapters.sight import sight_of
from halter.adapters.stated import stated
from halter.arguments import bound, check_options, checked, refusal, strange
from halter.contract.experts import refuse_unknown_most_used
from halter.contract.method import Method, Piece, RowGroup, Site, built
from halter.contract.registry import find, names
from halter.elsewhere import called_otherwise, refuse_unknown
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.experts import EXPERTS
from halter.model.inputs import moved
from halter.model.layout import LINEAR, SCORE, VIRTUAL, Place
from halter.model.places import Act, Acts, Extra
from halter.model.segments import Segments
from halter.numerics import dropout
from halter.telling import tell_once


@dataclass(frozen=True)
class Slot:
    """One piece and where it acts."""

    part: int
    """Which of the methods trained together it is of, counted from 0."""
    at: Place
    """The place of the model's layout."""
    piece: Piece
    """Its parameters."""

    @property
    def layer(self) -> int | None:
        return self.at.layer

    @property
    def place(self) -> str:
        return self.at.name

    @property
    def path(self) -> str:
        return self.at.path

    def tensor(self, attribute: str) -> Tensor:
        """The piece's parameter or buffer of that name, be it inside a module of the piece (``low_rank.a``)."""
        owner, _, name = attribute.rpartition(".")
        return getattr(self.piece.get_submodule(owner), name)


@called_otherwise
class Adapter(nn.Module):
    """Trained tensors of one or several methods beside one base: float32 parameters, no caches, no state.

    Pass it to a call of the model; bind makes the record of one forward. Raises Refusal for options that make no sense.
    """

    def __init__(self, shape: ModelConfig, methods: Sequence[Method], seed: int = 0) -> None:
        super().__init__()
        self.shape, self.methods = shape, tuple(method.equipped() for method in methods)
        self.facts: dict[str, Any] = {}  # what halter.json will say of base, data and recipe
        self.notes: list[str] = []  # what the reading of its folder had to tell
        self.slots: list[Slot] = []
        for part, method in enumerate(self.methods):
            method.check(shape)
            for layer in shape.layout.everywhere:
                pieces = built(method, shape, layer)
                refuse_missing(method, shape, layer, pieces)
                self.slots += [Slot(part, shape.layout.at(layer, name), piece) for name, piece in pieces.items()]
            method.share([slot.piece for slot in self.slots if slot.part == part])
        self.pieces = nn.ModuleList(slot.piece for slot in self.slots)
        self.sight = sight_of(self.methods)
        """How it takes pictures by an encoder; None: it is blind."""
        for slot in self.slots:
            for name, parameter in slot.piece.named_parameters():
                if self.methods[slot.part].learns_from(slot.place, name) == "none":
                    parameter.requires_grad_(False)
        # On meta there are no numbers to draw, and torch would import its compiler, a second's work, to draw none.
        for slot in (slot for slot in self.slots if not any(one.is_meta for one in slot.piece.parameters())):
            slot.piece.reset(torch.Generator().manual_seed(dropout.key(seed, slot.part, slot.path)))

    def start(self, base: Decoder) -> Adapter:
        """Let every piece read the base's weight, and move to the base's device.

        Refusal ``offload-full`` where weights of streamed layers would be trained.
        """
        if not base.residence.resident:
            refuse_trained_layers(self)
        for slot in self.slots:
            slot.piece.start(_module(base, slot))
        return self.to(base.device)

    def bind(self, base: Decoder, segments: Segments, key: int | None = None, inside: Segments | None = None) -> Acts:
        """What acts during one forward of ``base`` over ``segments``; ``key`` seeds dropout, None means none.
        ``inside``: the rows as the layers see them, where other adapters bring virtual tokens too."""
        if self.shape is not base.config:
            refuse_unfit(self, base.config)
        at: dict[tuple[int | None, str], Act | Extra] = {}
        shared: dict[int, Act | Extra] = {}  # a piece at two places (tied weights) is bound once
        made: dict[int, Any] = {}
        inside = self.longer(segments) if inside is None else inside
        for slot in self.slots:
            if id(slot.piece) not in shared:
                part_key = None if key is None else dropout.key(key, slot.part)
                rows = rows_at(slot.at, base.layout, segments, inside)
                shared[id(slot.piece)] = slot.piece.bind(Site(base, slot.layer, slot.place, rows, part_key, made))
            act, where = shared[id(slot.piece)], (slot.layer, slot.place)
            at[where] = joined(at[where], act) if where in at else act
        return acts_of(at, self.shape.layout)

    @property
    def tokenwise(self) -> bool:
        """Whether every method treats a token alike wherever it stands (Method.tokenwise)."""
        return all(method.tokenwise for method in self.methods)

    @property
    def virtual_tokens(self) -> int:
        """Tokens that stand ahead of each row of this adapter."""
        return sum(slot.piece.length for slot in self.slots if slot.place == VIRTUAL)

    def longer(self, segments: Segments) -> Segments:
        """The rows as the layers see them, virtual tokens included."""
        if not self.virtual_tokens:
            return segments
        return segments.with_virtual(torch.full_like(segments.query_lengths, self.virtual_tokens))[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        """What torch's ``to``, ``cuda`` and their kin do to every tensor. Refusal of ``moved``."""
        first = next(self.parameters(), None)
        if first is not None:
            moved(fn, first.dtype, first.device)
        holders: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):
                holders.setdefault(id(buffer), []).append((module, name))
        super()._apply(fn, recurse)
        for (first_module, first_name), *others in holders.values():  # torch makes a copy for each that holds one
            for module, name in others:
                setattr(module, name, getattr(first_module, first_name))
        return self

    @bound("adapter.save", 'adapter.save("mine")')
    def save(self, folder: str | Path) -> None:
        """Write the adapter's folder (adapters.loading). Refusal ``wrong-argument`` for anything but a path."""
        if wrong := strange({"folder": str | Path}, {"folder": folder}):
            raise refusal("adapter.save", wrong, 'adapter.save("mine")')
        save_adapter(self, folder)

    def named_tensors(self) -> Iterator[tuple[str, Slot, str]]:
        """(name in the adapter's file, slot, attribute) of every parameter and buffer; what is shared once."""
        seen: set[int] = set()
        for slot in self.slots:
            lead = f"part{slot.part}." if len(self.methods) > 1 else ""
            for name, tensor in (*slot.piece.named_parameters(), *slot.piece.named_buffers()):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{lead}{slot.path}.{slot.piece.saved_names[name]}", slot, name

    @torch.no_grad()
    def plain(self) -> Adapter:
        """What is saved: this adapter, or where a method trains in another form, the one that it stands for."""
        methods = [method.plain() for method in self.methods]
        if methods == list(self.methods):
            return self
        made = Adapter(self.shape, methods)
        made.facts = self.facts
        for mine, theirs in zip(self.slots, made.slots, strict=True):
            own = {**dict(mine.piece.named_parameters()), **dict(mine.piece.named_buffers())}
            theirs.piece.joins_as_formerly = mine.piece.joins_as_formerly
            for name, tensor in (mine.piece.plain() or own).items():
                theirs.tensor(name).copy_(tensor)
        return made

    def trainable(self) -> dict[str, nn.Parameter]:
        """{name in the adapter's file: parameter} of everything that is trained."""
        found = ((name, slot.piece.get_parameter(attribute)) for name, slot, attribute in self._parameters_only())
        return {name: parameter for name, parameter in found if parameter.requires_grad}

    def row_groups(self) -> dict[str, RowGroup]:
        """{name in the adapter's file: the rows from which it learns} of every parameter (Method.learns_from)."""
        return {n: self.methods[slot.part].learns_from(slot.place, a) for n, slot, a in self._parameters_only()}

    def _parameters_only(self) -> Iterator[tuple[str, Slot, str]]:
        for name, slot, attribute in self.named_tensors():
            if attribute in dict(slot.piece.named_parameters()):
                yield name, slot, attribute

    @property
    def num_trainable(self) -> int:
        """Exact count of trained numbers."""
        return sum(p.numel() for p in self.trainable().values())

    def groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups: a method's own where it has some, else one; one dimension, no decay (timm's rule)."""
        groups: list[dict[str, Any]] = []
        for part, method in enumerate(self.methods):
            named = {
                name: slot.piece.get_parameter(attribute)
                for name, slot, attribute in self._parameters_only()
                if slot.part == part and slot.piece.get_parameter(attribute).requires_grad
            }
            own = method.groups(named, learning_rate)
            for group in own or [{"params": list(named.values()), "lr": learning_rate}]:
                flat = [p for p in group["params"] if p.ndim < 2]
                deep = [p for p in group["params"] if p.ndim >= 2]
                groups += [{**group, "params": deep, "weight_decay": weight_decay}] if deep else []
                groups += [{**group, "params": flat, "weight_decay": 0.0}] if flat else []
        return groups

    def unfoldable(self) -> list[str]:
        """The places, each with its method, whose effect is no change of weights; none where it can be merged."""
        return [f"{slot.path} ({self.methods[slot.part].name()})" for slot in self.slots if not slot.piece.folds]

    def fold(self, name: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Module ``name``'s float32 weight and bias with this adapter in them. Refusal ``cannot-merge``."""
        stuck = self.unfoldable()
        if stuck:
            raise Refusal(
                "cannot-merge",
                "this adapter's effect is not a change of weights here",
                found=stuck,
                fix="use it as an adapter",
            )
        here = [slot for slot in self.slots if slot.path == name]
        if len(here) > 1:
            return fold_together([slot.piece for slot in here], here[0].at, weight, bias)
        return here[0].piece.fold(weight, bias) if here else (weight, bias)


def refuse_missing(method: Method, shape: ModelConfig, layer: int | None, pieces: Mapping[str, Piece]) -> None:
    """Refusal ``no-such-place`` where a method would act at a place that the block has not."""
    known = [place.name for place in shape.layout.here(layer)]
    if missing := [name for name in pieces if name not in known]:
        what = f"{method.name()} acts at a place that " + (f"layer {layer}" if layer is not None else "this model")
        fix = "leave the layer out (method.layers), or choose another method"
        raise Refusal("no-such-place", f"{what} has not", found=missing, expected=", ".join(known), fix=fix)


def trained_matrices(adapter: Adapter) -> list[str]:
    """Paths of the layers' matrices that an adapter trains themselves: they can be neither streamed nor quantised."""
    return [slot.path for slot in adapter.slots if slot.piece.replaces and slot.at.kind in (LINEAR, EXPERTS)]


def refuse_trained_layers(adapter: Adapter) -> None:
    """Refusal ``offload-full`` where an adapter trains the matrices of layers, which are frozen when streamed."""
    if own := trained_matrices(adapter):
        raise Refusal(
            "offload-full",
            "layers that are streamed from CPU memory are frozen, and these weights would be trained themselves",
            found=own,
            fix="model.offload: none, or a method that trains beside the weights, such as lora",
        )


def _module(base: Decoder, slot: Slot) -> nn.Module:
    """The base's module whose weights a piece may read: its place's, the layer at a place without any, the head where
    scores are made."""
    if slot.place in (VIRTUAL, SCORE):
        return base.embed_tokens if slot.place == VIRTUAL else base.lm_head
    weightless = slot.layer is not None and not slot.at.shape
    return base.layers[slot.layer] if weightless else base.module(slot.layer, slot.place)  # type: ignore[index]


@checked('halter.adapt(model, "lora", r=16)')
def adapt(base: Decoder, method: str | Method | Sequence[Method], *, seed: int = 0, **options: Any) -> Adapter:
    """A fresh adapter for ``base``: a method's name with its options, a Method, or several to be trained together.

    A Method says to an editor which options there are: ``adapt(model, Lora(r=16))``, from halter.methods.lora.
    Refusals: ``unknown-option`` names options that the method does not have, and those it has; ``wrong-argument``
    values of another kind than they are declared, of a Method too; ``learns-nothing`` a strength of 0.
    """
    if isinstance(method, str):
        if method not in names() and Path(method).is_dir():
            fix = f'halter.load_adapter("{method}", model) reads an adapter that is trained'
            raise Refusal("unknown-method", f"{method} is a folder, and no method is called so", fix=fix)
        kind = find(method)
        known = [field.name for field in fields(kind) if field.init]
        refuse_unknown(options, known, method, f'halter.adapt(model, "{method}", {known[0]}=...)')
        check_options(method, kind, options)
        method = kind(**options)
    elif options:
        what = "options go with a method's name; a Method has its own"
        fix = 'halter.adapt(model, "lora", r=16)'
        raise Refusal("wrong-argument", what, where="halter.adapt", found=options, fix=fix)
    methods = [method] if isinstance(method, Method) else list(method)
    if not methods:
        raise Refusal("wrong-argument", "no method is named", where="halter.adapt", fix='halter.adapt(model, "lora")')
    for one in methods:
        check_options(one.name(), type(one), vars(one))
    methods = [one.equipped() for one in methods]
    for one in methods:
        one.check_new(base.config)
        refuse_unknown_most_used(one)
    adapter = Adapter(base.config, methods, seed).start(base)
    if line := stated(adapter):
        tell_once(line)
    return adapter
