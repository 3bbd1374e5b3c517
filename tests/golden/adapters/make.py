"""Makes what lies in this folder: adapters as Halter wrote them at commit 7bd671e, and the logits that they gave then.

    git worktree add /tmp/old 7bd671e
    cd /tmp/old && PYTHONPATH=/tmp/old python THIS/make.py THIS

A file of this folder is never made anew with a later Halter: what is kept here is what adapters meant that are out
there. A case that is added for a later commit goes into a folder of its own beside this one.

base-plain, base-biased   tiny bases, float32: without and with biases, untied and tied, with one tokenizer
NAME/                     an adapter folder; which base it is of stands in cases.json
logits.safetensors        {NAME: float32 [N, V / 8]} computed in float64: rows of 9, 6 and 2 tokens end to end, whose
                          prompts are 7, 4 and 1 long; every eighth token of the vocabulary
files/                    adapter files as other programs write them, and what 7bd671e read from them as cases
run/                      a run of llama_adapter_v2 with prompts that stopped after 2 of 4 steps; finished.safetensors
                          is what it became, rows.jsonl what it learnt from
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import halter
from halter.adapters.adapter import Adapter
from halter.adapters.importing.formats import import_adapter
from halter.adapters.importing.taking import ImportOptions
from halter.contract.registry import find
from halter.export.compress import CompressOptions, compress
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.pretrained.save import write_model

LENGTHS, PROMPTS, EVERY = [9, 6, 2], [7, 4, 1], 8
SPECIAL = ("<s>", "</s>", "<user>", "<assistant>")
SHAPE: dict[str, Any] = {
    "layers": 3,
    "dim": 16,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 4,
    "ffn_dim": 24,
    "vocab_size": 260,
    "context": 256,
    "bos_token_id": 256,
    "eos_token_ids": (257,),
}
BASES: dict[str, dict[str, Any]] = {
    "base-plain": {},
    "base-biased": {"attention_bias": True, "mlp_bias": True, "tied": True},
}
V2 = "llama_adapter_v2"
PROMPTED = {"adapter_len": 3, "adapter_layers": 2}
CASES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "lora": [("lora", {"r": 2})],
    "lora-rslora-patterns": [
        (
            "lora",
            {
                "r": 4,
                "alpha": 6,
                "rslora": True,
                "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 3},
                "alpha_pattern": {"v_proj": 3, "layers.1.mlp.up_proj": 5},
            },
        ),
    ],
    "lora-tables": [("lora", {"r": 2, "target_modules": ("embed_tokens", "lm_head", "o_proj")})],
    "dora": [("dora", {"r": 2})],
    "dora-patterns": [
        ("dora", {"r": 4, "alpha": 12.0, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
    ],
    "dora-head": [("dora", {"r": 2, "alpha": 3.0, "target_modules": ("lm_head", "q_proj", "down_proj")})],
    "pissa": [("pissa", {"r": 2})],
    "olora": [("olora", {"r": 2, "alpha": 3.0})],
    "ia3": [("ia3", {})],
    "ia3-inner": [("ia3", {"target_modules": "all-linear", "feedforward_modules": ("o_proj", "up_proj")})],
    "bitfit": [("bitfit", {})],
    "full-layer": [("full", {"target_modules": ("layers.1.mlp.down_proj", "layers.1.self_attn.k_proj", "norm")})],
    "norm_tuning": [("norm_tuning", {})],
    "token_rows": [("token_rows", {"tokens": (8, 16, 257)})],
    "token_rows-head": [("token_rows", {"tokens": (8, 16, 257), "where": "head"})],
    "prompt_tuning": [("prompt_tuning", {"num_virtual_tokens": 3})],
    "prefix_tuning": [("prefix_tuning", {"num_virtual_tokens": 3})],
    "prefix_tuning-projection": [("prefix_tuning", {"num_virtual_tokens": 3, "projection": 5})],
    "bottleneck": [("bottleneck", {"bottleneck_size": 4})],
    "bottleneck-parallel": [
        ("bottleneck", {"bottleneck_size": 4, "style": "parallel", "activation": "relu", "scale": 4.0}),
    ],
    "bottleneck-parallel-mlp": [
        ("bottleneck", {"bottleneck_size": 4, "style": "parallel", "places": ("after_mlp",), "init": "houlsby"}),
    ],
    "excitor": [("excitor", {"adapter_len": 3, "adapter_layers": 2, "r": 2})],
    "excitor-kv_head-unrotated": [
        ("excitor", {"adapter_len": 3, "r": 2, "gate_scope": "kv_head", "rope_extra_key": False}),
    ],
    "llama_adapter": [("llama_adapter", PROMPTED)],
    "llama_adapter-peft": [("llama_adapter", {**PROMPTED, "gate_scope": "layer", "gate_activation": "identity"})],
    "llama_adapter-identity": [("llama_adapter", {**PROMPTED, "gate_activation": "identity"})],
    "v2-out": [(V2, {})],
    "v2-in": [(V2, {"scale_side": "in"})],
    "v2-none": [(V2, {"scale_side": "none", "bias_targets": ("q_proj", "o_proj", "up_proj")})],
    "v2-out-prompts": [(V2, PROMPTED)],
    "v2-in-prompts": [(V2, {"scale_side": "in", **PROMPTED, "gate_activation": "identity", "gate_scope": "layer"})],
    "v2-none-prompts": [(V2, {"scale_side": "none", "train_norm": False, **PROMPTED})],
    "v2-prompts-only": [(V2, {"scale_side": "none", "bias_targets": (), "train_norm": False, **PROMPTED})],
    "loreft": [("loreft", {"r": 2, "first": 2, "last": 2})],
    "loreft-own": [("loreft", {"r": 2, "first": 2, "last": 2, "share_weights": False, "source": "tanh"})],
    "loreft-long": [("loreft", {"r": 2, "first": 5, "last": 5, "layers": (0, 2)})],
    "loreft-long-own": [("loreft", {"r": 2, "first": 5, "last": 5, "share_weights": False})],
    "several-ia3-lora": [("ia3", {}), ("lora", {"r": 2})],
    "several-lora-ia3": [("lora", {"r": 2}), ("ia3", {})],
    "several-lora-dora": [("lora", {"r": 2}), ("dora", {"r": 2})],
    "several-dora-lora": [("dora", {"r": 2}), ("lora", {"r": 2})],
    "several-lora-rows": [("lora", {"r": 2}), ("token_rows", {"tokens": (8, 16)})],
    "several-full-rows": [("full", {"target_modules": ("embed_tokens",)}), ("token_rows", {"tokens": (8, 16)})],
    "several-full-full": [("full", {"target_modules": ("k_proj",)}), ("full", {"target_modules": ("k_proj",)})],
    "several-bitfit-ia3": [("bitfit", {}), ("ia3", {"feedforward_modules": ("v_proj", "down_proj")})],
    "several-v2-lora": [(V2, PROMPTED), ("lora", {"r": 2})],
    "several-v2-in-lora": [(V2, {"scale_side": "in"}), ("lora", {"r": 2})],
    "several-lora-v2-in": [("lora", {"r": 2}), (V2, {"scale_side": "in"})],
    "several-v2-v1": [(V2, PROMPTED), ("llama_adapter", PROMPTED)],
    "several-v2-excitor": [(V2, PROMPTED), ("excitor", {"adapter_len": 3, "r": 2})],
    "several-prompt-prefix": [
        ("prompt_tuning", {"num_virtual_tokens": 2}),
        ("prefix_tuning", {"num_virtual_tokens": 3}),
    ],
    "several-loreft-bottleneck": [("loreft", {"r": 2, "first": 2, "last": 2}), ("bottleneck", {"bottleneck_size": 4})],
}
BIASED = (
    "lora",
    "dora-patterns",
    "dora-head",
    "pissa",
    "ia3",
    "ia3-inner",
    "bitfit",
    "full-layer",
    "token_rows",
    "llama_adapter-peft",
    "v2-out",
    "v2-in-prompts",
    "v2-out-prompts",
    "bottleneck-parallel",
    "several-lora-rows",
    "several-v2-lora",
)
COMPRESSED = {"packed-v2-out-prompts": ("v2-out-prompts", 8), "packed-lora": ("lora", 4)}


def base(folder: Path, changes: dict[str, Any], seed: int) -> Decoder:
    """A folder with random weights, and the model in float64."""
    shape = ModelConfig(**(SHAPE | changes))
    generator = torch.Generator().manual_seed(seed)
    model, drawn = Decoder(shape, torch.float64), {}
    for name, size in shape.tensor_shapes().items():
        value = torch.randn(size, generator=generator)
        drawn[name] = 1 + 0.1 * value if "norm" in name else value * (1.0 if "embed" in name else 0.25)
        model.set_tensor(name, drawn[name].double())
    folder.mkdir()
    write_model(iter(drawn.items()), shape, folder, dtype=torch.float32)
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


def moved(adapter: Adapter, seed: int) -> Adapter:
    """Every parameter off its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapter


