"""Merging: the base's weights with an adapter folded in, as a folder that any LLaMA tool opens, proven beforehand.

The update is made in float32 and rounded once. An adapter trained over a quantised base was fitted to the dequantised
weights; merged into the original 16-bit ones (the default) the model shifts by the quantisation error, which is
measured and said, and ``base="dequantised"`` merges into what it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from halter.adapters.adapter import Adapter
from halter.errors import Refusal
from halter.export.foldable import biased, refuse_unfoldable, unties
from halter.export.gap import SAMPLE, Gap, gap, logits_on
from halter.export.proof import prove_fold, prove_written
from halter.files.folders import new_folder
from halter.files.writing import write_text
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.linear import bias_of
from halter.model.storages import held_in
from halter.pretrained.device import dtype_name
from halter.pretrained.load import load_model, map_model
from halter.pretrained.save import MAX_SHARD_BYTES, tensors_of, write_model
from halter.text.tokenizer import Tokenizer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What weights are written in."""
SHIFT = 1e-3
"""Nats by which a merged model may be further from the trained one than from base + adapter without a warning."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did: the gap to base + adapter, and, over a quantised base, to the model that was trained."""

    folder: Path
    gap: Gap
    trained_gap: Gap | None
    untied: bool
    stored: str
    """The dtype that its weights are written in."""

    def __str__(self) -> str:
        lines = [f"merged model ({self.stored}) against base + adapter: {self.gap}"]
        if self.trained_gap is not None:
            lines.append(f"merged model against the quantised model that was trained: {self.trained_gap}")
            if self.trained_gap.kl > self.gap.kl + SHIFT:
                lines.append(
                    "warning: these are the original 16-bit weights, and the adapter was fitted to quantised ones; "
                    "--base dequantised merges into what was trained. Score both: halter evaluate"
                )
        if self.trained_gap is None and self.gap.kl > SHIFT and self.stored != "float32":
            lines.append(
                f"warning: rounding the new weights to {self.stored} moved the model by this much; the fold itself is "
                "exact. Score both: halter evaluate"
            )
        if self.untied:
            lines.append("the head is no longer tied to the embeddings: the folder holds both")
        return "\n".join(lines)


