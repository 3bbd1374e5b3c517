"""How often each routed expert is taken: what a router makes of the user's rows, and of the rows of a training step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from halter.data.example import Example
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.layout import EXPERTS
from halter.model.passes import Pass
from halter.model.reports import counting_rows
from halter.model.segments import Segments
from halter.pictures.seen import RowPicture, between, features

ROWS, TOKENS, AT_ONCE = 64, 65536, 8192
"""Rows and tokens that are looked at (twice the rows that ESFT samples, arXiv 2407.01906), and tokens of one pass."""


@dataclass(frozen=True)
class ExpertUse:
    """How many tokens each expert of each layer with routed experts was given; of several experts a token all count."""

    counts: Mapping[int, Sequence[int]]

    def entropy(self, layer: int) -> float:
        """Of the experts' shares in a layer, as a part of that of equal shares: 1 is even, 0 is one expert for all."""
        own, total = self.counts[layer], sum(self.counts[layer])
        shares = [count / total for count in own if count]
        return -sum(share * math.log(share) for share in shares) / math.log(len(own)) if len(own) > 1 else 1.0

    def most_used(self, k: int, layer: int) -> list[int]:
        """The k experts of a layer that were given most, ascending; of equal ones the lower number."""
        own = self.counts[layer]
        return sorted(sorted(range(len(own)), key=lambda expert: (-own[expert], expert))[:k])

    def covered(self, k: int, layer: int) -> float:
        """The share of tokens that the k most used experts of a layer take."""
        own = self.counts[layer]
        return sum(own[expert] for expert in self.most_used(k, layer)) / max(1, sum(own))

    def chosen(self, k: int) -> dict[str, list[int]]:
        """The k most used of every layer, as method.experts has it."""
        return {str(layer): self.most_used(k, layer) for layer in self.counts}

    def record(self) -> dict[str, float]:
        """For a line of metrics.jsonl: the mean of the layers' entropies, and the largest share that one expert had."""
        entropy = sum(map(self.entropy, self.counts)) / len(self.counts)
        load = max(self.covered(1, layer) for layer in self.counts)
        return {"expert_entropy": round(entropy, 4), "expert_load": round(load, 4)}

    def as_dict(self) -> list[dict[str, Any]]:
        """For JSON, a mapping for each layer."""
        return [
            {
                "layer": layer,
                "tokens": list(own),
                "entropy": self.entropy(layer),
                "covered": [self.covered(k, layer) for k in range(1, len(own) + 1)],
            }
            for layer, own in self.counts.items()
        ]


def refuse_without_experts(shape: ModelConfig) -> None:
    """Refusal ``experts`` for a base without routed experts."""
    if not shape.layout.of(EXPERTS):
        raise Refusal("experts", "this model has no routed experts", fix="leave --experts and method.experts out")


@torch.no_grad()
def profile(model: Decoder, rows: Iterable[Example], most: int = TOKENS) -> ExpertUse:
    """What the base's routers make of these rows, pictures and all, of the first ``most`` tokens. Refusal ``experts``
    for a base without routed experts."""
    refuse_without_experts(model.config)
    left, waiting, size = most, list[_Row](), 0
    with counting_rows() as counts:
        for row in rows:
            length = min(left, model.config.context, len(row.tokens))
            if size and size + length > AT_ONCE:
                _run(model, waiting)
                waiting, size = [], 0
            waiting.append((torch.as_tensor(row.tokens[:length], dtype=torch.int64), between(row.pictures, 0, length)))
            size, left = size + length, left - length
            if left <= 0:
                break
        if size:
            _run(model, waiting)
    return ExpertUse(dict(sorted(counts.items())))


_Row = tuple[torch.Tensor, tuple[RowPicture, ...]]
"""A row's tokens int64 [T] and its pictures."""


def _run(model: Decoder, rows: Sequence[_Row]) -> None:
    segments = Segments.packed([len(tokens) for tokens, _ in rows], model.device)
    if model.config.pictures is not None:  # what an adapter sees is not the base's
        segments = replace(segments, features=features(model.config.pictures, (pictures for _, pictures in rows)))
    model.hidden(Pass(torch.cat([tokens for tokens, _ in rows]).to(model.device), segments))
