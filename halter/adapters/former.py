"""Records of an earlier Halter, which did not have every option of today's, read as what was computed then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from halter.contract.method import Method

if TYPE_CHECKING:
    from halter.adapters.adapter import Adapter, Slot

JOINED, AS_MOVED = "joined", "as moved"
"""The fact in halter.json that what several methods put in the place of one weight adds up."""


def as_recorded(kind: type[Method], recorded: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options of a method with those that the record does not have yet (``Method.former``), and what to say of it."""
    added = {key: found for key, found in kind.former(recorded).items() if key not in recorded}
    notes = [
        f"{kind.name()} was recorded before it had {key}; read as {key} {value}, as it was trained: {meaning}"
        for key, (value, meaning) in added.items()
    ]
    return {**recorded, **{key: value for key, (value, _) in added.items()}}, notes


def replacing_again(adapter: Adapter) -> list[Slot]:
    """What puts something in the place of a weight at which another piece acts already: a second weight that stands in,
    token rows behind anything at the embeddings."""
    found: list[Slot] = []
    weights: set[str] = set()
    tables: set[str] = set()
    for slot in adapter.slots:
        again = slot.piece.replaces and slot.path in weights
        over = slot.place == "embed_tokens" and slot.piece.token_ids is not None and slot.path in tables
        found += [slot] if again or over else []
        weights |= {slot.path} if slot.piece.replaces else set()
        tables |= {slot.path}
    return found


def join_as_recorded(adapter: Adapter, facts: Mapping[str, Any]) -> list[str]:
    """Let the pieces join as they did when these facts were written, and what to say of it."""
    again = [] if facts.get(JOINED) == AS_MOVED else replacing_again(adapter)
    for slot in again:
        slot.piece.joins_as_formerly = True
    kinds = sorted({adapter.methods[slot.part].name() for slot in again})
    if not kinds:
        return []
    where = ", ".join(dict.fromkeys(slot.path for slot in again[:3])) + (" ..." if len(again) > 3 else "")
    told = "of several that replace one weight one alone counted then, and what they make of it is not added up"
    return [f"{', '.join(kinds)} beside others was recorded before it was added to them ({where}); read so: {told}"]


def how_joined(adapter: Adapter) -> dict[str, str]:
    """The fact for halter.json: nothing where no two pieces replace one weight, or where they join as formerly."""
    again = replacing_again(adapter)
    return {JOINED: AS_MOVED} if again and not any(slot.piece.joins_as_formerly for slot in again) else {}
