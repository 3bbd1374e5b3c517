"""Tiny random LLaMAs by transformers (the oracle), and Meta's folder layout made from one by the inverse steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 160,
    "max_position_embeddings": 128,
}


def tiny_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random model in fp32, norms included; ``changes`` go to its LlamaConfig."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def logits_of(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


def to_interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows i and i + half of each head become rows 2i and 2i + 1: one row at a time, as the definition says."""
    size = weight.shape[0] // heads
    out = torch.empty_like(weight)
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = weight[head * size + i]
            out[head * size + 2 * i + 1] = weight[head * size + size // 2 + i]
    return out


def write_meta_folder(
    model: LlamaForCausalLM,
    folder: Path,
    ranks: int = 1,
    *,
    embedding: str = "rows",
    kv_copies: int = 1,
    nested: bool = False,
    params: dict[str, Any] | None = None,
) -> None:
    """Write params.json and consolidated.NN.pth. ``params`` changes the former; a value of None removes a key."""
    config, state = model.config, {n: t.detach() for n, t in model.state_dict().items()}
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    numbers: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads * kv_copies,
        "vocab_size": config.vocab_size,
        "multiple_of": 32,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        **(params or {}),
    }
    numbers = {key: value for key, value in numbers.items() if value is not None}
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps({"model": numbers} if nested else numbers))
    heads = (config.num_attention_heads, config.num_key_value_heads)
    for rank, part in enumerate(meta_parts(state, heads, ranks, embedding, kv_copies)):
        torch.save(part, folder / f"consolidated.{rank:02d}.pth")


def meta_parts(
    state: dict[str, torch.Tensor], heads: tuple[int, int], ranks: int, embedding: str = "rows", kv_copies: int = 1
) -> list[dict[str, torch.Tensor]]:
    """What each rank of Meta's layout holds, from tensors under Hugging Face names; heads: (query, key)."""
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(ranks)]

    def cut(name: str, tensor: torch.Tensor, along: int | None, copies: int = 1) -> None:
        pieces = [tensor] * ranks if along is None else list(tensor.chunk(ranks // copies, along))
        for rank in range(ranks):
            parts[rank][name] = pieces[rank if along is None else rank // copies].clone()

    cut("tok_embeddings.weight", state["model.embed_tokens.weight"], 0 if embedding == "rows" else 1)
    cut("norm.weight", state["model.norm.weight"], None)
    cut("output.weight", state["lm_head.weight"], 0)
    for i in range(sum(name.endswith("q_proj.weight") for name in state)):
        hf, meta = f"model.layers.{i}.", f"layers.{i}."
        cut(meta + "attention.wq.weight", to_interleaved(state[hf + "self_attn.q_proj.weight"], heads[0]), 0)
        cut(meta + "attention.wk.weight", to_interleaved(state[hf + "self_attn.k_proj.weight"], heads[1]), 0, kv_copies)
        cut(meta + "attention.wv.weight", state[hf + "self_attn.v_proj.weight"], 0, kv_copies)
        cut(meta + "attention.wo.weight", state[hf + "self_attn.o_proj.weight"], 1)
        cut(meta + "feed_forward.w1.weight", state[hf + "mlp.gate_proj.weight"], 0)
        cut(meta + "feed_forward.w3.weight", state[hf + "mlp.up_proj.weight"], 0)
        cut(meta + "feed_forward.w2.weight", state[hf + "mlp.down_proj.weight"], 1)
        cut(meta + "attention_norm.weight", state[hf + "input_layernorm.weight"], None)
        cut(meta + "ffn_norm.weight", state[hf + "post_attention_layernorm.weight"], None)
    for part in parts:
        part["rope.freqs"] = torch.ones(4)
    return parts
