"""A model as a folder that transformers opens: config, safetensors in shards, tokenizer, the base's licence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halter.errors import HalterError
from halter.files.checkpoint import INDEX, SINGLE
from halter.files.folders import new_folder
from halter.files.meta import is_meta_folder
from halter.files.meta_families import generation_config
from halter.files.reading import read_json
from halter.files.tensors import TensorSpec
from halter.files.writing import TensorSink, copy_file, stream_tensors, write_json
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.linear import bias_of
from halter.pretrained.device import dtype_name

MAX_SHARD_BYTES = 5_000_000_000
LICENCE = re.compile(r"(licen[cs]e|use_policy|notice)", re.IGNORECASE)
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_GENERATION = "generation_config.json"


def save_model(
    tensors: Decoder | Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    folder: str | Path,
    tokenizer_files: Sequence[str | Path] = (),
    *,
    original: str | Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model into a new folder, which appears whole or not at all.

    ``tensors``: a Decoder, or (Hugging Face name, tensor) pairs in any order, taken one at a time; they must be those
    of ``config``, each once. ``dtype``: what they are cast to and stored in; default a Decoder's, else config's.
    ``original``: the folder it came from, whose generation settings and licence files are copied (they must travel
    with the weights); ``tokenizer_files``: Tokenizer.files. A folder for a config that is tied holds no lm_head.

    Refusal ``already-exists``. HalterError: a tensor missing or no longer finite in ``dtype``, or the disk failed.
    KeyError and ValueError for a name or shape that the config does not have.
    """
    with new_folder(folder) as inside:
        write_model(
            tensors, config, inside, tokenizer_files, original=original, dtype=dtype, max_shard_bytes=max_shard_bytes
        )


def write_model(
    tensors: Decoder | Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    inside: Path,
    tokenizer_files: Sequence[str | Path] = (),
    *,
    original: str | Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """save_model's work in a folder that exists, for callers that prove the result before they let it appear."""
    if dtype is None:
        dtype = tensors.dtype if isinstance(tensors, Decoder) else getattr(torch, config.dtype)
    source = None if original is None else Path(original)
    layout = {name: TensorSpec(tuple(shape), dtype) for name, shape in config.tensor_shapes().items()}
    shards = _shards(layout, max_shard_bytes)
    with ExitStack() as stack:
        sinks: dict[str, TensorSink] = {}
        for shard, part in shards.items():
            sink = stack.enter_context(stream_tensors(inside / shard, part))
            sinks |= dict.fromkeys(part, sink)
        for name, tensor in tensors_of(tensors) if isinstance(tensors, Decoder) else tensors:
            sinks[name].put(name, _cast(name, tensor, dtype))
    if len(shards) > 1:
        total = sum(spec.nbytes for spec in layout.values())
        table = {name: shard for shard, part in shards.items() for name in part}
        write_json(inside / INDEX, {"metadata": {"total_size": total}, "weight_map": table})
    config_dtype = replace(config, dtype=dtype_name(dtype))
    write_json(inside / "config.json", config_dtype.to_hf())
    beside = {Path(f).name: Path(f) for f in tokenizer_files}
    write_json(inside / _GENERATION, _generation_config(source, beside.pop(_GENERATION, None), config))
    for file in [*beside.values(), *licence_files(source), *processor_files(source, config)]:
        copy_file(file, inside / file.name, replace=True)


def tensors_of(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, dense tensor) of everything a Decoder holds, quantised weights dequantised one at a time."""
    for place, module in model.places():
        if place.tied:
            continue
        yield place.weight_name, module.weight()  # type: ignore[operator]
        if (bias := bias_of(module)) is not None:
            yield f"{place.path}.bias", bias


def licence_files(folder: Path | None) -> list[Path]:
    """LICENSE*, USE_POLICY* and NOTICE* of a model's folder, and of the one above Meta's ``original``."""
    if folder is None:
        return []
    folders = [folder.parent, folder] if folder.name == "original" else [folder]
    return [p for f in folders for p in sorted(f.iterdir()) if LICENCE.match(p.name) and p.is_file()]


def processor_files(folder: Path | None, config: ModelConfig) -> list[Path]:
    """What transformers makes pictures of a folder's model by; of its text alone nothing."""
    if folder is None or len(config.layout.groups) == 1:
        return []
    return [folder / name for name in PROCESSOR if (folder / name).is_file()]


def _shards(layout: Mapping[str, TensorSpec], limit: int) -> dict[str, dict[str, TensorSpec]]:
    """{file name: its tensors}: filled in order up to ``limit`` bytes; a larger tensor has a file of its own."""
    parts: list[dict[str, TensorSpec]] = [{}]
    size = 0
    for name, spec in layout.items():
        if parts[-1] and size + spec.nbytes > limit:
            parts.append({})
            size = 0
        parts[-1][name] = spec
        size += spec.nbytes
    if len(parts) == 1:
        return {SINGLE: parts[0]}
    return {f"model-{i:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts, 1)}


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().to(dtype)
    if not bool(torch.isfinite(tensor).all()):
        raise HalterError(f"{name} holds numbers that are not finite in {dtype_name(dtype)}; nothing was written")
    return tensor


def _generation_config(original: Path | None, beside: Path | None, config: ModelConfig) -> dict[str, Any]:
    """The original's, else the one among the tokenizer's files, else what the layout or the config implies."""
    if original is not None and (original / _GENERATION).is_file():
        return read_json(original / _GENERATION)
    if beside is not None:
        return read_json(beside)
    if original is not None and is_meta_folder(original):
        return generation_config(original, config.vocab_size)
    ends = list(config.eos_token_ids)
    known = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": config.pad_token_id,
    }
    return {key: value for key, value in known.items() if value is not None}
