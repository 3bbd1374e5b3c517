"""Writing adapter folders: adapter_config.json and adapter_model.safetensors as PEFT writes them, halter.json beside
them, and manifest.json, against which every byte is compared before a tensor is handed out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from halter.adapters import peft_together
from halter.adapters.folder_files import CONFIG, FACTS, TENSORS
from halter.adapters.former import how_joined
from halter.adapters.wrapped import NAMING, PATTERNS
from halter.contract.method import PEFT_PREFIX as PREFIX
from halter.files.folders import new_folder
from halter.files.manifest import MANIFEST, write_manifest
from halter.files.writing import write_json, write_tensors
from halter.model.experts import EXPERTS
from halter.version import __version__

if TYPE_CHECKING:
    from halter.adapters.adapter import Adapter

SEVERAL, COMPRESSED = "HALTER_SEVERAL", "HALTER_COMPRESSED"


def save_adapter(adapter: Adapter, folder: str | Path, packed: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapter's folder, whole or not at all. Refusal ``already-exists`` where the folder does.

    ``packed``: its tensors in fewer bits under their own names (files.few_bits), which only Halter reads.
    """
    adapter = adapter.plain()
    layout = adapter.shape.layout
    config: dict[str, Any] = {
        "base_model_name_or_path": adapter.facts.get("base", {}).get("name"),
        "inference_mode": True,
        "revision": adapter.facts.get("base", {}).get("revision"),
    }
    servable = sorted(set.intersection(*(set(method.servable_by) for method in adapter.methods)))
    if len(adapter.methods) == 1:
        config |= {"peft_type": adapter.methods[0].peft_type, **adapter.methods[0].to_peft(adapter.shape)}
    elif peft_together.together(adapter.methods, adapter.shape):
        config |= peft_together.to_peft(adapter.methods, adapter.shape)
        servable = ["halter", "peft"]
    else:
        config["peft_type"], servable = SEVERAL, ["halter"]
    if str(config["peft_type"]).startswith("HALTER"):
        servable = ["halter"]
    elif layout.of(EXPERTS) or len({block.make for block in layout.blocks}) > 1:
        # what other programs serve was looked up, and tried, for dense text models alone
        servable = [who for who in servable if who in ("halter", "peft")]
    methods = [{"name": method.name(), **asdict(method)} for method in adapter.methods]
    facts = {
        "halter_version": __version__,
        "methods": methods,
        "servable_by": servable,
        "manifest": MANIFEST,
        **how_joined(adapter),
        **adapter.facts,
    }
    if packed is not None:
        config["peft_type"] = COMPRESSED
        facts |= {"packed": True, "servable_by": ["halter"]}
    tensors = _peft_names(adapter) if packed is None else packed
    if layout.in_memory and packed is None:
        tensors = {PREFIX + layout.peft_path(name.removeprefix(PREFIX)): tensor for name, tensor in tensors.items()}
        config = _as_in_memory(config, adapter)
    with new_folder(folder) as temporary:
        write_tensors(temporary / TENSORS, tensors)
        write_json(temporary / CONFIG, config)
        write_json(temporary / FACTS, facts)
        write_manifest(temporary, (TENSORS, CONFIG, FACTS))


def _peft_names(adapter: Adapter) -> dict[str, Tensor]:
    own = state_of(adapter)
    if len(adapter.methods) == 1:
        return adapter.methods[0].to_peft_tensors(own, adapter.shape)
    if peft_together.together(adapter.methods, adapter.shape):
        return peft_together.to_peft_tensors(own, adapter.methods, adapter.shape)
    return {PREFIX + name: tensor for name, tensor in own.items()}


def _as_in_memory(config: Mapping[str, Any], adapter: Adapter) -> dict[str, Any]:
    """PEFT's options with its paths. An expression, which is over paths as they are here, becomes what is adapted."""
    layout, told = adapter.shape.layout, dict(config)
    for key in NAMING:
        if isinstance(given := config.get(key), list):
            told[key] = [layout.peft_path(item) for item in given]
    target, excluded = config.get("target_modules"), config.get("exclude_modules")
    if isinstance(excluded, str) or (isinstance(target, str) and target != "all-linear"):
        told["target_modules"] = list(dict.fromkeys(layout.peft_path(slot.path) for slot in adapter.slots))
        told["exclude_modules"] = None
    for key in PATTERNS:
        if isinstance(given := config.get(key), dict):
            told[key] = {layout.peft_path(item): value for item, value in given.items()}
    return told


def state_of(adapter: Adapter) -> dict[str, Tensor]:
    """{name in the adapter's file: tensor}, detached and on the CPU."""
    return {
        name: slot.tensor(attribute).detach().cpu().contiguous() for name, slot, attribute in adapter.named_tensors()
    }
