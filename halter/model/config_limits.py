"""What the numbers of a stranger's config.json may be, before anything is sized by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COUNTS: dict[str, tuple[int, int]] = {
    "num_hidden_layers": (1, 4096),
    "hidden_size": (1, 1 << 20),
    "num_attention_heads": (1, 1 << 14),
    "num_key_value_heads": (0, 1 << 14),
    "head_dim": (0, 1 << 14),
    "intermediate_size": (1, 1 << 22),
    "vocab_size": (1, 1 << 24),
    "max_position_embeddings": (1, 1 << 31),
    "original_max_position_embeddings": (1, 1 << 31),
}
"""{key: (least, most)}, both allowed; the largest LLaMA has 126 layers of 16,384 with 128 heads. 0 is "not given"."""
FLOATS: dict[str, tuple[float, float]] = {"rope_theta": (1.0, 1e12), "rms_norm_eps": (0.0, 1.0)}
ROPE: dict[str, tuple[float, float]] = {
    "rope_theta": (1.0, 1e12),
    "factor": (1e-3, 1e6),
    "low_freq_factor": (1e-3, 1e6),
    "high_freq_factor": (1e-3, 1e6),
    "original_max_position_embeddings": (1, 1 << 31),
    "beta_fast": (0.0, 1e6),
    "beta_slow": (0.0, 1e6),
    "attention_factor": (1e-3, 1e3),
    "mscale": (0.0, 1e3),
    "mscale_all_dim": (0.0, 1e3),
}
SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias")
MAX_ID, MAX_IDS = (1 << 24) - 1, 256


def unfit(config: Mapping[str, Any]) -> list[str]:
    """Every value of another kind than a LLaMA's, or out of bounds; null is "not given" everywhere."""
    wrong = [
        f"{key} {short(config[key])}, not a whole number from {least} to {most}"
        for key, (least, most) in COUNTS.items()
        if config.get(key) is not None and not (type(config[key]) is int and least <= config[key] <= most)
    ]
    wrong += _floats(config, FLOATS)
    for section in ("rope_parameters", "rope_scaling"):
        rules = config.get(section) or {}
        if not isinstance(rules, dict):
            wrong.append(f"{section} {short(rules)}, not an object")
            continue
        wrong += [f"{section}.{fault}" for fault in _floats(rules, ROPE)]
        wrong += [f"{section}.{k} {short(rules[k])}" for k in ("rope_type", "type") if not _text(rules.get(k))]
        if not isinstance(rules.get("truncate"), bool | None):
            wrong.append(f"{section}.truncate {short(rules['truncate'])}")
    wrong += [f"{key} {short(config[key])}" for key in SWITCHES if not isinstance(config.get(key), bool | None)]
    wrong += [
        f"{key} {short(config[key])}" for key in ("torch_dtype", "dtype", "hidden_act") if not _text(config.get(key))
    ]
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(key)
        ids: list[Any] = value if isinstance(value, list) and key == "eos_token_id" else [value]
        # The first LLaMA's config.json pads with -1.
        if len(ids) > MAX_IDS or not all(i is None or (type(i) is int and -1 <= i <= MAX_ID) for i in ids):
            wrong.append(f"{key} {short(config[key])}")
    return wrong


def _floats(values: Mapping[str, Any], bounds: Mapping[str, tuple[float, float]]) -> list[str]:
    return [
        f"{key} {short(values[key])}, not a number from {least:g} to {most:g}"
        for key, (least, most) in bounds.items()
        if values.get(key) is not None and not (type(values[key]) in (int, float) and least <= values[key] <= most)
    ]


def _text(value: Any) -> bool:
    return isinstance(value, str | None)


def short(value: Any) -> str:
    """A stranger's value, so short that a message can hold it."""
    try:
        return repr(value)[:60]
    except (ValueError, RecursionError):  # thousands of digits, thousands of brackets
        return f"a {type(value).__name__} beyond reason"
