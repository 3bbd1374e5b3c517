"""A merged model in 4 bits, only when asked for in so many words: most of a small update does not survive it.

Codes sit exactly on grid points, so a change smaller than half a step falls into a dead zone: of an update of 1 % of
the weights' norm as little as 1.4 % is left when it is merged into weights that were in 4 bits before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from halter.export.gap import Gap, gap, logits_on
from halter.export.merge import base_of, is_quantised, sample_rows, source_of, tokenizer_of, unties, write_template
from halter.files.folders import new_folder
from halter.files.writing import copy_file, write_json, write_tensors
from halter.methods.adapter import Adapter
from halter.model.decoder import Decoder
from halter.model.linear import Linear
from halter.model.nf4_linear import NF4Linear
from halter.model.places import LINEARS, path
from halter.pretrained.load import load_model
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
    have changed, 1 where all of it survived. ``gap`` is to base + adapter, ``trained_gap`` to the 4-bit model that was
    trained, where there was one."""

    shares: dict[str, float]
    gap: Gap
    trained_gap: Gap | None

    @property
    def mean(self) -> float:
        return sum(self.shares.values()) / len(self.shares) if self.shares else 1.0

    def __str__(self) -> str:
        lines = ["the update touches no 4-bit module"]
        if self.shares:
            worst = min(self.shares, key=lambda name: self.shares[name])
            lines = [
                f"{self.mean:.1%} of the update survives in 4 bits on average, {self.shares[worst]:.1%} at {worst}"
            ]
        lines.append(f"merged 4-bit model against base + adapter: {self.gap}")
        if self.trained_gap is not None:
            lines.append(f"merged 4-bit model against the 4-bit model that was trained: {self.trained_gap}")
        return "\n".join(lines)


@torch.no_grad()
def merge_4bit(
    model: Decoder,
    adapter: Adapter,
    folder: str | Path,
    *,
    base: Literal["original", "dequantised"] = "original",
    source: str | Path | None = None,
) -> Survival:
    """Fold ``adapter`` into ``model``, quantise to NF4 (double quantised), write a folder that transformers opens.

    ``base`` and ``source`` as in ``merge``: under a 4-bit model, what the update is added to before it is rounded.
    Refusals ``cannot-merge``, ``merge-source`` and ``already-exists``. The whole 4-bit model is in memory at once."""
    origin = source_of(adapter, source)
    tokenizer = tokenizer_of(origin)
    reference = base_of(model, base, origin)
    on_grid = is_quantised(model) and base == "dequantised"
    untied = unties(adapter)
    config = replace(model.config, tied=False) if untied else model.config
    tensors: dict[str, torch.Tensor] = {}
    shares: dict[str, float] = {}
    for layer, place, module in reference.places():
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
        # Against the base in 4 bits: what it already lost is not the update's loss.
        before = weight if on_grid else NF4Linear.quantize(weight.to(model.dtype)).weight().float()
        if (share := _survives(merged - weight, stored.weight().float() - before)) is not None:
            shares[name] = share
        tensors |= {f"{name}.{key}": tensor for key, tensor in stored.to_bitsandbytes().items()}
    with new_folder(folder) as inside:
        write_tensors(inside / "model.safetensors", tensors)
        written = replace(config, dtype=str(model.dtype).removeprefix("torch.")).to_hf()
        rule = {**RULE, "bnb_4bit_compute_dtype": str(model.dtype).removeprefix("torch.")}
        write_json(inside / "config.json", written | {"quantization_config": rule})
        for file in [*(tokenizer.files if tokenizer else ()), *licence_files(origin)]:
            copy_file(file, inside / file.name, replace=True)
        write_template(inside, adapter, tokenizer)
        rows = sample_rows(tokenizer, model.config)
        got = logits_on(load_model(inside, model.dtype, None, model.device, say=lambda _: None), rows)
    trained = gap(logits_on(model, rows, adapter), got) if is_quantised(model) else None
    return Survival(shares, gap(logits_on(reference, rows, adapter), got), trained)


def _survives(update: Tensor, left: Tensor) -> float | None:
    """The share of the update that is left; None where there is no update."""
    return float((left * update).sum() / (update * update).sum()) if float(update.norm()) > 0 else None