def merge(
    model: Decoder,
    adapter: Adapter,
    folder: str | Path,
    *,
    base: Literal["original", "dequantised"] = "original",
    source: str | Path | None = None,
    dtype: torch.dtype | None = None,
    allow_gap: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> MergeReport:
    """Write the merged model into a new folder, weights in ``dtype``; not given, in that which the checkpoint has.

    ``model`` is the base that the adapter was trained over. ``source``: the base's folder, for its tokenizer and
    licence files and, under a quantised model with ``base="original"``, for its 16-bit weights; default: what the
    adapter remembers.
    A chat template that the adapter was trained with, and which is not the checkpoint's own, goes along.
    The folder appears only if the folded weights compute in float32 what base + adapter do, within 1e-4, and the
    folder, read back, computes what was written (HalterError ``merge gap`` otherwise, unless ``allow_gap``).
    Refusals: ``cannot-merge`` names the places whose effect is no change of weights (of several methods at one place
    the weight is made that they compute together); ``merge-source``;
    ``already-exists``.
    """
    refuse_unfoldable(adapter)
    origin = source_of(adapter, source)
    quantised = is_quantised(model)
    reference = base_of(model, base, origin)
    tokenizer = tokenizer_of(origin)
    rows = sample_rows(tokenizer, model.config)
    wanted = logits_on(reference, rows, adapter)
    trained = logits_on(model, rows, adapter) if quantised else None
    untied = unties(adapter)
    config = biased(replace(model.config, tied=False) if untied else model.config, adapter)
    stored = dtype or getattr(torch, config.dtype, reference.dtype)
    stored = stored if stored in DTYPES else reference.dtype
    del model
    if not allow_gap:
        prove_fold(reference, adapter, config, untied, rows)
    with new_folder(folder) as inside:
        files = () if tokenizer is None else tokenizer.files
        tensors = folded(reference, adapter, config, untied)
        write_model(tensors, config, inside, files, original=origin, dtype=stored, max_shard_bytes=max_shard_bytes)
        write_template(inside, adapter, tokenizer)
        got = logits_on(_read_back(inside, reference, stored), rows)
        if not allow_gap:
            prove_written(got, reference, adapter, config, untied, stored, rows)
    found = gap(wanted, got)
    shift = None if trained is None else gap(trained, got)
    return MergeReport(Path(folder), found, shift, untied, dtype_name(stored))


def write_template(inside: Path, adapter: Adapter, tokenizer: Tokenizer | None) -> None:
    """The template that the adapter was trained with, where transformers and Halter look first."""
    trained, text = adapter.facts.get("template"), adapter.facts.get("template_source")
    if not trained or not text:
        return
    own = None if tokenizer is None or not tokenizer.template_in_files else tokenizer.chat_template
    if own is None or own.digest != trained.get("digest"):
        write_text(inside / "chat_template.jinja", text, replace=True)


def folded(base: Decoder, adapter: Adapter, config: ModelConfig, untied: bool = False) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, float32 tensor) of the base with the adapter in it, one module at a time.

    ``config`` is the merged model's; where it has biases that nothing brings, they are zero.
    """
    for place, module in base.places():
        name = place.path
        if place.tied and not untied:
            continue
        bias = bias_of(module)
        weight, bias = adapter.fold(
            name,
            module.weight().float(),  # type: ignore[operator]
            None if bias is None else bias.float(),
        )
        yield place.weight_name, weight.detach()
        if bias is None and config.layout.at(place.layer, place.name).bias:
            bias = weight.new_zeros(len(weight))
        if bias is not None:
            yield f"{name}.bias", bias.detach()


def is_quantised(model: Decoder) -> bool:
    """Whether linear layers, or experts, are stored in fewer bits than they are computed in."""
    return held_in(model) is not None


def base_of(model: Decoder, base: Literal["original", "dequantised"], origin: Path | None) -> Decoder:
    """What an adapter trained over ``model`` is folded into: itself where it is dense, else as ``merge`` says."""
    if not is_quantised(model):
        return model
    if base == "original":
        return load_model(_needed(origin), model.dtype, None, model.device, say=lambda _: None)
    return _dense(model)


def _read_back(inside: Path, reference: Decoder, stored: torch.dtype) -> Decoder:
    """The merged model; on a CPU as pages of its files, so that base and merged model need not be in memory at once."""
    if reference.device.type == "cpu" and stored == reference.dtype:
        return map_model(inside, stored)
    return load_model(inside, reference.dtype, None, reference.device, say=lambda _: None)


def _dense(model: Decoder) -> Decoder:
    """The same weights, dequantised."""
    dense = Decoder(model.config, model.dtype)
    for name, tensor in tensors_of(model):
        dense.set_tensor(name, tensor)
    return dense


def source_of(adapter: Adapter, source: str | Path | None) -> Path | None:
    known = source or adapter.facts.get("base", {}).get("folder")
    return Path(known) if known is not None and Path(known).is_dir() else None


def _needed(origin: Path | None) -> Path:
    if origin is None:
        raise Refusal(
            "merge-source",
            "merging into the original 16-bit weights needs the base's folder, and it is not known",
            fix='give source=FOLDER, or base="dequantised" to merge into the quantised weights as they are',
        )
    return origin


def tokenizer_of(origin: Path | None) -> Tokenizer | None:
    """The base's, where it has one; weights alone can be merged too."""
    try:
        return None if origin is None else Tokenizer.from_folder(origin)
    except Refusal as refusal:
        if refusal.id == "tokenizer-missing":
            return None
        raise


def sample_rows(tokenizer: Tokenizer | None, config: ModelConfig) -> list[list[int]]:
    """Token rows to compare on: sample text where a tokenizer is at hand, and ids spread over the vocabulary."""
    spread = torch.linspace(0, config.vocab_size - 1, min(32, config.context)).long().tolist()
    if tokenizer is None:
        return [spread]
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [(start + tokenizer.encode(SAMPLE))[: min(128, config.context)], spread]
