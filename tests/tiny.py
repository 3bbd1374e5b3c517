"""Tiny random LLaMAs for tests, and the same model built by transformers; with ``experts`` a Llama 4."""

from __future__ import annotations

from typing import Any

import torch

from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.llama4_config import Llama4Config

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


def path(layer: int | None, place: str) -> str:
    """The module path of a place, as transformers names a LLaMA's modules."""
    if layer is None:
        return place if place == "lm_head" else f"model.{place}"
    inner = "self_attn." if place in LINEARS[:4] else "mlp." if place in LINEARS else ""
    return f"model.layers.{layer}.{inner}{place}"


def config(**changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = {
        "layers": 2,
        "dim": 32,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "ffn_dim": 48,
        "vocab_size": 96,
        "context": 256,
        "bos_token_id": 1,
        "eos_token_ids": (2,),
    }
    if "experts" not in changes:
        return ModelConfig(**(sizes | changes))
    apart = {"dense_dim": 40, "moe_layers": (1,), "rotated": (True, False), "chunked": (True, False), "chunk": 8}
    return Llama4Config(**(sizes | {"floor_scale": 3, "ffn_dim": 24} | apart | changes))


def decoder(shape: ModelConfig | None = None, dtype: torch.dtype = torch.float32, seed: int = 0) -> Decoder:
    """A decoder with random weights, norms near one, logits of a few units."""
    shape = shape or config()
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(shape, dtype)
    for name, size in shape.tensor_shapes().items():
        drawn = torch.randn(size, generator=generator)
        value = 1 + 0.1 * drawn if "norm" in name else drawn * (1.0 if "embed" in name else 0.15)
        model.set_tensor(name, value.to(dtype))
    return model


def peer(model: Decoder) -> Any:
    """transformers' LlamaForCausalLM, or Llama4ForCausalLM, with the same weights, in eval mode, eager attention."""
    import transformers

    stored = {k: v for k, v in model.config.to_hf().items() if k != "architectures"}
    routed = isinstance(model.config, Llama4Config)
    hf = (transformers.Llama4TextConfig if routed else transformers.LlamaConfig)(**stored)
    hf._attn_implementation = "eager"
    kind = transformers.Llama4ForCausalLM if routed else transformers.LlamaForCausalLM
    other = kind(hf).to(model.dtype).eval()
    state = {name: getattr(module, buffer) for name, module, buffer in model.tensors()}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    other.tie_weights()
    return other


def jitter(adapter: torch.nn.Module, scale: float = 0.1, seed: int = 1) -> None:
    """Move every parameter off its start, so that nothing is hidden by zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
