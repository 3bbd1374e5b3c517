"""A comparison that takes seconds: a random LLaMA of width 16 that learns to answer with the word it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from halter.comparison.loop import compare
from halter.comparison.options import CompareOptions
from halter.pretrained.save import write_model
from halter.text.tokenizer import Tokenizer
from tests import tiny, tiny_tokenizers

WORDS = ("park", "girl", "dog", "fox", "time", "play")
OPTIONS: dict[str, Any] = {
    "methods": ("lora", "llama_adapter"),
    "precisions": ("float32",),
    "tokens": 600,
    "seeds": 2,
    "search_trials": 2,
    "questions": 4,
    "max_new_tokens": 4,
    "resamples": 50,
    "skip_memory": True,
}


def base(folder: Path) -> Path:
    """A checkpoint folder."""
    tiny_tokenizers.llama3(folder)
    size = Tokenizer.from_folder(folder, {}).vocab_size
    shape = tiny.config(dim=16, heads=2, kv_heads=2, ffn_dim=24, vocab_size=size, context=128, dtype="float32")
    write_model(tiny.decoder(shape), shape, folder, list(folder.iterdir()))
    return folder


def rows(path: Path, start: int, count: int) -> str:
    lines = [{"prompt": f"{n} {WORDS[n % 6]}", "completion": f" {WORDS[n % 6]}"} for n in range(start, start + count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def source(folder: Path) -> dict[str, Any]:
    """The recipe, its base and files below ``folder``."""
    folder.mkdir(exist_ok=True)
    return {
        "model": {"path": str(base(folder / "base")), "device": "cpu"},
        "data": {"train": rows(folder / "train.jsonl", 0, 30), "validation": rows(folder / "val.jsonl", 100, 6)},
        "train": {"per_device_train_batch_size": 6},
    }


def options(folder: Path, **changes: Any) -> CompareOptions:
    given: dict[str, Any] = {**OPTIONS, "test": rows(folder / "test.jsonl", 200, 9)}
    return CompareOptions(**(given | changes))


def run(folder: Path, recipe: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], list[str]]:
    """(the record, what was said) of a comparison whose files are in ``folder``/out."""
    said: list[str] = []
    variants = changes.pop("variants", {})
    return compare(recipe, options(folder, **changes), variants, folder / "out", said.append), said
