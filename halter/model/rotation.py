"""How a LLaMA's heads are rotated by their positions: what config.json says of it, and the rotations of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halter.errors import Refusal
from halter.model.segments import Segments
from halter.numerics import rope

if TYPE_CHECKING:
    from halter.model.config import ModelConfig

Rotation = tuple[Tensor, Tensor]
NO_ROTATION: Rotation = (torch.empty(0), torch.empty(0))
"""For a stack whose heads are not rotated."""
NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
    "dynamic": ("factor",),
}
"""{kind of rotary scaling: the keys without which it means nothing}."""


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary frequencies: ``linear`` (position interpolation), ``llama3`` and ``yarn`` (numerics.rope), or
    ``dynamic``, which within the model's context scales nothing.

    A field that the kind does not know stands at its default. ``attention_factor`` None: as yarn reckons it.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def to_hf(self) -> dict[str, Any]:
        """``rope_scaling`` of a config.json."""
        said: dict[str, Any] = {"rope_type": self.kind, "factor": self.factor}
        if self.kind == "llama3":
            said |= {"low_freq_factor": self.low_freq_factor, "high_freq_factor": self.high_freq_factor}
        if self.kind == "yarn":
            said |= {"beta_fast": self.beta_fast, "beta_slow": self.beta_slow, "truncate": self.truncate}
            for key in ("attention_factor", "mscale", "mscale_all_dim"):
                if (value := getattr(self, key)) is not None:
                    said[key] = value
        if self.kind in ("llama3", "yarn"):
            said["original_max_position_embeddings"] = self.original_context
        return said

    def frequencies(self, plain: Tensor, theta: float) -> Tensor:
        """``plain`` float32 [head_dim / 2], made with ``theta``, scaled."""
        if self.kind == "linear":
            return rope.linear_scaling(plain, self.factor)
        if self.kind == "llama3":
            low, high = self.low_freq_factor, self.high_freq_factor
            return rope.llama3_scaling(plain, self.factor, low, high, self.original_context)
        if self.kind == "yarn":
            turns = self.beta_fast, self.beta_slow
            return rope.yarn_scaling(plain, theta, self.factor, turns, self.original_context, self.truncate)
        return plain  # dynamic

    @property
    def stretch(self) -> float:
        """What rotated queries and keys are multiplied by, each."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return rope.yarn_stretch(self.factor, self.mscale, self.mscale_all_dim)


def read_rope(config: Mapping[str, Any], context: int) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) of a config.json in which ``faults`` finds nothing: from ``rope_theta`` and ``rope_scaling``
    (before transformers 5), else from ``rope_parameters``."""
    rules = _rules(config)
    theta = float(rules.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = _kind(rules)
    if kind == "default":
        return theta, None
    factor = float(rules["factor"])
    if kind in ("linear", "dynamic"):
        return theta, RopeScaling(kind, factor)
    # transformers prefers the outer key, and takes the whole context where there is neither.
    said = config.get("original_max_position_embeddings") or rules.get("original_max_position_embeddings")
    original = int(said or context)
    if kind == "llama3":
        low, high = float(rules["low_freq_factor"]), float(rules["high_freq_factor"])
        return theta, RopeScaling("llama3", factor, low, high, original)
    return theta, RopeScaling(
        "yarn",
        factor,
        original_context=original,
        beta_fast=float(rules.get("beta_fast") or 32),
        beta_slow=float(rules.get("beta_slow") or 1),
        attention_factor=_number(rules.get("attention_factor")),
        mscale=_number(rules.get("mscale")),
        mscale_all_dim=_number(rules.get("mscale_all_dim")),
        truncate=bool(rules.get("truncate", True)),
    )


def faults(config: Mapping[str, Any]) -> list[str]:
    """What a config.json asks of rotation that is not done here; its numbers are within bounds (config_limits)."""
    rules = _rules(config)
    kind = _kind(rules)
    found = [f"rope scaling without {key}" for key in NEEDED.get(kind, ()) if rules.get(key) is None]
    if kind not in NEEDED:
        found.append(f"rope scaling {kind!r}")
    if rules.get("partial_rotary_factor", 1.0) != 1.0 or config.get("partial_rotary_factor", 1.0) != 1.0:
        found.append("partial_rotary_factor")
    return found


def disorders(config: Mapping[str, Any]) -> list[str]:
    """Bounds of rotation that stand the wrong way round, where ``faults`` finds nothing."""
    rules = _rules(config)
    # Where both are equal, as in Llama 4 Scout, nothing is blended.
    if _kind(rules) == "llama3" and rules["low_freq_factor"] > rules["high_freq_factor"]:
        return [f"low_freq_factor {rules['low_freq_factor']} above high_freq_factor"]
    if _kind(rules) != "yarn":
        return []
    fast, slow = rules.get("beta_fast") or 32, rules.get("beta_slow") or 1
    found = [f"beta_fast {fast} below beta_slow {slow}"] if fast < slow else []
    if read_rope(config, 1)[0] <= 1:
        found.append("rope_theta 1 with rope scaling 'yarn'")
    return found


def rotations(config: ModelConfig, segments: Segments, frequencies: Tensor, dtype: torch.dtype) -> Rotation:
    """Cosines and sines of a batch's tokens (rope.angles), as this model's heads are rotated.

    Refusal ``dynamic-rotation`` as of ``within``, where something is computed (a plan's rows are of any length).
    """
    scaling, known = config.rope_scaling, not (torch.compiler.is_compiling() or frequencies.is_meta)
    if scaling is not None and scaling.kind == "dynamic" and known:
        ends = segments.key_lengths
        ends = ends if segments.beginnings is None else ends + segments.beginnings[:, 1]
        within(config, max(ends.tolist(), default=0))
    return rope.angles(segments.positions, frequencies, dtype, 1.0 if scaling is None else scaling.stretch)


def within(config: ModelConfig, length: int) -> None:
    """Refusal ``dynamic-rotation``: a row of ``length`` tokens is longer than dynamic scaling leaves its rotation be.

    From there on transformers takes every position's rotation from the longest row of the batch, or from the longest
    that it ever saw, and leaves cached keys as they were rotated: a row's result would hang on its neighbours.
    """
    if config.rope_scaling is None or config.rope_scaling.kind != "dynamic" or length <= config.context:
        return
    raise Refusal(
        "dynamic-rotation",
        f"a row of {length} tokens; rotary scaling of type dynamic turns every position by how long the row will be "
        "once it is longer than the model's context, so packed rows, a cache and a full pass would not agree",
        expected=f"at most {config.context} tokens a row, virtual tokens included",
        fix="shorter rows; for longer ones a checkpoint whose rope_scaling is yarn, linear or llama3",
    )


def _rules(config: Mapping[str, Any]) -> dict[str, Any]:
    rules = config.get("rope_scaling") or config.get("rope_parameters") or {}  # where there are both, as transformers
    return rules if isinstance(rules, dict) else {}


def _kind(rules: Mapping[str, Any]) -> str:
    return str(rules.get("rope_type") or rules.get("type") or "default")


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
