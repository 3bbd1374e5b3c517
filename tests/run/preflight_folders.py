"""Model folders with every mistake one could make, cheap on disk however large they say they are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from halter.adapters.adapter import adapt
from halter.files.writing import write_tensors
from halter.model.config import ModelConfig
from halter.pretrained.load import load_model

OWN_TEMPLATE = "{% for m in messages %}{{ '<s>' + m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
HUGE = {
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
"""Llama 3.1 405B's sizes: 810 GB of weights, which no machine of these tests holds."""


def tokenizer_files(source: Path, folder: Path, settings: dict[str, Any] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "special_tokens_map.json", "generation_config.json"):
        shutil.copy(source / name, folder / name)
    old = json.loads((source / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**old, **(settings or {})}))


def config_file(source: Path, folder: Path, changes: dict[str, Any]) -> ModelConfig:
    config = {**json.loads((source / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return ModelConfig.from_hf(config)


def huge_model(source: Path, folder: Path, settings: dict[str, Any]) -> None:
    """A whole folder of a 405B model, its weights a hole in a file."""
    tokenizer_files(source, folder, settings)
    shapes = config_file(source, folder, HUGE).tensor_shapes()
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 2 * shape.numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + at)


def small_model(
    source: Path, folder: Path, settings: dict[str, Any] | None = None, edit: Any = None, **changes: Any
) -> ModelConfig:
    """The source's tokenizer and configuration with random weights; ``edit`` may change {name: tensor}."""
    tokenizer_files(source, folder, settings)
    config = config_file(source, folder, changes)
    generator = torch.Generator().manual_seed(0)
    tensors = {n: torch.randn(tuple(s), generator=generator) * 0.1 for n, s in config.tensor_shapes().items()}
    if edit is not None:
        edit(tensors)
    write_tensors(folder / "model.safetensors", tensors)
    return config


def adapter_of(base: Path, folder: Path, **facts: Any) -> Path:
    """A LoRA adapter that knows its base."""
    model = load_model(base, "float32", device="cpu", say=lambda _: None)
    adapter = adapt(model, "lora", r=2, alpha=4.0)
    adapter.facts = {"base": {"name": str(base), "fingerprint": model.identity.fingerprint}, **facts}
    adapter.save(folder)
    return folder


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def talks(count: int = 8) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"It is {n}."}]}
        for n in range(count)
    ]
