"""The output head of one training pass, with what acts at it, a chunk of tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halter.model.decoder import Decoder
from halter.model.linear import DenseLinear
from halter.model.places import Act, Acts, run_at, tensors_of, with_tensors
from halter.numerics.losses import Wanted, head_loss


@dataclass(frozen=True)
class Head:
    """The head of a pass over ``model`` for its tokens ``index`` int64 [M], ascending; ``act`` acts at it, or None."""

    model: Decoder
    act: Act | None
    index: Tensor

    @classmethod
    def of(cls, model: Decoder, acts: Acts | None, index: Tensor) -> Head:
        """The head of a pass with these acts, None being the base."""
        return cls(model, None if acts is None else acts.lm_head, index)

    def part(self, place: slice) -> Head:
        """The head of some of the tokens, with no more than acts on them: nobody else has a gradient through it."""
        index = self.index[place]
        act = None if self.act is None else self.act.select(index)
        return Head(self.model, act, torch.arange(len(index), device=index.device))

    def without_gradient(self) -> Head:
        """The same, through which no gradient flows."""
        if self.act is None:
            return self
        return replace(self, act=with_tensors(self.act, [tensor.detach() for tensor in tensors_of(self.act)]))

    def loss(self, hidden: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor]:
        """As numerics.losses.head_loss has it, of final hidden states [M, dim]."""
        vocabulary = self.model.config.vocab_size
        return head_loss(self._project, tensors_of(self.act), hidden, wanted, vocabulary, self._matrix())

    def log_probabilities(self, hidden: Tensor, start: int, end: int) -> Tensor:
        """[end - start, V] in float32 (float64 for float64) of tokens start .. end of hidden states [M, dim]."""
        logits = self._project(hidden[start:end], start, end, tensors_of(self.act))
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def _project(self, piece: Tensor, start: int, end: int, tensors: Sequence[Tensor]) -> Tensor:
        act = None if self.act is None else with_tensors(self.act, tensors).select(self.index[start:end])
        return run_at(act, self.model.lm_head, piece)

    def _matrix(self) -> Tensor | None:
        """The head's matrix, the base's or an adapter's own, where the head is nothing but that."""
        if self.act is None:
            return self.model.lm_head.matrix if isinstance(self.model.lm_head, DenseLinear) else None
        weight, bias = self.act.own_weight or (None, None)
        return weight if bias is None else None
