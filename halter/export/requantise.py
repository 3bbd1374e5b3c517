"""A merged model in 4 bits, only when asked for in so many words: most of a small update does not survive it.

Codes sit exactly on grid points, so a change smaller than half a step falls into a dead zone: of an update of 1 % of
the weights' norm as little as 1.4 % is left when it is merged into weights that were in 4 bits before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from halter.export.merge import unties
from halter.files.writing import copy_file, new_folder, write_json, write_tensors
from halter.methods.adapter import Adapter
from halter.model.decoder import Decoder
from halter.model.linear import Linear
from halter.model.nf4_linear import NF4Linear
from halter.model.places import LINEARS, path
from halter.pretrained.save import licence_files

RULE = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}


@dataclass(frozen=True)
class Survival:
    """How much of the update is left after rounding to 4 bits: per module the projection of what changed on what should
    have changed, 1 where all of it survived."""

    shares: dict[str, float]

    @property
    def mean(self) -> float:
        return sum(self.shares.values()) / len(self.shares) if self.shares else 1.0

    def __str__(self) -> str:
        if not self.shares:
            return "the update touches no 4-bit module"
        worst = min(self.shares, key=lambda name: self.shares[name])
        return f"{self.mean:.1%} of the update survives in 4 bits on average, {self.shares[worst]:.1%} at {worst}"


@torch.no_grad()
def merge_4bit(
    model: Decoder, adapter: Adapter, folder: str | Path, files: tuple[Path, ...] = (), original: Path | None = None
) -> Survival:
    """Fold ``adapter`` into ``model``, quantise to NF4 (double quantised), write a folder that transformers opens.

    Refusals ``cannot-merge`` and ``already-exists``. The whole 4-bit model is in memory at once."""
    untied = unties(adapter)
    config = replace(model.config, tied=False) if untied else model.config
    tensors: dict[str, torch.Tensor] = {}
    shares: dict[str, float] = {}
    for layer, place, module in model.places():
        if place == "lm_head" and config.tied:
            continue
        name = path(layer, place)
        weight = module.weight().float()  # type: ignore[operator]
        bias = module.bias if isinstance(module, Linear) else None
        merged, bias = adapter.fold(name, weight, None if bias is None else bias.float())
        if bias is not None:
            tensors[f"{name}.bias"] = bias.to(model.dtype)
        if place not in LINEARS:
            tensors[f"{name}.weight"] = merged.to(model.dtype).contiguous()
            continue
        stored = NF4Linear.quantize(merged.to(model.dtype))
        update = merged - weight
        if float(update.norm()) > 0:
            # Against the base in 4 bits: what it already lost is not the update's loss.
            before = weight if isinstance(module, NF4Linear) else NF4Linear.quantize(weight.to(model.dtype)).weight()
            left = stored.weight().float() - before.float()
            shares[name] = float((left * update).sum() / (update * update).sum())
        tensors |= {f"{name}.{key}": tensor for key, tensor in stored.to_bitsandbytes().items()}
    with new_folder(folder) as inside:
        write_tensors(inside / "model.safetensors", tensors)
        written = replace(config, dtype=str(model.dtype).removeprefix("torch.")).to_hf()
        rule = {**RULE, "bnb_4bit_compute_dtype": str(model.dtype).removeprefix("torch.")}
        write_json(inside / "config.json", written | {"quantization_config": rule})
        for file in [*files, *licence_files(original)]:
            copy_file(file, inside / file.name, replace=True)
    return Survival(shares)
