"""What a model is made of: every place of every block, declared once by the kind of block that has it.

A place is a point of the forward pass at which an adapter may act (a hook point). Whoever loads, saves, counts,
quantises, merges or adapts a model goes through its layout and keeps no list of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from halter.model.decoder import Decoder
    from halter.model.passes import Pass
    from halter.model.segments import Segments

LINEAR, NORM, TABLE, HEAD = "linear", "norm", "table", "head"
"""Kinds of places whose weights a checkpoint holds."""
AROUND = "around"
"""The kind of a place around no operation of the base, where only what follows can act."""
PARAMETER = "parameter"
"""The kind of a place whose weight is a parameter that is no module's, such as a class token or a gate."""
EXPERTS = "experts"
"""The kind of a place with one matrix for each expert, [experts, in, out] as Hugging Face stores them (a Linear's is
[out, in]); its module is an ExpertStack (model.experts). What comes to an act there is a Routed; a weight that stands
in for the base's is a matrix for each expert, [in, out], or None where the base's stays."""
PREFIX = "prefix"
"""The kind of a place at which an adapter brings vectors that rows see ahead of their own (places.Extra)."""
TEXT, LANGUAGE = "text", "language"
"""The stack that a decoder's pass goes through, and the group of places that is its own."""
MEMORY, VIRTUAL, SCORE = "memory", "virtual_tokens", "score"
BEHIND = ("norm", "head")
"""Kinds outside the blocks that come after them in a checkpoint."""


@dataclass(frozen=True)
class Place:
    """One place of a model."""

    name: str
    """The name of the module that computes it, and of the act there in the block's record of acts."""
    kind: str
    """What stands there: one of the kinds above, or a block's own."""
    path: str = ""
    """The Hugging Face path of the module; in a block's declaration from the block on."""
    shape: tuple[int, ...] = ()
    """Of the weight as a checkpoint holds it, (out_features, in_features) of a Linear; () where there is none."""
    bias: bool = False
    """Whether the base has a bias there."""
    bias_option: str = ""
    """The field of the configuration that says so; '' where a checkpoint has no room for a bias."""
    tied: bool = False
    """Whether its weight is another place's, so that a checkpoint holds none of its own."""
    whole_rows: bool = False
    """Whether who acts there must see all tokens of a row: the last layer then leaves none of them out."""
    suffix: str = ".weight"
    """What the name of its weight adds to the path in a checkpoint; '' for a parameter that is no module's weight."""
    unquantised: bool = False
    """Whether its weight stays in the dtype computed in where linear layers and experts are held in fewer bits."""
    rows: str = TEXT
    """Whose tokens stand in what enters it: those of the text's rows, or of another stack's (``Layout.rows``)."""
    layer: int | None = None
    """The block that it belongs to, None outside of them."""
    group: str = LANGUAGE
    """The part of the model that it belongs to, by whose name people choose it: ``language``, ``vision``, ..."""

    @property
    def weight_name(self) -> str:
        """The Hugging Face name of its weight."""
        return self.path + self.suffix

    @property
    def follows_only(self) -> bool:
        """Whether ``act`` is the one half of an act that counts there: there is no input or weight to change."""
        return self.kind == AROUND

    def tensors(self) -> dict[str, torch.Size]:
        """{Hugging Face tensor name: shape} of what a checkpoint holds of it."""
        if not self.shape or self.tied:
            return {}
        weight = {self.weight_name: torch.Size(self.shape)}
        return weight | {f"{self.path}.bias": torch.Size(self.shape[:1])} if self.bias else weight


@dataclass(frozen=True)
class BlockLayout:
    """What one kind of block declares."""

    make: Callable[[Any, BlockLayout, torch.dtype, torch.device | str], nn.Module]
    """The block's class: made from its family's configuration, layout, dtype and device."""
    acts: Callable[..., Any]
    """The record (a NamedTuple) of what acts in it during one forward: a field for each place."""
    places: tuple[Place, ...]
    """In the order of a checkpoint, those without tensors last."""

    stack: str = TEXT
    """The stack that it belongs to: a decoder's pass goes through the blocks of the text."""
    cached: bool = True
    """Whether the keys and values of the rows' tokens are kept while decoding."""
    group: str = ""
    """What its places are called together (``Place.group``); '': as its stack, and ``language`` in the text's."""

    def __iter__(self) -> Iterator[Place]:
        return iter(self.places)

    def at(self, path: str, layer: int) -> BlockLayout:
        """The same as block number ``layer`` of a model, which lies at ``path``."""
        group = self.group or (LANGUAGE if self.stack == TEXT else self.stack)
        named = ((place, f"{path}.{place.path or place.name}") for place in self.places)
        here = (replace(place, path=own, layer=layer, group=group) for place, own in named)
        return replace(self, places=tuple(here))


