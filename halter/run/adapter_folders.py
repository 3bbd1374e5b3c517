"""Adapter folders looked at without their base's weights: which there are, how two differ, and one to rewrite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from halter.adapters import folder_files, loading
from halter.adapters.adapter import Adapter
from halter.adapters.describing import describe
from halter.adapters.saving import state_of
from halter.contract.method import PEFT_PREFIX
from halter.errors import Refusal
from halter.files.nearby import adapter_folder, no_adapter
from halter.model.decoder import Decoder
from halter.parts.low_rank import FACTORS
from halter.pretrained.load import load_config
from halter.run import opening


def adapters_in(folders: Sequence[str | Path]) -> list[Path]:
    """Every adapter folder among these: run folders stand for their adapters, other folders for what lies in them.

    Refusal ``not-an-adapter`` names those in which there is none.
    """
    found: list[Path] = []
    empty: list[str] = []
    for folder in map(Path, folders):
        inside = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())] if folder.is_dir() else []
        here = [place for p in inside for place in (p, p / "adapter") if (place / folder_files.CONFIG).is_file()]
        found += here
        empty += [] if here else [str(folder)]
    if len(empty) == 1:
        raise no_adapter(Path(empty[0]))
    if empty:
        fix = "name run folders, or folders of adapters"
        raise Refusal("not-an-adapter", "there is no adapter in these folders", found=empty, fix=fix)
    return list(dict.fromkeys(found))


def adapter_place(folder: str | Path) -> Path:
    """The adapter folder that is meant: this one, or the adapter of this run. Refusal ``not-an-adapter``."""
    return adapter_folder(folder)


def open_without_weights(folder: str | Path, model: str | None = None) -> Adapter:
    """An adapter on the CPU, its base known by its configuration alone. Refusals as opening.find and load_adapter."""
    subject = opening.find(adapter_place(folder), model=model)
    shape = load_config(subject.base, subject.revision)
    assert subject.adapter is not None
    return loading.load_adapter(subject.adapter, Decoder(shape), say=lambda _: None)  # Adapter.notes has it


def numbers_of(place: Path, model: str | None = None) -> dict[str, Tensor]:
    """{name without PEFT's prefix: float32 tensor}. A packed folder needs its base's configuration for the shapes."""
    facts = folder_files.checked_facts(place)
    if facts.get("packed"):
        return state_of(open_without_weights(place, model))
    stored = folder_files.stored_tensors(place)
    return {name.removeprefix(PEFT_PREFIX): tensor.float() for name, tensor in stored.items()}


def difference(first: Path, second: Path, model: str | None = None) -> dict[str, Any]:
    """How two adapters differ: options, base, and tensor by tensor norms and cosine.

    Factors of equal products may differ by any rotation, so low-rank pairs are compared by their product as well:
    ``updates`` holds its cosine, which needs neither scale nor base.
    """
    one, two = describe(first), describe(second)
    a, b = numbers_of(first, model), numbers_of(second, model)
    options = {
        f"{m}.{key}": [mine.get(key), theirs.get(key)]
        for m, (mine, theirs) in enumerate(zip(one["methods"], two["methods"], strict=False))
        for key in sorted({*mine, *theirs})
        if _plain(mine.get(key)) != _plain(theirs.get(key))
    }
    for key in ("method", "base", "parameters", "rank", "bits"):
        if one[key] != two[key]:
            options[key] = [one[key], two[key]]
    shared = [name for name in a if name in b]
    misshapen = [n for n in shared if a[n].shape != b[n].shape]
    tensors = {name: compared(a[name], b[name]) for name in shared if name not in misshapen}
    totals = {key: sqrt(sum(t[key] ** 2 for t in tensors.values())) for key in ("norm_a", "norm_b", "difference")}
    return {
        "a": str(first),
        "b": str(second),
        "options": options,
        "only_a": [name for name in a if name not in b],
        "only_b": [name for name in b if name not in a],
        "misshapen": {name: [list(a[name].shape), list(b[name].shape)] for name in misshapen},
        "equal": not (options or misshapen or set(a) ^ set(b) or totals["difference"]),
        "total": totals,
        "tensors": tensors,
        "updates": update_cosines(a, b),
    }


def compared(a: Tensor, b: Tensor) -> dict[str, float]:
    """Norms, norm of the difference and cosine (0 where one is zero) of two tensors of one shape."""
    x, y = a.double().flatten(), b.double().flatten()
    norms = float(x.norm()), float(y.norm())
    cosine = float(x @ y) / (norms[0] * norms[1]) if all(norms) else 0.0
    return {"norm_a": norms[0], "norm_b": norms[1], "difference": float((x - y).norm()), "cosine": cosine}


def update_cosines(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, float]:
    """{module: cosine of B A and B' A'} of every pair that both have, by traces of small matrices."""
    found = {}
    for name in a:
        end = next((e for e in FACTORS if name.endswith(e)), None)
        other = "" if end is None else name.removesuffix(end) + FACTORS[end]
        if end is None or any(n not in side for n in (name, other) for side in (a, b)):
            continue
        ins, outs = [t.double() for t in (a[name], b[name])], [t.double() for t in (a[other], b[other])]
        fits = ins[0].shape[1:] == ins[1].shape[1:] and outs[0].shape[:1] == outs[1].shape[:1]
        if not fits or any(i.shape[0] != o.shape[1] for i, o in zip(ins, outs, strict=True)):
            continue

        def inner(i: int, j: int, ins: list[Tensor] = ins, outs: list[Tensor] = outs) -> float:
            return float(((outs[i].T @ outs[j]) * (ins[i] @ ins[j].T)).sum())

        norms = sqrt(max(0.0, inner(0, 0))) * sqrt(max(0.0, inner(1, 1)))
        found[name.removesuffix(f".{end}")] = inner(0, 1) / norms if norms else 0.0
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
