"""Adapters that are not of the model at hand: what is said of shapes that differ, and of weights that do."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from halter.errors import Refusal
from halter.methods.method import Method
from halter.model.decoder import Decoder

_SHAPES = re.compile(r"\S+ is \(([\d, ]*)\), not \(([\d, ]*)\)")


def misfit(folder: Path, wrong: Sequence[str], methods: Sequence[Method], facts: Mapping[str, Any]) -> Refusal:
    """Refusal ``adapter-mismatch`` of an adapter whose tensors are not those that its configuration asks for here.

    ``wrong`` are the lines of ``storage.faults``. There is no waiver for it.
    """
    what = "this adapter does not fit this model"
    rank = _other_rank(wrong, methods)
    if rank is not None:
        says, has = rank
        what = f"adapter_config.json says r {says}, and the tensors are of rank {has}"
        fix = f'write "r": {has} there, with the lora_alpha that it was trained with'
        return Refusal("adapter-mismatch", what, where=str(folder), found=wrong, fix=fix)
    base = facts.get("base")
    name = base.get("name") or base.get("folder") if isinstance(base, Mapping) else None
    told = f"it was trained on {name}: give that" if name else "give the model that it was trained on"
    return Refusal("adapter-mismatch", what, where=str(folder), found=wrong, fix=f"{told} (--model)")


def _other_rank(wrong: Sequence[str], methods: Sequence[Method]) -> tuple[int, int] | None:
    """(rank of the configuration, rank of the tensors) where nothing but one rank differs."""
    says = getattr(methods[0], "r", None) if len(methods) == 1 else None
    found: set[tuple[int, int]] = set()
    for line in wrong:
        match = _SHAPES.fullmatch(line)
        if match is None:
            return None
        here, there = ([int(n) for n in side.split(",") if n.strip()] for side in match.groups())
        differ = [(b, a) for a, b in zip(here, there) if a != b]
        if len(here) != len(there) or len(differ) != 1:
            return None
        found |= set(differ)
    return found.pop() if len(found) == 1 and {says} == {pair[0] for pair in found} else None


def refuse_other_base(facts: Mapping[str, Any], base: Decoder, folder: Path, allow: Collection[str]) -> None:
    """Refusal ``base-differs``; where neither the adapter nor the model says what its base is, there is no telling."""
    recorded = facts.get("base")
    if base.identity is None or not isinstance(recorded, dict) or "base-differs" in allow:
        return
    differences = base.identity.differences(recorded)
    if not differences:
        return
    name, then = recorded.get("name") or recorded.get("folder"), recorded.get("folder")
    what, expected = "this adapter was trained on other weights than these", f"the weights of {name}"
    fix = "give the model that it was trained on (--model), or train again on this one"
    here = getattr(base.identity, "folder", None)
    if then and here and (Path(here).resolve() == Path(then).resolve() or _moved(here, str(name), then)):
        what, expected = f"the weights in {name} have changed since this adapter was trained on them", ""
        fix = "put the earlier weights back, give a copy of them (--model), or train again"
    raise Refusal("base-differs", what, where=str(folder), found=differences, expected=expected, fix=fix, waivable=True)


def _moved(here: Path, name: str, then: str) -> bool:
    """Whether ``here`` is what the adapter calls its base, by a name that counts from where one is, and no other is."""
    return Path(here).resolve() == Path(name).resolve() and not Path(then).exists()
