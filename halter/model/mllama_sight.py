"""What the text of a Llama 3.2 Vision reads of a pass's pictures, and what is kept of them while decoding.

A picture goes through the tower once, and each block with cross-attention makes its keys and values once, for all rows
that have it; only where an adapter acts there, which may be another one in every row, each row has its own.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from halter.model.mllama_looks import SeenPicture, kept, looks
from halter.model.mllama_tower import PROJECTOR, TOWER, look_at
from halter.model.passes import Here

if TYPE_CHECKING:
    from halter.model.decoder import Decoder
    from halter.model.mllama_book import Book
    from halter.model.mllama_config import MllamaConfig
    from halter.model.passes import Pass
    from halter.model.places import Acts

OF_PICTURES = ("k_proj", "k_norm", "v_proj")
"""The places of a block with cross-attention where pictures enter; the text enters the others."""


class Share(NamedTuple):
    """A picture's part of the tower's states: ``visible`` from ``start`` on, and ``whole`` that there is of it."""

    start: int
    visible: int
    whole: int


@dataclass(frozen=True)
class PictureGroup:
    """Pictures that stand right after one another in a row: their keys and values in one block, as the cache keeps
    them."""

    positions: tuple[int, ...]
    """Where each stands in its row."""
    ends: tuple[int, ...]
    """How many keys there are up to the end of each."""
    k: Tensor
    """[keys, kv_heads, head_dim]."""
    v: Tensor

    def ahead_of(self, position: int) -> PictureGroup | None:
        """Those that stand ahead of a position; None where none does."""
        count = sum(own < position for own in self.positions)
        if count == len(self.positions):
            return self
        end = self.ends[count - 1] if count else 0
        return PictureGroup(self.positions[:count], self.ends[:count], self.k[:end], self.v[:end]) if count else None


@dataclass
class Sight:
    """What blocks with cross-attention read of a pass (``Here.beside``)."""

    asked: Pass
    config: MllamaConfig
    looks: list[SeenPicture]
    items: list[int]
    """Of each look, which of ``shares`` its picture has."""
    shares: list[Share]
    states: Tensor | None
    """[K, dim]: what the tower made of the pictures; None where only those of earlier passes are seen."""
    books: dict[bool, Book] = field(default_factory=dict)
    """Written once for all blocks, and once more (True) for a last one that only some tokens leave."""

    def runs(self, row: int, first: int = 0, known: Container[int] = ()) -> list[list[tuple[int, int]]]:
        """A row's pictures of this pass as (position, item), those that stand right after one another together, without
        those at positions that are ``known``. ``first``: the position of the row's first token in this pass, virtual
        ones not counted."""
        pairs = zip(self.looks, self.items, strict=True)
        placed = [(first + look.at, item) for look, item in pairs if look.row == row]
        return joined([(position, item) for position, item in placed if position not in known])

    def remember(self, here: Here, new: tuple[Tensor, Tensor] | None) -> None:
        """Put keys and values of this pass's pictures, [K, kv_heads, head_dim] both, into the cache: each picture's
        once for all rows that have it. What a row has no more, having been cut or begun anew, goes."""
        assert here.cache is not None
        stored, made = here.cache.beside[here.layer], {}
        before, added = before_and_added(self.asked, here)
        for row, name in enumerate(here.segments.rows.tolist()):
            groups = [one for own in stored.get(name, ()) if (one := own.ahead_of(before[row])) is not None]
            known = {position for group in groups for position in group.positions}
            for run in self.runs(row, before[row] + added[row], known):
                old = groups.pop() if groups and groups[-1].positions[-1] == run[0][0] - 1 else None
                key = (id(old), *run)
                if key not in made:
                    assert new is not None
                    made[key] = self._group(old, run, new)
                groups.append(made[key])
            stored.pop(name, None)
            if groups:
                stored[name] = tuple(groups)

    def _group(self, old: PictureGroup | None, run: list[tuple[int, int]], new: tuple[Tensor, Tensor]) -> PictureGroup:
        shares = [self.shares[item] for _, item in run]
        parts = [[t[s.start : s.start + s.visible] for s in shares] for t in new]
        positions, ends = tuple(position for position, _ in run), tuple(accumulate(share.visible for share in shares))
        if old is not None:
            parts = [[one, *rest] for one, rest in zip((old.k, old.v), parts, strict=True)]
            positions, ends = old.positions + positions, old.ends + tuple(old.ends[-1] + end for end in ends)
        alone = len(self.shares) == len(parts[0]) == 1  # else a view would keep other pictures' keys as well
        k, v = (own[0] if alone else torch.cat(own) for own in parts)
        return PictureGroup(positions, ends, k, v)


def joined(pictures: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """(position, item) in ascending order, those that stand right after one another together."""
    found: list[list[tuple[int, int]]] = []
    for position, item in pictures:
        if not found or found[-1][-1][0] != position - 1:
            found.append([])
        found[-1].append((position, item))
    return found


def before_and_added(asked: Pass, here: Here) -> tuple[list[int], list[int]]:
    """Of each row: how many of its tokens came before this pass, and how many virtual ones it puts ahead of the row."""
    inside = here.segments
    before, added = inside.key_lengths - inside.query_lengths, inside.query_lengths - asked.segments.query_lengths
    return before.tolist(), added.tolist()


def see(model: Decoder, asked: Pass) -> Sight | None:
    """What the text's blocks read of a pass's pictures; None where it sees none (``Layout.beside``)."""
    config: MllamaConfig = model.config  # type: ignore[assignment]
    first, stop = asked.entered[0] if asked.entered else 0, config.layers if asked.stop is None else asked.stop
    crossing = [layer for layer in config.cross_layers if first <= layer < stop]
    found = looks(asked.segments, config) if crossing else []
    if not found:
        stored = asked.cache.beside[crossing[0]] if crossing and asked.cache is not None else {}
        seen = any(row in stored for row in asked.segments.rows.tolist()) if stored else False
        return Sight(asked, config, [], [], [], None) if seen else None
    once = not _adapted(asked.acts, (*model.layout.stack(TOWER), *model.layout.stack(PROJECTOR)))
    number: dict[object, int] = {}
    items = [number.setdefault(look.picture.digest if once else n, len(number)) for n, look in enumerate(found)]
    pictures = [found[items.index(item)].picture for item in range(len(number))]
    states = look_at(model, asked, pictures)
    shares = _shares(config, [len(picture.tiles) for picture in pictures])
    if len(pictures) < len(found) and _adapted(asked.acts, crossing, OF_PICTURES):
        ranges = [torch.arange(share.start, share.start + share.whole) for share in (shares[item] for item in items)]
        states = states[torch.cat(ranges).to(states.device)]
        items, shares = list(range(len(found))), _shares(config, [look.tiles for look in found])
    return Sight(asked, config, found, items, shares, states)


def _adapted(acts: Acts | None, layers: tuple[int, ...] | list[int], names: tuple[str, ...] = ()) -> bool:
    """Whether anything acts in these blocks, at places of these names, or at any."""
    if acts is None:
        return False
    records = [acts.layers[layer] for layer in layers]
    return any(getattr(at, name) is not None for at in records for name in names or at._fields)


def _shares(config: MllamaConfig, tiles: list[int]) -> list[Share]:
    lengths = [kept(config, count) for count in tiles]
    starts = accumulate(lengths[:-1], initial=0)
    return [Share(s, count * config.tile_tokens, n) for s, count, n in zip(starts, tiles, lengths, strict=True)]
