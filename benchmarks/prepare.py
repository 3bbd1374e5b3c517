"""What the sides load, made once: the random model as a folder, real rows as token ids, the first adapter of a row."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from workloads import Setting, Work, cache, first_adapter, ids, model_folder

import halter
from halter.model.config import ModelConfig, preset
from halter.pretrained.save import save_model
from halter.text.tokenizer import Tokenizer

STD = 0.02  # of every matrix: transformers' initializer_range, which is also what LLaMA's shapes say they begin with
ROWS = {"alpaca": "instruct/alpaca_5000.jsonl", "gsm8k": "eval/gsm8k_train_1000.jsonl"}
ALPACA = "Below is an instruction that describes a task. Write a response.\n\n### Instruction:\n{}\n\n### Response:\n"


def shape(setting: Setting) -> ModelConfig:
    """The preset with the setting's layers and changes; control tokens are the last ids of the vocabulary."""
    made = replace(preset(setting.preset), layers=setting.layers, dtype=setting.dtype, **setting.changes)
    first = ids(made.vocab_size)
    return replace(made, bos_token_id=first, eos_token_ids=(first + 1,), pad_token_id=first + 4)


def weights(config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Random tensors one at a time, seed 0."""
    generator = torch.Generator().manual_seed(0)
    for name, size in config.tensor_shapes().items():
        drawn = torch.ones(size) if len(size) == 1 else torch.randn(size, generator=generator) * STD
        yield name, drawn.to(getattr(torch, config.dtype))


def tokenizer_json(vocab_size: int) -> dict[str, object]:
    """A byte-level BPE of the right size: bytes, words that nothing spells, control tokens. Nothing is merged."""
    first = ids(vocab_size)
    vocab = {char: number for number, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())[:first])}
    vocab |= {f"w{number}": number for number in range(len(vocab), first)}
    names = {first: "<|begin_of_text|>", first + 1: "<|end_of_text|>", first + 4: "<|finetune_right_pad_id|>"}
    added = [
        {
            "id": n,
            "content": names.get(n, f"<|reserved_{n}|>"),
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for n in range(first, vocab_size)
    ]
    codec = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "merges": [],
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocab,
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": codec,
    }


def model(setting: Setting) -> Path:
    """The folder of the random model."""
    folder = model_folder(setting)
    if not folder.is_dir():
        cache().mkdir(parents=True, exist_ok=True)
        config = shape(setting)
        made = folder.with_name(f"{folder.name}.{os.getpid()}")
        save_model(weights(config), config, made)
        (made / "tokenizer.json").write_text(json.dumps(tokenizer_json(config.vocab_size)))
        (made / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "bos_token": "<|begin_of_text|>",
                    "eos_token": "<|end_of_text|>",
                    "pad_token": "<|finetune_right_pad_id|>",
                }
            )
        )
        made.replace(folder)
    return folder


def adapter(work: Work, setting: Setting) -> None:
    """The first adapter of a row, from seed 0, saved as PEFT reads it."""
    folder = first_adapter(work, setting)
    if work.method is None or work.method["name"] == "full" or folder.is_dir():
        return
    base, _ = halter.load(model(setting), say=lambda _: None)
    halter.adapt(base, work.method["name"], **{k: v for k, v in work.method.items() if k != "name"}).save(folder)


def real_rows(name: str) -> None:
    """Token ids of real rows and the length of their prompts, by the tokenizer of LLaMA 2 (HALTER_SHARED)."""
    path = cache() / f"{name}.jsonl"
    if name == "random" or path.is_file():
        return
    shared = Path(os.environ["HALTER_SHARED"]) / "data"
    tokenizer = Tokenizer.from_folder(shared / "models" / "llama2_tokenizer")
    lines = []
    for line in (shared / ROWS[name]).read_text().splitlines():
        row = json.loads(line)
        if name == "alpaca":
            asked = ALPACA.format("\n".join(part for part in (row["instruction"], row["input"]) if part))
            answer = row["output"]
        else:
            asked, answer = f"Question: {row['question']}\nAnswer: ", row["answer"]
        prompt, response = [1, *tokenizer.encode(asked)], tokenizer.encode(answer)
        if response:
            lines.append(json.dumps({"tokens": [*prompt, *response, 2], "prompt": len(prompt)}) + "\n")
    path.write_text("".join(lines))


def prepare(work: Work, setting: Setting) -> None:
    """Everything that the sides of this row will read."""
    model(setting)
    adapter(work, setting)
    real_rows(work.data)


def clean() -> None:
    """Forget what was made."""
    shutil.rmtree(cache(), ignore_errors=True)
