"""A merged model in 4 or 8 bits, only when asked for in so many words: most of a small update does not survive 4.

Codes sit exactly on grid points, so a change smaller than half a step falls into a dead zone: of an update of 1 % of
the weights' norm as little as 1.4 % is left when it is merged into weights that were in 4 bits before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from halter.adapters.adapter import Adapter
from halter.export.foldable import biased, refuse_unfoldable, unties
from halter.export.gap import Gap, gap, logits_on
from halter.export.merge import base_of, sample_rows, source_of, tokenizer_of, write_template
from halter.files.folders import new_folder
from halter.files.writing import copy_file, write_json, write_tensors
from halter.model.decoder import Decoder
from halter.model.layout import EXPERTS, LINEAR
from halter.model.linear import bias_of
from halter.model.storages import BITS, Quantize, held_in, quantised
from halter.pretrained.load import load_model
from halter.pretrained.save import licence_files, processor_files

_NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
RULES: dict[Quantize, dict[str, object]] = {
    "nf4": {"quant_method": "bitsandbytes", **_NF4},
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}
"""What config.json says of the storage, for transformers and bitsandbytes."""


@dataclass(frozen=True)
class Survival:
    """How much of the update is left after rounding to ``kind``: per module the projection of what changed on what
    should have changed, 1 where all of it survived. ``gap`` is to base + adapter, ``trained_gap`` to the quantised
    model that was trained, where there was one."""

    kind: Quantize
    shares: dict[str, float]
    gap: Gap
    trained_gap: Gap | None
    experts: bool = False
    """Whether the model has routed experts, which are written as they are computed with."""

    @property
    def mean(self) -> float:
        return sum(self.shares.values()) / len(self.shares) if self.shares else 1.0

    def __str__(self) -> str:
        bits = BITS[self.kind]
        lines = [f"the update touches no module that is held in {bits}"]
        if self.shares:
            worst = max(self.shares, key=lambda name: abs(self.shares[name] - 1))
            lines = [
                f"rounded to {bits} the update is {self.mean:.1%} of what it was on average (100%: unchanged), "
                f"{self.shares[worst]:.1%} at {worst}"
            ]
        lines.append(f"merged model in {bits} against base + adapter: {self.gap}")
        if self.experts:
            lines.append(
                f"routed experts and routers are not in {bits}; Halter opens this folder, transformers does not: of "
                "a Llama 4 in few bits it wants each expert as a layer of its own. For transformers merge in 16 bits, "
                "and let it quantise while it loads"
            )
        if self.trained_gap is not None:
            lines.append(f"merged model in {bits} against the quantised model that was trained: {self.trained_gap}")
        return "\n".join(lines)


@torch.no_grad()
def merge_quantised(
    model: Decoder,
    adapter: Adapter,
    folder: str | Path,
    kind: Quantize = "nf4",
    *,
    base: Literal["original", "dequantised"] = "original",
    source: str | Path | None = None,
) -> Survival:
    """Fold ``adapter`` into ``model``, quantise to ``kind`` (NF4 double quantised), write a folder that transformers
    opens, unless the model has routed experts, which are left as they are (``Survival.experts``).

    ``base`` and ``source`` as in ``merge``: under a quantised model, what the update is added to before it is rounded.
    Refusals ``cannot-merge``, ``merge-source`` and ``already-exists``. The whole merged model is in memory at once."""
    refuse_unfoldable(adapter)
    origin = source_of(adapter, source)
    tokenizer = tokenizer_of(origin)
    reference = base_of(model, base, origin)
    trained_in = held_in(model)
    on_grid = kind in (held_in(reference), trained_in if base == "dequantised" else None)
    untied = unties(adapter)
    config = biased(replace(model.config, tied=False) if untied else model.config, adapter)
    tensors: dict[str, torch.Tensor] = {}
    shares: dict[str, float] = {}
    for place, module in reference.places():
        if place.tied and not untied:
            continue
        name = place.path
        weight = module.weight().float()  # type: ignore[operator]
        bias = bias_of(module)
        merged, bias = adapter.fold(name, weight, None if bias is None else bias.float())
        if bias is None and config.layout.at(place.layer, place.name).bias:
            bias = weight.new_zeros(len(weight))
        if bias is not None:
            tensors[f"{name}.bias"] = bias.to(model.dtype)
        if place.kind != LINEAR or place.unquantised:
            tensors[place.weight_name] = merged.to(model.dtype).contiguous()
            continue
        stored = quantised(kind, merged.to(model.dtype))
        # Against the base in as few bits: what it already lost is not the update's loss.
        before = weight if on_grid else quantised(kind, weight.to(model.dtype)).weight().float()
        if (share := _survives(merged - weight, stored.weight().float() - before)) is not None:
            shares[name] = share
        tensors |= {f"{name}.{key}": tensor for key, tensor in stored.to_bitsandbytes().items()}
    with new_folder(folder) as inside:
        write_tensors(inside / "model.safetensors", tensors)
        written = replace(config, dtype=str(model.dtype).removeprefix("torch.")).to_hf()
        computed = {"bnb_4bit_compute_dtype": str(model.dtype).removeprefix("torch.")} if kind == "nf4" else {}
        rule = {**RULES[kind], **computed}
        write_json(inside / "config.json", written | {"quantization_config": rule})
        for file in [*(tokenizer.files if tokenizer else ()), *licence_files(origin), *processor_files(origin, config)]:
            copy_file(file, inside / file.name, replace=True)
        write_template(inside, adapter, tokenizer)
        rows = sample_rows(tokenizer, model.config)
        got = logits_on(load_model(inside, model.dtype, None, model.device, say=lambda _: None), rows)
    trained = gap(logits_on(model, rows, adapter), got) if trained_in else None
    routed = bool(config.layout.of(EXPERTS))
    return Survival(kind, shares, gap(logits_on(reference, rows, adapter), got), trained, routed)


def _survives(update: Tensor, left: Tensor) -> float | None:
    """The share of the update that is left; None where there is no update."""
    return float((left * update).sum() / (update * update).sum()) if float(update.norm()) > 0 else None
