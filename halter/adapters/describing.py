"""What an adapter folder is: its methods and their options, how large it is, and on which base it was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halter.adapters import folder_files, peft_together
from halter.adapters.wrapped import bare
from halter.contract.method import PEFT_PREFIX
from halter.files.names import EMBEDDING, HEAD
from halter.files.reading import junk_refused, read_json
from halter.parts.low_rank import FACTORS


def describe(place: Path) -> dict[str, Any]:
    """What an adapter folder is: method, options, numbers, rank, base, bytes. Refusals as load_adapter's."""
    facts = folder_files.checked_facts(place)
    specs = folder_files.shapes_in(place)
    with junk_refused("adapter-unreadable", "its configuration is not as it should be", place):
        methods = _methods(place, facts)
        base = folder_files.base_config(place)
        compression = facts.get("compression") or {}
        saved = tuple(read_json(place / folder_files.CONFIG).get(peft_together.SAVED) or ())
        copies = {n for n in (EMBEDDING, HEAD) if not n.removesuffix(".weight").endswith(saved)}
        counted = sum(_count(spec.shape) for name, spec in specs.items() if _own_name(name) not in copies)
        return {
            "folder": str(place),
            "method": " + ".join(str(m["name"]) for m in methods),
            "methods": methods,
            "parameters": int(compression.get("numbers", counted)) if facts.get("packed") else counted,
            "rank": _rank(methods, {name: spec.shape for name, spec in specs.items()}),
            "tensors": len(specs),
            "bits": int(compression.get("bits", 32)) if facts.get("packed") else _bits(specs),
            "bytes": sum(f.stat().st_size for f in place.iterdir() if f.is_file()),
            "base": {key: base.get(key) for key in ("name", "revision", "digest", "fingerprint") if base.get(key)},
            "servable_by": facts.get("servable_by") or (["halter", "peft"] if not facts else ["halter"]),
            "made_by": {k: facts[k] for k in ("combined", "compression", "imported") if facts.get(k)},
        }


def _own_name(name: str) -> str:
    """A tensor's name as the base's own, where the text stands alone."""
    return bare(name.removeprefix(PEFT_PREFIX)).replace(".base_layer.", ".")


def _methods(place: Path, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    if facts.get("methods"):
        return [dict(m) for m in facts["methods"]]
    config = read_json(place / folder_files.CONFIG)
    found = peft_together.read(config, None) or []
    saved = config.get(peft_together.SAVED) or ()
    made = [{"name": method.name(), **vars(method)} for method in found]
    if found:
        made += (
            [{"name": "full", "target_modules": [saved] if isinstance(saved, str) else list(saved)}] if saved else []
        )
        return made
    return [{"name": f"unknown ({config.get('peft_type')})"}]


def _rank(methods: Sequence[Mapping[str, Any]], shapes: Mapping[str, Sequence[int]]) -> str:
    """The rank, or the lowest and the highest; '' where there is none."""
    ranks = {shape[0] for name, shape in shapes.items() if name.endswith(tuple(FACTORS)) and shape}
    if not ranks:
        patterns = [m.get("rank_pattern") for m in methods]
        named = [(key, value) for m in methods for key, value in m.items() if key == "r" or key.endswith("_rank")]
        ranks = {value for _, value in named if isinstance(value, int) and value}
        ranks |= {r for p in patterns if isinstance(p, dict) for r in p.values()}
    low, high = min(ranks, default=0), max(ranks, default=0)
    return "" if not ranks else str(low) if low == high else f"{low}-{high}"


def _bits(specs: Mapping[str, Any]) -> int:
    return max((spec.dtype.itemsize * 8 for spec in specs.values()), default=32)


def _count(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
