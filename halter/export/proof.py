"""Whether a merged model is base + adapter: the algebra in float32, and the files against what had to be written.

Rounding the new weights to 16 bits moves a model by as much as rounding any weights to 16 bits does, which depends on
the model and is no fault of a merge. So the gap after rounding is told and not judged; what is judged is free of it.
The fold is proven where nothing is rounded to 16 bits: base + adapter and the folded weights, both computed in float32,
one matrix at a time. The folder is proven against the same folded weights, rounded as they had to be written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.adapters.adapter import Adapter
from halter.errors import HalterError
from halter.export.gap import Gap, gap, logits_on
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.linear import Embedding, Linear, bias_of

LARGEST, KL = 1e-4, 1e-4
"""Most that is allowed: in float32 of the largest logit above 1, in 16 bits in nats."""
Made = tuple[Tensor, Tensor | None]
"""A weight and its bias."""


class _AtUse(Linear):
    """A linear layer whose weight is made at every product, so that only one of them is in memory."""

    storage = "at use"

    def __init__(self, like: Linear, dtype: torch.dtype, make: Callable[[], Made]) -> None:
        super().__init__(like.in_features, like.out_features)
        self._dtype, self._make = dtype, make

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def weight(self) -> Tensor:
        return self._make()[0]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return self._make()[1]

    def rows(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.weight())

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x [..., in] -> [..., out]; ``weight`` and ``bias`` stand in where given."""
        made, own = self._make()
        return F.linear(x, made if weight is None else weight, own if bias is None else bias)


class _TableAtUse(Embedding):
    """A token table in another dtype than it is held in; only the rows that are looked up are made."""

    def __init__(self, matrix: Tensor, dtype: torch.dtype) -> None:
        super().__init__(matrix)
        self._dtype = dtype

    def forward(self, tokens: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return F.embedding(tokens, self.matrix).to(self._dtype) if weight is None else F.embedding(tokens, weight)

    def weight(self) -> Tensor:
        return self.matrix.to(self._dtype)


def seen_as(
    base: Decoder,
    dtype: torch.dtype,
    config: ModelConfig | None = None,
    fold: Adapter | None = None,
    stored: torch.dtype | None = None,
    untied: bool = False,
) -> Decoder:
    """``base`` computed in ``dtype``, with ``fold`` in its weights where given: those rounded once to ``stored``
    beforehand, its configuration ``config``, its head another matrix than its embeddings where ``untied``. It holds the
    base's own tensors; what is made of them lives as long as it is used."""
    config = config or base.config
    made = Decoder(config, dtype, rope_fp32=base.rope_fp32)
    touched = set() if fold is None else {slot.path for slot in fold.slots}

    def weights(name: str, module: nn.Module) -> Made:
        weight: Tensor = module.weight()  # type: ignore[operator]
        bias = bias_of(module)
        if fold is not None and name in touched:
            weight, bias = fold.fold(name, weight.float(), None if bias is None else bias.float())
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        return (weight, bias) if stored is None else (weight.to(stored), None if bias is None else bias.to(stored))

    def in_dtype(pair: Made) -> Made:
        weight, bias = pair
        return weight.to(dtype), None if bias is None else bias.to(dtype)

    for place, module in base.places():
        name = place.path
        if module is base.embed_tokens:
            made.embed_tokens = _TableAtUse(weights(name, module)[0], dtype)
        elif not isinstance(module, Linear):
            weight, bias = in_dtype(weights(name, module))
            made.set_tensor(place.weight_name, weight)
            if bias is not None:
                made.set_tensor(f"{name}.bias", bias)
        elif place.tied and not untied:
            made.set_linear(place, _AtUse(module, dtype, lambda: (made.embed_tokens.weight(), None)))  # type: ignore[arg-type]
        else:
            make = lambda name=name, module=module: in_dtype(weights(name, module))  # noqa: E731
            made.set_linear(place, _AtUse(module, dtype, make))  # type: ignore[arg-type]
    return made


def prove_fold(
    base: Decoder, adapter: Adapter, config: ModelConfig, untied: bool, rows: Sequence[Sequence[int]]
) -> None:
    """HalterError ``merge gap`` where the folded weights do not compute what base + adapter do, in float32."""
    exact = max(base.dtype, torch.float32, key=lambda dtype: dtype.itemsize)
    wanted = logits_on(seen_as(base, exact), rows, adapter)
    found = logits_on(seen_as(base, exact, config, adapter, untied=untied), rows)
    _refuse("the weights with the adapter in them do not compute what base + adapter do", wanted, found, torch.float32)


def prove_written(
    written: Sequence[Tensor],
    base: Decoder,
    adapter: Adapter,
    config: ModelConfig,
    untied: bool,
    stored: torch.dtype,
    rows: Sequence[Sequence[int]],
) -> None:
    """HalterError ``merge gap`` where the folder, read back, computes otherwise than the weights that had to be
    written: ``written`` are its logits in the base's dtype."""
    wanted = logits_on(seen_as(base, base.dtype, config, adapter, stored, untied), rows)
    _refuse("the folder, read back, does not compute what was written", wanted, written, base.dtype)


def _refuse(what: str, wanted: Sequence[Tensor], got: Sequence[Tensor], dtype: torch.dtype) -> None:
    found = gap(wanted, got)
    value, bound = found.kl, KL
    if dtype.itemsize >= 4:
        value, bound = found.largest / max(1.0, *(float(row.abs().max()) for row in wanted)), LARGEST
    if not value <= bound:  # NaN is no proof
        raise unproven(what, found, bound)


def unproven(what: str, found: Gap, bound: float) -> HalterError:
    """HalterError ``merge gap``."""
    return HalterError(
        f"merge gap: {what}: {found}; at most {bound:g} is allowed, and nothing was written. Fix: keep the adapter as "
        "it is; --allow-gap writes the folder all the same"
    )
