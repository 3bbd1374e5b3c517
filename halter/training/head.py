"""The output head of one training pass, with what acts at it, a chunk of tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halter.model.decoder import Decoder
from halter.model.places import Act, Acts, tensors_of, with_tensors
from halter.numerics.losses import Wanted, head_loss


@dataclass(frozen=True)
class Head:
    """The head of a pass over ``model`` with ``acts``, None being the base; ``index`` int64 [M], ascending, are the
    tokens that it is asked about."""

    model: Decoder
    acts: Acts | None
    index: Tensor

    @property
    def _act(self) -> Act | None:
        return None if self.acts is None else self.acts.lm_head

    def _with(self, act: Act | None) -> Acts | None:
        """The acts with another one at the head, where there is one."""
        return self.acts if self.acts is None or self._act is None else self.acts._replace(lm_head=act)

    def part(self, place: slice) -> Head:
        """The head of some of the tokens, with no more than acts on them: nobody else has a gradient through it."""
        index = self.index[place]
        act = None if self._act is None else self._act.select(index)
        return Head(self.model, self._with(act), torch.arange(len(index), device=index.device))

    def without_gradient(self) -> Head:
        """The same, through which no gradient flows."""
        act, tensors = self._act, [tensor.detach() for tensor in tensors_of(self._act)]
        return Head(self.model, self._with(with_tensors(act, tensors)), self.index)

    def loss(self, hidden: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor]:
        """As numerics.losses.head_loss has it, of final hidden states [M, dim]."""
        vocabulary, matrix = self.model.config.vocab_size, self.model.head_matrix(self.acts)
        return head_loss(self._project, tensors_of(self._act), hidden, wanted, vocabulary, matrix)

    def log_probabilities(self, hidden: Tensor, start: int, end: int) -> Tensor:
        """[end - start, V] in float32 (float64 for float64) of tokens start .. end of hidden states [M, dim]."""
        logits = self.model.head(hidden[start:end], self.acts, self.index[start:end])
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def _project(self, piece: Tensor, start: int, end: int, tensors: Sequence[Tensor]) -> Tensor:
        here = self._with(with_tensors(self._act, tensors))
        return self.model.head(piece, here, self.index[start:end])
