"""An adapter in the form that PEFT has of its method, or the reason why there is none."""

from __future__ import annotations

from halter.adapters import peft_together
from halter.adapters.adapter import Adapter
from halter.adapters.importing.taking import filled
from halter.adapters.saving import state_of
from halter.errors import Refusal


def for_peft(adapter: Adapter) -> tuple[Adapter, list[str]]:
    """The adapter as PEFT has it, itself where it is so already, and what was lost on the way, a line each.

    Refusal ``no-peft-form``: PEFT would compute another function on this base, or has no layout for this at all.
    """
    notes: tuple[str, ...] = ()
    if len(adapter.methods) == 1:
        (method,) = adapter.methods
        nearest, own, notes = method.nearest_in_peft(state_of(adapter), adapter.shape)
        if nearest != method:
            facts = dict(adapter.facts)
            adapter = filled(adapter.shape, nearest, own, "PEFT's form")
            adapter.facts = facts
        if reasons := nearest.other_than_peft(adapter.shape):
            kind = nearest.peft_type.lower()
            what = f"PEFT's {kind} computes another function on this base than this adapter was trained for"
            raise Refusal("no-peft-form", what, found=reasons, fix="train it with these options as PEFT has them")
    if not convertible(adapter):
        named = [method.name() for method in adapter.methods]
        raise Refusal(
            "no-peft-form", "PEFT has no layout for this adapter", found=named, fix="--to lora, if it is a sum"
        )
    return adapter, list(notes)


def convertible(adapter: Adapter) -> bool:
    """Whether PEFT has a folder for this adapter's method, or for its methods together."""
    if len(adapter.methods) > 1:
        return peft_together.together(adapter.methods, adapter.shape)
    method = adapter.methods[0]
    kind = method.to_peft(adapter.shape).get("peft_type", method.peft_type)
    return not str(kind).startswith("HALTER")
