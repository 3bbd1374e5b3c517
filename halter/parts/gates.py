"""Gates of prompts: how they are counted and what they pass through, and one spelling of them made of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from halter.errors import Refusal

GateScope = Literal["head", "layer"]
GateActivation = Literal["tanh", "identity"]


def regated(
    own: Mapping[str, Tensor], was: GateActivation, heads: int, scope: GateScope, activation: GateActivation
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """{path.saved_name: tensor} with the gates, [heads] or [1] through ``was``, spelt otherwise, and what that loses, a
    line each.

    tanh and back are exact; heads that become one take their mean. Refusal ``gates-not-convertible``: plain gates of
    magnitude 1 and more, which are no tanh of anything.
    """
    made = dict(own)
    notes: list[str] = []
    beyond: list[str] = []
    for name, gate in own.items():
        if not name.endswith(".gate"):
            continue
        plain = gate.double().tanh() if was == "tanh" else gate.double()
        if scope == "layer" and len(plain) > 1:
            mean = plain.mean(0, keepdim=True)
            spread = float((plain - mean).abs().max())
            if spread > 1e-6:
                notes.append(f"{name}: {len(plain)} heads become one gate {float(mean):.4g}, off by up to {spread:.2g}")
            plain = mean
        elif scope == "head" and len(plain) == 1:
            plain = plain.expand(heads)
        if activation == "tanh":
            beyond += [name] if bool((plain.abs() >= 1).any()) else []
            plain = plain.atanh()
        made[name] = plain.float()
    if beyond:
        raise Refusal(
            "gates-not-convertible",
            "gates of magnitude 1 and more are no tanh",
            found=beyond,
            fix="keep the plain gates (gate_activation identity)",
        )
    return made, tuple(notes)
