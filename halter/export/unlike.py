"""Places where several methods act and their changes of weights, one after the other, are not what they compute."""

from __future__ import annotations

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

from halter.errors import Refusal
from halter.methods.adapter import Adapter
from halter.model.decoder import Decoder
from halter.model.linear import Linear, Norm
from halter.model.places import path, run_at
from halter.model.segments import Segments

ROWS = 4
"""Tokens that a place is tried on."""
BOUNDS = {torch.float32: 1e-4, torch.float64: 1e-4}
ROUGH = 2e-2
"""Norm of the difference over the norm of the output, at most; ``ROUGH`` in 16 bits."""


@torch.no_grad()
def refuse_unlike(base: Decoder, adapter: Adapter, untied: bool) -> None:
    """Refusal ``cannot-merge`` names the places at which the folded weight computes another thing than the adapter.

    Only places with several pieces are tried, each on a few random inputs: an input's scale and a pair on the scaled
    input, a pair and DoRA's gain, rows moved beside a weight of its own.
    """
    pieces = Counter(slot.path for slot in adapter.slots)
    if not any(count > 1 for count in pieces.values()):
        return
    acts = adapter.bind(base, Segments.packed([ROWS], base.device))
    generator = torch.Generator().manual_seed(0)
    wrong = []
    for layer, place, module in base.places():
        name = path(layer, place)
        if pieces[name] < 2:
            continue
        one_matrix = place == "lm_head" and base.config.tied and not untied
        bias = module.bias if isinstance(module, Linear) else None
        weight, bias = adapter.fold(
            path(None, "embed_tokens") if one_matrix else name,
            module.weight().float(),  # type: ignore[operator]
            None if bias is None else bias.float(),
        )
        x = _tried(adapter, place, weight, generator).to(base.device)
        x = x if place == "embed_tokens" else x.to(base.dtype)
        act = getattr(acts if layer is None else acts.layers[layer], place)
        got = run_at(act, module, x).float()
        want = F.embedding(x, weight) if place == "embed_tokens" else _product(module, x.float(), weight, bias)
        if float((got - want).norm()) > BOUNDS.get(base.dtype, ROUGH) * float(want.norm()):
            wrong.append(name)
    if wrong:
        raise Refusal(
            "cannot-merge",
            "several methods act at these places, and one change of the weight is not what they compute together",
            found=wrong,
            fix="keep them as an adapter, or merge those of one method alone",
        )


def _tried(adapter: Adapter, place: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    """[ROWS, in] random numbers; of the embeddings ids, and first those of rows that are trained."""
    if place != "embed_tokens":
        return torch.randn(ROWS, weight.shape[-1], generator=generator)
    own = [id for slot in adapter.slots if slot.place == place for id in slot.piece.token_ids or ()][: ROWS - 1]
    return torch.tensor([*own, *range(ROWS - len(own))])


def _product(module: object, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x * weight if isinstance(module, Norm) else F.linear(x, weight, bias)
