"""Warm starts: what an earlier adapter learned goes into a new one, as the same function, or refused with the reason.

Equal methods of equal options are copied. Low-rank pairs are also taken over

    into a higher rank      A' = [A; fresh], B' = [s/s' B, 0]: the same update, and the new directions can learn
    with another strength   alpha, alpha / sqrt(r): B is multiplied by s/s'
    from PiSSA and OLoRA    BA - B0 A0 as the pair [A; A0], [B, -B0] of twice the rank
    into DoRA               m = ||W + s B A||, so that its gain is 1

exactly up to one rounding of B. On the embedding A and B trade roles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from halter.adapters.adapter import Adapter, Slot
from halter.contract.method import Method, Piece
from halter.errors import Refusal
from halter.methods.dora import Directed, DirectedRows
from halter.model.decoder import Decoder
from halter.parts.low_rank import LowRank, LowRankRows
from halter.parts.shifted import Shifted

FREE = ("dropout",)  # options that only training knows
PAIRS = ("lora", "dora", "pissa", "olora")
INTO = {"lora": ("lora", "pissa", "olora"), "dora": ("dora", "lora", "pissa", "olora")}
"""{method: those whose pairs it can begin with}."""
SlotsAt = dict[tuple[int | None, str], Slot]


def match(adapter: Adapter, starts: Mapping[int, tuple[str, Adapter]]) -> dict[int, int]:
    """{part of ``adapter``: part of the earlier adapter that it begins with}; ``starts`` {part: (folder, adapter)}.

    A part for which a folder has nothing begins afresh where another part of the recipe uses that folder. Refusal
    ``init-from-differs`` names everything that has no exact way over; nothing is changed.
    """
    found: dict[int, int] = {}
    for part, (_, earlier) in starts.items():
        own = adapter.methods[part].name()
        taken = {n for p, n in found.items() if starts[p][1] is earlier}
        free = [n for n in range(len(earlier.methods)) if n not in taken]
        wanted = [own, *INTO.get(own, ()), *(PAIRS if own in PAIRS else ())]
        fits = [n for name in wanted for n in free if earlier.methods[n].name() == name]
        if fits:
            found[part] = fits[0]
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


def faults(adapter: Adapter, part: int, earlier: Adapter, other: int) -> list[str]:
    """Why a part of an earlier adapter cannot become this part exactly, one line a reason; [] where it can."""
    new, old = adapter.methods[part], earlier.methods[other]
    if new.name() not in INTO or old.name() not in PAIRS:
        return _other_options(new, old) if new.name() == old.name() else [f"{old.name()} does not become {new.name()}"]
    if old.name() not in INTO[new.name()]:
        return ["dora does not become lora: its lengths of rows are no low-rank sum (merge it, or train dora)"]
    mine, theirs = _places(adapter, part), _places(earlier, other)
    wrong = []
    for at, slot in theirs.items():
        if at not in mine:
            wrong.append(f"{slot.path} was adapted, and is not any more")
            continue
        ranks = [piece.get_parameter("a").shape[0] for piece in (slot.piece, mine[at].piece)]
        ranks[0] *= 2 if isinstance(slot.piece, Shifted) else 1
        if ranks[0] > ranks[1]:
            wrong.append(f"{slot.path} needs rank {ranks[0]}, and has {ranks[1]}")
        held, has = (dict(piece.named_parameters()).get("c") for piece in (slot.piece, mine[at].piece))
        if held is not None and has is None:
            wrong.append(f"{slot.path} has a bias of B's (lora_bias)")
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


@torch.no_grad()
def _take_over(adapter: Adapter, part: int, earlier: Adapter, other: int, base: Decoder) -> int:
    """Returns how many places had nothing to take over."""
    mine, theirs = _places(adapter, part), _places(earlier, other)
    paired = adapter.methods[part].name() in INTO
    for at, slot in theirs.items():
        target, source = mine[at].piece, slot.piece
        if not paired:
            held = {**dict(source.named_parameters()), **dict(source.named_buffers())}
            for name, tensor in held.items():
                {**dict(target.named_parameters()), **dict(target.named_buffers())}[name].copy_(tensor)
            continue
        a, b = _factors(source)
        ratio = _scale(source) / _scale(target)
        rows, columns = target.get_parameter("a"), target.get_parameter("b")
        table = isinstance(target, LowRankRows | DirectedRows)  # there A is the factor that is zero at the start
        (rows if table else columns).zero_()
        rows[: len(a)] = a * ratio if table else a
        columns[:, : len(a)] = b if table else b * ratio
        if isinstance(target, LowRank) and target.c is not None:
            target.c.zero_()
            if isinstance(source, LowRank) and source.c is not None:
                target.c.copy_(source.c * ratio)
        if isinstance(target, Directed | DirectedRows):
            if isinstance(source, Directed | DirectedRows):
                target.magnitude.copy_(source.magnitude)
            else:
                target.start(base.module(*at))
    return len(mine) - len(theirs)


def _factors(piece: Piece) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] whose product is the piece's update without its strength."""
    a, b = piece.get_parameter("a"), piece.get_parameter("b")
    return (torch.cat((a, piece.a0)), torch.cat((b, -piece.b0), 1)) if isinstance(piece, Shifted) else (a, b)


def _scale(piece: Piece) -> float:
    assert isinstance(piece, LowRank | LowRankRows | Directed | DirectedRows | Shifted)
    return piece.scale
