"""What a family says of its tensors in Meta's folders: one table of names, beside the family's own files.

Each rank of a folder (consolidated.NN.pth) holds a part of most tensors. A row of the table says to which tensor under
Hugging Face's name a part goes, what of it, and along which dimension the ranks' parts stand one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from halter.files.names import EMBEDDING, HEAD
from halter.files.tensors import TensorSpec

Params = Mapping[str, Any]
"""The numbers of params.json."""
Ranks = Sequence[Mapping[str, Tensor]]
"""The tensors of every rank under Meta's names, mapped, not read."""
Specs = Mapping[str, TensorSpec]
"""Whole tensors under Hugging Face's names."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class MetaName:
    """Where one tensor of Meta's goes, or a part of it."""

    hf: str | Callable[[int], str]
    """The name in Hugging Face's layout, ``*`` being the number of the layer; a function of that number where layers
    are numbered otherwise."""
    along: int | None = 0
    """The dimension along which the ranks' parts are joined; None: every rank has all of it."""
    view: Callable[[Tensor], Tensor] | None = None
    """Of one rank's tensor what goes there, as it lies in Hugging Face's layout: a slice, another shape, a transpose.
    It is asked of tensors without numbers as well, for their shapes."""
    side: int | None = None
    """Where several of Meta's tensors make one: the dimension along which they stand side by side ..."""
    order: int = 0
    """... and which of them this is, from 0."""
    copies: int = 1
    """On how many neighbouring ranks each part is stored."""
    put: Callable[[Tensor, Tensor], object] | None = None
    """``put(target, part)`` in place of a copy, where numbers change their order. The first row stays the first."""


Table = Mapping[str, tuple[MetaName, ...]]
"""{Meta's name, ``*`` for the number of the layer: where it goes}; () for one that holds nothing learned."""


@dataclass(frozen=True)
class MetaFamily:
    """What Meta's folders of one family hold."""

    models: str
    """In messages, what is read: "LLaMA 1 to 3.3, text only"."""
    tells: Callable[[Params], bool]
    """Whether a params.json is of this family."""
    table: Callable[[Params, Ranks], Table]
    """The table of one folder, whose tensors may be asked for their shapes."""
    config: Callable[[Params, Specs, bool], dict[str, Any]]
    """A config.json in Hugging Face's keys, of params.json, the whole tensors, and whether the head is tied."""
    generation: Callable[[int], dict[str, Any]]
    """A generation_config.json, of the number of rows of the vocabulary."""
    misfits: Callable[[Params, Ranks, Specs], list[str]]
    """Tensors whose parts do not add up to the sizes in params.json, so that a rank is missing, or another model's."""
    torn: Callable[[Params, Ranks], list[str]] = lambda params, ranks: []
    """Tensors whose parts are not made of whole heads."""
    faults: Callable[[Params], list[str]] = lambda params: []
    """What in params.json no model of the family can have."""
    refused: Mapping[str, str] | None = None
    """{key of params.json: what it speaks of}: what is not read where such a key is set."""
    needed: tuple[str, ...] = ("tok_embeddings.weight",)
    """Matrices, by Meta's names, without which a folder is none of this family's."""
    unread: tuple[str, ...] = ()
    """Beginnings of the names of tensors that are left unread, and counted."""
    must_tie: Callable[[Params], bool] = lambda params: False
    """Whether the two vocabulary matrices, which Meta always stores both, must be one."""
    embedding: str = EMBEDDING
    head: str = HEAD


def places(table: Table, name: str) -> list[tuple[str, MetaName]]:
    """(Hugging Face's name, row) of everything that a tensor of Meta's is part of. One that the table does not know
    goes nowhere else: it keeps its name, and whoever loads the model finds it unexpected."""
    found = _NUMBER.search(name)
    number = found[0] if found else ""
    rows = table.get(_NUMBER.sub("*", name, count=1))
    if rows is None:
        return [(name, MetaName(name, None))]
    return [(row.hf.replace("*", number) if isinstance(row.hf, str) else row.hf(int(number)), row) for row in rows]