class Layout:
    """All places of one model: those outside the blocks, and each block's own.

    ``outer``: with whole paths. ``blocks``: one for each block, those of a stack in the order in which they run.
    ``rows``: {another stack: its own rows, made from the text's}, for stacks whose blocks see other tokens than the
    text's, such as patches of pictures. ``beside``: what the text's blocks read of such a stack, made once a pass.
    ``fuse``: the states [N, dim] that enter the first block, made of the tokens' embeddings [N, dim] and of such a
    stack, for families in which pictures stand among the tokens. ``in_memory``: {how a path begins: how it begins in
    transformers' memory}, where that is otherwise than in a published checkpoint.
    """

    def __init__(
        self,
        outer: Sequence[Place],
        blocks: Sequence[BlockLayout],
        rows: Mapping[str, Callable[[Segments], Segments]] | None = None,
        beside: Callable[[Decoder, Pass], Any] | None = None,
        fuse: Callable[[Decoder, Pass, Tensor], Tensor] | None = None,
        in_memory: Mapping[str, str] | None = None,
    ) -> None:
        self.outer, self.blocks, self.rows = tuple(outer), tuple(blocks), dict(rows or {})
        self.beside, self.fuse, self.in_memory = beside, fuse, dict(in_memory or {})
        self.everywhere: tuple[int | None, ...] = (None, *range(len(self.blocks)))
        self._by_name = {(place.layer, place.name): place for place in self}
        self._by_kinds: dict[tuple[str, ...], list[Place]] = {}

    def __iter__(self) -> Iterator[Place]:
        """Every place, in the order of a checkpoint."""
        yield from (place for place in self.outer if place.kind not in BEHIND)
        for block in self.blocks:
            yield from block
        yield from (place for place in self.outer if place.kind in BEHIND)

    def at(self, layer: int | None, name: str) -> Place:
        """The place of that name in a block, or outside of them (``layer`` None). KeyError where there is none."""
        return self._by_name[layer, name]

    def path(self, layer: int | None, name: str) -> str:
        """The Hugging Face path of a place, e.g. ``model.layers.3.self_attn.q_proj``."""
        return self._by_name[layer, name].path

    def here(self, layer: int | None, *kinds: str) -> list[Place]:
        """The places of one block, or outside of them (None); of these kinds, or of all."""
        places = self.outer if layer is None else self.blocks[layer].places
        return [place for place in places if not kinds or place.kind in kinds]

    def of(self, *kinds: str) -> list[Place]:
        """Every place of these kinds, in the order of a checkpoint."""
        if kinds not in self._by_kinds:  # methods ask in every layer, and a large model has a thousand places
            self._by_kinds[kinds] = [place for place in self if place.kind in kinds]
        return list(self._by_kinds[kinds])

    def in_few_bits(self) -> list[Place]:
        """The places whose weights quantising puts in fewer bits, in the order of a checkpoint."""
        return [place for place in self.of(LINEAR, EXPERTS) if not place.unquantised]

    @property
    def vocabulary(self) -> tuple[Place, Place]:
        """The places of the embeddings and of the head, whose rows are the vocabulary's."""
        return self.at(None, "embed_tokens"), self.at(None, "lm_head")

    def stack(self, name: str = TEXT) -> list[int]:
        """The numbers of the blocks of one stack, in their order."""
        return [index for index, block in enumerate(self.blocks) if block.stack == name]

    def names(self, *kinds: str) -> tuple[str, ...]:
        """What places of these kinds are called by people, each once: the last parts of their paths."""
        return tuple(dict.fromkeys(place.path.rpartition(".")[2] for kind in kinds for place in self.of(kind)))

    def peft_path(self, path: str) -> str:
        """How PEFT calls what lies at ``path``, or below it: as it is called in transformers' memory."""
        lead = next((lead for lead in self.in_memory if path.startswith(lead)), "")
        return self.in_memory.get(lead, "") + path.removeprefix(lead)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The names of the model's parts (``Place.group``), in the order of a checkpoint."""
        return tuple(dict.fromkeys(place.group for place in self))

    @cached_property
    def inside(self) -> frozenset[str]:
        """The names of the tensors that belong to a block."""
        return frozenset(name for place in self if place.layer is not None for name in place.tensors())

    @cached_property
    def tensors(self) -> dict[str, torch.Size]:
        """{Hugging Face tensor name: shape} of every tensor that a checkpoint holds."""
        return {name: shape for place in self for name, shape in place.tensors().items()}