def tokens() -> torch.Tensor:
    """int64 [17], by arithmetic alone, 8 and 16 among them."""
    return torch.tensor([256, 8, 16, *((37 * i * i + 11) % 256 for i in range(14))])


@torch.no_grad()
def logits(model: Decoder, adapter: Adapter) -> torch.Tensor:
    """float64 inside, float32 [17, 33] outside; the adapter's own numbers are float32."""
    segments = Segments.packed(LENGTHS, prompt_lengths=PROMPTS)
    acts = adapter.to(torch.float64).bind(model, segments)
    found = model.head(model.hidden(Pass(tokens(), segments, acts)), acts)
    return found[:, ::EVERY].float().contiguous()


def foreign(shape: ModelConfig) -> dict[str, dict[str, torch.Tensor]]:
    """State dicts by the names of the authors and of litgpt."""
    g = torch.Generator().manual_seed(99)

    def drawn(*size: int, scale: float = 0.5, around: float = 0.0) -> torch.Tensor:
        return around + scale * torch.randn(size, generator=g)

    dim, kv, out = shape.dim, shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim
    fused, made = out + 2 * kv, {}
    v1 = {"adapter_query.weight": drawn(2 * 3, dim, scale=1.0)}
    v1 |= {f"layers.{i}.attention.gate": drawn(1, 4, 1, 1) if i else torch.zeros(1, 4, 1, 1) for i in range(3)}
    made["authors-v1.pth"] = v1
    sizes = {"attention.wq": (out, dim), "attention.wk": (kv, dim), "attention.wv": (kv, dim)}
    sizes |= {"attention.wo": (dim, out), "feed_forward.w1": (24, dim), "feed_forward.w2": (dim, 24)}
    sizes["feed_forward.w3"] = (24, dim)
    v2: dict[str, torch.Tensor] = {"norm.weight": drawn(dim, around=1.0)}
    for i in range(3):
        for name, (rows, columns) in sizes.items():
            v2[f"layers.{i}.{name}_bias"] = drawn(rows)
            v2[f"layers.{i}.{name}_scale"] = drawn(columns, around=1.0)
        v2 |= {f"layers.{i}.{name}.weight": drawn(dim, around=1.0) for name in ("attention_norm", "ffn_norm")}
    made["authors-v2.pth"] = v2
    prompts = {
        f"transformer.h.2.attn.{k}": t
        for k, t in (("adapter_wte.weight", drawn(3, dim, scale=1.0)), ("gating_factor", drawn(1, 1, 4, 1)))
    }
    made["litgpt-v1.pth"] = dict(prompts)
    lit = dict(prompts) | {"transformer.ln_f.weight": drawn(dim, around=1.0)}
    lit |= {"lm_head.adapter_bias": torch.zeros(260), "lm_head.adapter_scale": torch.ones(260)}
    outs = {"attn.qkv": fused, "attn.proj": dim, "mlp.fc_1": 24, "mlp.fc_2": 24, "mlp.proj": dim}
    for i in range(3):
        for name, rows in outs.items():
            lit[f"transformer.h.{i}.{name}.adapter_bias"] = drawn(rows)
            lit[f"transformer.h.{i}.{name}.adapter_scale"] = drawn(rows, around=1.0)
        lit |= {f"transformer.h.{i}.{name}.weight": drawn(dim, around=1.0) for name in ("norm_1", "norm_2")}
    made["litgpt-v2.pth"] = lit
    return made


