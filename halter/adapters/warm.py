"""Warm starts: what an earlier adapter learned goes into a new one, as the same function, or refused with the reason.

Equal methods of equal options are copied. Where every piece is a low-rank pair (Piece.pair) it is also taken over

    into a higher rank      A' = [A; fresh], B' = [s/s' B, 0]: the same update, and the new directions can learn
    with another strength   alpha, alpha / sqrt(r): B is multiplied by s/s'
    from PiSSA and OLoRA    BA - B0 A0 as the pair [A; A0], [B, -B0] of twice the rank
    into DoRA               m = ||W + s B A||, so that its gain is 1

exactly up to one rounding of B. On the embedding A and B trade roles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from halter.adapters.adapter import Adapter, Slot
from halter.contract.method import Method
from halter.contract.pair import Pair
from halter.errors import Refusal
from halter.model.decoder import Decoder

FREE = ("dropout", "phase")  # options that only training knows
SlotsAt = dict[tuple[int | None, str], Slot]
PairsAt = dict[tuple[int | None, str], Pair]


def match(adapter: Adapter, starts: Mapping[int, tuple[str, Adapter]]) -> dict[int, int]:
    """{part of ``adapter``: part of the earlier adapter that it begins with}; ``starts`` {part: (folder, adapter)}.

    A part for which a folder has nothing begins afresh where another part of the recipe uses that folder. Refusal
    ``init-from-differs`` names everything that has no exact way over; nothing is changed.
    """
    found: dict[int, int] = {}
    for part, (_, earlier) in starts.items():
        taken = {n for p, n in found.items() if starts[p][1] is earlier}
        free = [n for n in range(len(earlier.methods)) if n not in taken]
        fits = [(far, n) for n in free if (far := _distance(adapter, part, earlier, n)) is not None]
        if fits:
            found[part] = min(fits)[1]
    wrong: dict[str, list[str]] = {}
    for part, (folder, earlier) in starts.items():
        if part in found:
            wrong.setdefault(folder, []).extend(faults(adapter, part, earlier, found[part]))
        elif not any(starts[p][1] is earlier for p in found):
            has = ", ".join(method.name() for method in earlier.methods)
            wrong.setdefault(folder, []).append(f"it holds {has}, and no {adapter.methods[part].name()}")
    if any(wrong.values()):
        raise Refusal(
            "init-from-differs",
            "what init_from names cannot be taken over exactly",
            where=", ".join(folder for folder, told in wrong.items() if told),
            found=[line for told in wrong.values() for line in told],
            fix="give the options that it was trained with; halter adapters show FOLDER tells them",
        )
    return found


def begin(adapter: Adapter, starts: Mapping[int, tuple[str, Adapter]], base: Decoder) -> list[str]:
    """Take everything over, and say what came from where. Refusal as ``match``; nothing is half applied."""
    found = match(adapter, starts)
    told = []
    for part, (folder, earlier) in starts.items():
        name = adapter.methods[part].name()
        if part not in found:
            told.append(f"{name} starts afresh: {folder} holds none")
            continue
        fresh = _take_over(adapter, part, earlier, found[part], base)
        what = earlier.methods[found[part]].name()
        rest = f"; {fresh} of its places start afresh" if fresh else ""
        told.append(f"{name} starts from {what} of {folder}{rest}")
    left = [m.name() for n, m in enumerate(adapter.methods) if n not in starts]
    return told + ([f"afresh: {', '.join(left)}"] if left and told else [])


def _distance(adapter: Adapter, part: int, earlier: Adapter, other: int) -> tuple[bool, ...] | None:
    """How far a part of an earlier adapter is from this part: least for the same method, then for a pair that can be
    taken over, then for another pair. None: it has nothing for this part."""
    if adapter.methods[part].name() == earlier.methods[other].name():
        return (False,)
    mine, theirs = _pairs(_places(adapter, part)), _pairs(_places(earlier, other))
    if mine is None or theirs is None:
        return None
    shifted = any(pair.start is not None for pair in theirs.values())
    lengths = _have_lengths(theirs.values())
    taken = _takes(_places(adapter, part)) and (not lengths or _have_lengths(mine.values()))
    return True, not taken, shifted, lengths


def faults(adapter: Adapter, part: int, earlier: Adapter, other: int) -> list[str]:
    """Why a part of an earlier adapter cannot become this part exactly, one line a reason; [] where it can."""
    new, old = adapter.methods[part], earlier.methods[other]
    places, before = _places(adapter, part), _places(earlier, other)
    mine, theirs = _pairs(places), _pairs(before)
    if mine is None or theirs is None or not _takes(places):
        return _other_options(new, old) if new.name() == old.name() else [f"{old.name()} does not become {new.name()}"]
    if _have_lengths(theirs.values()) and not _have_lengths(mine.values()):
        merge = f"merge it, or train {old.name()}"
        return [f"{old.name()} does not become {new.name()}: its lengths of rows are no low-rank sum ({merge})"]
    wrong = []
    for at, pair in theirs.items():
        path = before[at].path
        if at not in mine:
            wrong.append(f"{path} was adapted, and is not any more")
            continue
        if pair.rank > mine[at].rank:
            wrong.append(f"{path} needs rank {pair.rank}, and has {mine[at].rank}")
        if pair.c is not None and mine[at].c is None:
            wrong.append(f"{path} has a bias of B's (lora_bias)")
    return wrong


def _other_options(new: Method, old: Method) -> list[str]:
    before, now = asdict(old), asdict(new)
    return [
        f"{key} was {before.get(key)!r}, is {now[key]!r}"
        for key in now
        if key not in FREE and _plain(before.get(key)) != _plain(now[key])
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _places(adapter: Adapter, part: int) -> SlotsAt:
    return {(slot.layer, slot.place): slot for slot in adapter.slots if slot.part == part}


def _pairs(places: SlotsAt) -> PairsAt | None:
    """The low-rank pair at each place; None where one of the pieces is something else."""
    found: PairsAt = {}
    for at, slot in places.items():
        pair = slot.piece.pair()
        if pair is None:
            return None
        found[at] = pair
    return found


def _takes(places: SlotsAt) -> bool:
    """Whether every piece can begin as an earlier pair."""
    return all(slot.piece.takes_pairs for slot in places.values())


def _have_lengths(pairs: Iterable[Pair]) -> bool:
    return any(pair.lengths is not None for pair in pairs)


@torch.no_grad()
def _take_over(adapter: Adapter, part: int, earlier: Adapter, other: int, base: Decoder) -> int:
    """Returns how many places had nothing to take over."""
    mine, theirs = _places(adapter, part), _places(earlier, other)
    pairs = _pairs(theirs) if _takes(mine) else None
    for at, slot in theirs.items():
        target = mine[at].piece
        if pairs is not None:
            target.take(pairs[at], base.module(*at))
            continue
        held = {**dict(slot.piece.named_parameters()), **dict(slot.piece.named_buffers())}
        for name, tensor in held.items():
            {**dict(target.named_parameters()), **dict(target.named_buffers())}[name].copy_(tensor)
    return len(mine) - len(theirs)
