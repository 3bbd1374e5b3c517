"""Adapter folders: adapter_config.json and adapter_model.safetensors as PEFT writes them, halter.json beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halter.errors import Refusal
from halter.files.reading import read_json
from halter.files.tensors import read_tensors
from halter.files.writing import new_folder, write_json, write_tensors
from halter.methods.adapter import Adapter
from halter.methods.method import Method, find, names
from halter.model.decoder import Decoder

CONFIG, TENSORS, FACTS = "adapter_config.json", "adapter_model.safetensors", "halter.json"
PREFIX = "base_model.model."
SEVERAL = "HALTER_SEVERAL"


def save_adapter(adapter: Adapter, folder: str | Path) -> None:
    """Write the adapter's folder, whole or not at all. Refusal ``already-exists`` where the folder does."""
    from halter import __version__

    config: dict[str, Any] = {
        "base_model_name_or_path": adapter.facts.get("base", {}).get("name"),
        "inference_mode": True,
        "revision": adapter.facts.get("base", {}).get("revision"),
    }
    if len(adapter.methods) == 1:
        config |= {"peft_type": adapter.methods[0].peft_type, **adapter.methods[0].to_peft(adapter.shape)}
    else:
        config["peft_type"] = SEVERAL
    methods = [{"name": method.name(), **asdict(method)} for method in adapter.methods]
    servable = sorted(set.intersection(*(set(method.servable_by) for method in adapter.methods)))
    facts = {"halter_version": __version__, "methods": methods, "servable_by": servable, **adapter.facts}
    with new_folder(folder) as temporary:
        write_tensors(temporary / TENSORS, {PREFIX + name: tensor for name, tensor in state_of(adapter).items()})
        write_json(temporary / CONFIG, config)
        write_json(temporary / FACTS, facts)


def state_of(adapter: Adapter) -> dict[str, Tensor]:
    """{name in the adapter's file: tensor}, detached and on the CPU."""
    return {
        name: getattr(slot.piece, attribute).detach().cpu().contiguous()
        for name, slot, attribute in adapter.named_tensors()
    }


@torch.no_grad()
def restore(adapter: Adapter, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into the adapter. One Refusal (``adapter-mismatch``) names every missing, unexpected, misshapen and
    non-finite one, and nothing is half applied."""
    slots = {name: (slot, attribute) for name, slot, attribute in adapter.named_tensors()}
    wrong = [f"{name} is missing" for name in slots if name not in tensors]
    for name, tensor in tensors.items():
        if name not in slots:
            wrong.append(f"{name} is unexpected")
            continue
        slot, attribute = slots[name]
        shape = tuple(getattr(slot.piece, attribute).shape)
        if tuple(tensor.shape) != shape:
            wrong.append(f"{name} is {tuple(tensor.shape)}, not {shape}")
        elif not bool(torch.isfinite(tensor).all()):
            wrong.append(f"{name} holds numbers that are not finite")
    if wrong:
        raise Refusal("adapter-mismatch", "this adapter does not fit this model", where=where, offenders=wrong)
    for name, (slot, attribute) in slots.items():
        getattr(slot.piece, attribute).copy_(tensors[name])


def load_adapter(folder: str | Path, base: Decoder) -> Adapter:
    """Read an adapter folder, Halter's or PEFT's, and put it on ``base``.

    Refusals: ``not-an-adapter``, ``adapter-unsupported`` (needs what Halter lacks), ``adapter-mismatch`` (another
    model's), ``unknown-method``.
    """
    folder = Path(folder)
    absent = [name for name in (CONFIG, TENSORS) if not (folder / name).is_file()]
    if absent:
        raise Refusal("not-an-adapter", "this folder holds no adapter", where=str(folder), offenders=absent)
    facts = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    methods = _methods(read_json(folder / CONFIG), facts, folder)
    adapter = Adapter(base.config, methods).to(base.device)
    adapter.facts = {k: v for k, v in facts.items() if k not in ("halter_version", "methods", "servable_by")}
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in read_tensors(folder / TENSORS).items()}
    restore(adapter, tensors, str(folder))
    return adapter


def _methods(config: dict[str, Any], facts: dict[str, Any], folder: Path) -> list[Method]:
    if facts.get("methods"):
        return [_from_options(dict(options)) for options in facts["methods"]]
    kind = config.get("peft_type")
    for name in names():
        if find(name).peft_type == kind:
            return [find(name).from_peft(config)]
    known = ", ".join(find(name).peft_type for name in names())
    raise Refusal("adapter-unsupported", f"peft_type {kind!r} is not known", where=str(folder), expected=known)


def _from_options(options: dict[str, Any]) -> Method:
    kind = find(options.pop("name"))
    known = kind.__dataclass_fields__
    strange = [name for name in options if name not in known]
    if strange:
        raise Refusal(
            "adapter-unsupported", f"{kind.name()} options of another Halter version", offenders=strange
        )
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()})


def base_config(folder: str | Path) -> dict[str, Any]:
    """What halter.json (or adapter_config.json) says of the base: at least ``name``; {} where nothing is said."""
    folder = Path(folder)
    facts = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    if facts.get("base"):
        return dict(facts["base"])
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    name = config.get("base_model_name_or_path")
    return {"name": name, "revision": config.get("revision")} if name else {}
