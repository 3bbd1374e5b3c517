"""How two adapters differ, as a person reads it."""

from __future__ import annotations

from typing import Any

from halter.parts.low_rank import FACTORS

SHOWN_TENSORS, SHOWN_SHAPES = 12, 3


def said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {said(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def differences(found: dict[str, Any]) -> str:
    """The comparison as a person reads it: the tensors that differ most, relative to their norm."""
    if found["equal"]:
        return "the two adapters are equal"
    lines = [f"{key}: {said(a)} | {said(b)}" for key, (a, b) in found["options"].items()]
    lines += [f"only in {side.upper()}: {name}" for side in "ab" for name in found[f"only_{side}"][:SHOWN_TENSORS]]
    lines += _misshapen(found)
    total = found["total"]
    norms = f"norms {total['norm_a']:.4g} and {total['norm_b']:.4g}, of the difference {total['difference']:.4g}"
    lines += [norms] if found["tensors"] else []
    tensors = sorted(found["tensors"].items(), key=lambda item: -item[1]["difference"] / (item[1]["norm_a"] or 1.0))
    for name, t in tensors[:SHOWN_TENSORS]:
        if t["difference"]:
            words = f"norms {t['norm_a']:.4g} {t['norm_b']:.4g}, difference {t['difference']:.4g}"
            lines.append(f"  {name}: {words}, cosine {t['cosine']:.4f}")
    if len(tensors) > SHOWN_TENSORS:
        lines.append(f"  and {len(tensors) - SHOWN_TENSORS} more (--json has all)")
    if found["updates"]:
        low = min(found["updates"], key=lambda name: found["updates"][name])
        mean = sum(found["updates"].values()) / len(found["updates"])
        lines.append(f"changes of weights: cosine {mean:.4f} on average, lowest {found['updates'][low]:.4f} at {low}")
    return "\n".join(lines)


def _misshapen(found: dict[str, Any]) -> list[str]:
    """Tensors of other shapes: factors of other ranks in one line, as products are compared; the first of others."""
    apart = found["misshapen"]
    ends = [*FACTORS, *FACTORS.values()]
    factors = [name for name in apart for end in ends if name.removesuffix(f".{end}") in found["updates"]]
    lines = [f"{len(factors)} factors have other ranks: their products are compared below"] if factors else []
    rest = {name: shapes for name, shapes in apart.items() if name not in factors}
    lines += [f"{name}: {a} | {b}" for name, (a, b) in list(rest.items())[:SHOWN_SHAPES]]
    return [*lines, f"and {len(rest) - SHOWN_SHAPES} more of other shapes"] if len(rest) > SHOWN_SHAPES else lines
