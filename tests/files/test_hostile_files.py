"""Files of strangers, damaged at random: read or refused, never a crash, a hang or a flood of memory."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import tiny_tokenizers
import torch
from hostile import Tally, damaged_bytes, damaged_json, damaged_safetensors, forget_peak, memory
from own_data import Own
from safetensors.torch import save_file
from tiny_models import tiny_llama, write_meta_folder

from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.files.checkpoint import open_checkpoint
from halter.files.tensors import read_tensors
from halter.model.nf4_linear import NF4Linear
from halter.pretrained.load import load_config, load_model
from halter.text.tokenizer import Tokenizer

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
}
MEMORY = 64 << 20


@dataclass(frozen=True)
class Target:
    """A folder, which of its files are damaged how, who reads it, and its share of all cases in percent."""

    folder: Path
    files: dict[str, Callable[[random.Random, bytes], bytes]]
    read: Callable[[Path], object]
    share: float


def quiet(folder: Path) -> object:
    return load_model(folder, device="cpu", say=lambda _: None)


def meta(folder: Path) -> object:
    checkpoint = open_checkpoint(folder)
    try:
        return [load_config(folder), list(checkpoint.stream())]
    finally:
        checkpoint.close()


def text(folder: Path) -> object:
    tokenizer = Tokenizer.from_folder(folder)
    ids = tokenizer.encode("Once <s> upon<|eot_id|>\n 12")
    return tokenizer.decode(ids), tokenizer.digest, tokenizer.stream()


def in_4_bits(source: Path, folder: Path) -> None:
    """The checkpoint as bitsandbytes would have saved it."""
    held = load_model(source, quantize="nf4", device="cpu")
    tensors = {}
    for place, module in held.places():
        name = f"{place.path}.weight"
        parts = module.to_bitsandbytes() if isinstance(module, NF4Linear) else {"weight": module.weight()}
        tensors |= {name + part.removeprefix("weight"): tensor.contiguous() for part, tensor in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    rule = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": rule}))


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory, own: Own) -> dict[str, Target]:
    root, model = tmp_path_factory.mktemp("whole"), tiny_llama(**SMALL)
    base = tiny.decoder()

    def folder(name: str) -> Path:
        (root / name).mkdir()
        return root / name

    save_file({"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.zeros(0, 2)}, folder("tensors") / "x.st")
    model.save_pretrained(root / "hf")
    model.save_pretrained(root / "shards", max_shard_size="3KB")
    write_meta_folder(model, root / "meta")
    in_4_bits(root / "hf", folder("nf4"))
    tiny_tokenizers.llama3(root / "byte", chat_template="{{ messages[0].content }}")
    tiny_tokenizers.write(root / "piece", tiny_tokenizers.sentencepiece_like("first"), bos_token="<s>")
    tiny_tokenizers.tiktoken_file(folder("ranks") / "tokenizer.model")
    shutil.copy(own.letters / "tokenizer.model", folder("sp") / "tokenizer.model")
    size = Tokenizer.from_folder(own.letters).vocab_size
    decreed = {"added_tokens_decoder": {str(size): {"content": "<|pad|>", "special": True}}, "bos_token": "<s>"}
    (root / "sp/tokenizer_config.json").write_text(json.dumps(decreed))
    adapt(base, "lora", r=2, rank_pattern={"q_proj": 1}).save(root / "adapter")
    shutil.copytree(root / "adapter", root / "unsealed")
    (root / "unsealed" / "manifest.json").unlink()
    facts = json.loads((root / "unsealed/halter.json").read_text())
    (root / "unsealed/halter.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "manifest"}))
    shutil.copytree(root / "unsealed", root / "peft")
    (root / "peft" / "halter.json").unlink()
    config, st = damaged_json, damaged_safetensors
    small = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
    (root / "piece/special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}')
    (root / "piece/added_tokens.json").write_text('{"<pad>": 700}')
    (root / "piece/generation_config.json").write_text('{"eos_token_id": [1, 2]}')

    def read_adapter(f: Path) -> object:
        return load_adapter(f, base)

    return {
        "safetensors": Target(root / "tensors", {"x.st": st}, lambda f: read_tensors(f / "x.st"), 37),
        "config.json": Target(root / "hf", {"config.json": config, "generation_config.json": config}, quiet, 10),
        "weights": Target(root / "hf", {"model.safetensors": st}, quiet, 5),
        "nf4": Target(root / "nf4", {"model.safetensors": st, "config.json": config}, quiet, 3),
        "index": Target(root / "shards", {"model.safetensors.index.json": config}, open_checkpoint, 5),
        "params.json": Target(root / "meta", {"params.json": config}, meta, 8),
        ".pth": Target(root / "meta", {"consolidated.00.pth": damaged_bytes}, meta, 4),
        "byte-level": Target(root / "byte", {"tokenizer.json": config, "tokenizer_config.json": config}, text, 4),
        "sentencepiece-like": Target(root / "piece", dict.fromkeys(("tokenizer.json", *small), config), text, 5),
        "tiktoken": Target(root / "ranks", {"tokenizer.model": damaged_bytes}, text, 2),
        "sentencepiece": Target(
            root / "sp", {"tokenizer.model": damaged_bytes, "tokenizer_config.json": config}, text, 3
        ),
        "halter adapter": Target(
            root / "adapter",
            {
                "halter.json": config,
                "manifest.json": config,
                "adapter_config.json": config,
                "adapter_model.safetensors": st,
            },
            read_adapter,
            4,
        ),
        "unsealed adapter": Target(root / "unsealed", {"halter.json": config}, read_adapter, 5),
        "peft adapter": Target(
            root / "peft", {"adapter_config.json": config, "adapter_model.safetensors": st}, read_adapter, 5
        ),
    }


def fuzz(targets: dict[str, Target], cases: int, seed: int, where: Path) -> dict[str, Tally]:
    """Damage one file of a target at a time; the rest of its folder is whole.

    HALTER_FUZZ=name takes one target alone, HALTER_KEEP=file keeps what the last crash was caused by.
    """
    tallies: dict[str, Tally] = {}
    for name, target in targets.items():
        if os.environ.get("HALTER_FUZZ", name) != name:
            continue
        rng, tally = random.Random(f"{seed} {name}"), Tally()
        folder = where / name.replace(" ", "-")
        shutil.copytree(target.folder, folder)
        whole = {file: (folder / file).read_bytes() for file in target.files}
        forget_peak()
        before = memory()
        largest = 0
        for case in range(round(cases * target.share / 100)):
            file = rng.choice(list(target.files))
            data = target.files[file](rng, whole[file])
            largest = max(largest, len(data))
            (folder / file).write_bytes(data)
            tally.feed(f"{name} {seed} {case} {file}", lambda f=folder, t=target: t.read(f))
            if tally.crashes and tally.crashes[-1].startswith(f"{name} {seed} {case} ") and "HALTER_KEEP" in os.environ:
                Path(os.environ["HALTER_KEEP"]).write_bytes(data)
            (folder / file).write_bytes(whole[file])
        grown = memory("VmHWM") - before
        print(
            f"{name}: {tally.cases} cases, {tally.outcomes['read']} read, {len(tally.crashes)} crashes, slowest "
            f"{tally.slowest * 1000:.0f} ms, memory +{grown >> 20} MB; {dict(tally.outcomes.most_common(6))}"
        )
        if grown > MEMORY + 2 * largest:
            tally.crashes.append(f"{name}: memory grew by {grown >> 20} MB")
        tallies[name] = tally
    return tallies


def judge(tallies: dict[str, Tally]) -> None:
    crashes = [crash for tally in tallies.values() for crash in tally.crashes]
    refused = sum(sum(t.outcomes.values()) - t.outcomes["read"] for t in tallies.values())
    total, slowest = sum(t.cases for t in tallies.values()), max(t.slowest for t in tallies.values())
    print(f"hostile files: {total}, refused {refused}, crashes {len(crashes)}, slowest {slowest * 1e3:.0f} ms")
    assert not crashes, "\n".join(crashes[:20])
    assert all(t.outcomes.keys() - {"read"} for t in tallies.values())
    assert refused > total / 2


def test_ten_thousand_hostile_files(targets: dict[str, Target], tmp_path: Path) -> None:
    judge(fuzz(targets, 10_000, 0, tmp_path))


@pytest.mark.nightly
def test_two_hundred_thousand_hostile_files(targets: dict[str, Target], tmp_path: Path) -> None:
    judge(fuzz(targets, 200_000, 1, tmp_path))