def run(target: Path) -> None:
    """A run that stopped after two steps, made where its paths are short."""
    os.chdir(target)
    rows = [{"text": f"{a} and {b} are {a + b}."} for a, b in ((1, 2), (5, 3), (8, 4), (7, 7), (9, 2), (6, 1))]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"path": "base-plain", "device": "cpu"},
        "method": {"name": V2, "scale_side": "in", **PROMPTED},
        "data": {"train": "rows.jsonl"},
        "train": {"per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 3e-2, "save_steps": 2},
        "output_dir": "run",
    }
    halter.train(recipe)
    shutil.copy2("run/adapter/adapter_model.safetensors", "finished.safetensors")
    for folder in ("run/adapter", "run/checkpoints/step-0000004"):
        shutil.rmtree(folder)


def main(target: Path) -> None:
    for old in target.iterdir():
        if old.name not in ("make.py", "__pycache__"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    models_of = {name: base(target / name, changes, i) for i, (name, changes) in enumerate(BASES.items())}
    found: dict[str, torch.Tensor] = {}
    of: dict[str, str] = {}

    def keep(name: str, which: str, adapter: Adapter) -> None:
        found[name], of[name] = logits(models_of[which], adapter), which

    for number, (name, parts) in enumerate(CASES.items()):
        for which in BASES:
            if which == "base-biased" and name not in BIASED:
                continue
            full = name if which == "base-plain" else f"{name}-biased"
            base32 = halter.load(target / which, say=lambda _: None)[0]
            adapter = moved(halter.adapt(base32, [find(method)(**options) for method, options in parts]), number)
            adapter.save(target / full)
            keep(full, which, adapter)
    for name, (case, bits) in COMPRESSED.items():
        base32 = halter.load(target / "base-plain", say=lambda _: None)[0]
        smaller, _ = compress(halter.load_adapter(target / case, base32), target / name, CompressOptions(bits=bits))
        keep(name, "base-plain", smaller)
    (target / "files").mkdir()
    for file, state in foreign(ModelConfig(**SHAPE)).items():
        torch.save(state, target / "files" / file)
        options = ImportOptions(adapter_len=3)
        imported = import_adapter(target / "files" / file, ModelConfig(**SHAPE), options).adapter
        name = f"imported-{file.removesuffix('.pth')}"
        imported.save(target / name)
        keep(name, "base-plain", imported)
    save_file(found, target / "logits.safetensors")
    (target / "cases.json").write_text(json.dumps(of, indent=1) + "\n")
    run(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
