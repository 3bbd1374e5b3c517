"""What Meta's params.json says, of a LLaMA also what it leaves out: the config.json that such a folder would have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halter.errors import Refusal
from halter.files.names import EMBEDDING
from halter.files.reading import read_json
from halter.files.tensors import TensorSpec

TIED_SHAPES = {(2048, 16), (3072, 28)}
"""(dim, layers) of 3.2-1B and 3.2-3B, which tie their vocabulary matrices and scale rotary frequencies by 32."""

_NEEDED = ("dim", "n_layers", "n_heads", "norm_eps")
BOUNDS: dict[str, tuple[float, float]] = {
    "dim": (1, 1 << 20),
    "n_layers": (1, 4096),
    "n_heads": (1, 1 << 14),
    "norm_eps": (0.0, 1.0),
    "rope_theta": (1.0, 1e12),
    "rope_scaling_factor": (1e-3, 1e6),
    "rope_high_freq_factor": (1.0, 1e6),
}
"""{key: (least, most)}, both allowed."""
_WHOLE = ("dim", "n_layers", "n_heads")


def read_params(path: Path) -> dict[str, Any]:
    """The numbers in a params.json, be they nested under "model". Refusal ``meta-params``."""
    params = read_json(path)
    inner = params.get("model", params)
    params = inner if isinstance(inner, dict) else {}
    wrong = [f"{key} is missing" for key in _NEEDED if params.get(key) is None]
    wrong += [
        f"{key} is {str(params[key])[:40]!r}, not a number from {least:g} to {most:g}"
        for key, (least, most) in BOUNDS.items()
        if params.get(key) is not None and not _fits(key, params[key])
    ]
    if not wrong and (int(params["dim"]) % int(params["n_heads"]) or int(params["dim"]) // int(params["n_heads"]) % 2):
        wrong.append(f"{params['n_heads']} heads of an even size do not make dim {params['dim']}")
    if wrong:
        what = "lacks numbers that every model of Meta's has, or has impossible ones"
        raise Refusal("meta-params", what, where=str(path), found=wrong, fix="fetch params.json again")
    return params


def _fits(key: str, value: Any) -> bool:
    least, most = BOUNDS[key]
    kinds = (int,) if key in _WHOLE else (int, float)
    return type(value) in kinds and least <= value <= most


def config_of(params: Mapping[str, Any], specs: Mapping[str, TensorSpec], tied: bool) -> dict[str, Any]:
    """A config.json in Hugging Face's keys, from ``params`` and the whole tensors' shapes under canonical names.

    Vocabulary, key heads and width of the feed-forward are taken from the tensors, because params.json gives -1,
    nothing, or a multiplier for them.
    """
    vocab, dim = specs[EMBEDDING].shape
    heads, theta = int(params["n_heads"]), float(params.get("rope_theta") or 10000.0)
    kv_heads = specs["model.layers.0.self_attn.k_proj.weight"].shape[0] // (dim // heads)
    ends = generation_config_of(vocab)["eos_token_id"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "num_hidden_layers": int(params["n_layers"]),
        "hidden_size": dim,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": dim // heads,
        "intermediate_size": specs["model.layers.0.mlp.gate_proj.weight"].shape[0],
        "vocab_size": vocab,
        "max_position_embeddings": _context(params, theta, kv_heads < heads),
        "rope_theta": theta,
        "rope_scaling": _scaling(params),
        "rms_norm_eps": float(params["norm_eps"]),
        "tie_word_embeddings": tied,
        "bos_token_id": generation_config_of(vocab)["bos_token_id"],
        "eos_token_id": ends[0] if isinstance(ends, list) else ends,
        "pad_token_id": None,
        "torch_dtype": str(specs[EMBEDDING].dtype).removeprefix("torch."),
    }


def generation_config_of(vocab: int) -> dict[str, Any]:
    """Llama 3 may end a text, a turn or a message that calls a tool; the generations before have one end."""
    if vocab >= 128256:
        return {"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]}
    return {"bos_token_id": 1, "eos_token_id": 2}


def _scaling(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """params.json says only that frequencies are scaled; the factor follows from the shape."""
    if not params.get("use_scaled_rope"):
        return None
    by_shape = 32 if (params["dim"], params["n_layers"]) in TIED_SHAPES else 8
    return {
        "rope_type": "llama3",
        "factor": float(params.get("rope_scaling_factor") or by_shape),
        "low_freq_factor": 1.0,
        "high_freq_factor": float(params.get("rope_high_freq_factor") or 4.0),
        "original_max_position_embeddings": 8192,
    }


def _context(params: Mapping[str, Any], theta: float, grouped: bool) -> int:
    """The length a model was made for, which params.json leaves out, from what tells the generations apart."""
    if params.get("use_scaled_rope"):
        return 131072
    if theta > 1e4:
        return 8192 if theta == 5e5 else 16384
    first_generation = not grouped and (params["norm_eps"] < 5e-6 or params["dim"] in (6656, 8192))
    return 2048 if first_generation else 4096
