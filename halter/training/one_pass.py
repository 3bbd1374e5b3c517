"""One pass over packed rows, forward and backward, whatever it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from halter.model.decoder import Decoder
from halter.model.passes import Pass
from halter.model.places import Acts
from halter.model.reports import listening
from halter.model.segments import Segments
from halter.numerics.losses import Wanted
from halter.training.head import Head


class Aim(Protocol):
    """What a pass is for: ``index`` int64 [M], ascending, are the tokens whose final states it asks for."""

    @property
    def index(self) -> Tensor: ...

    @property
    def reports(self) -> bool:
        """Whether it listens to what layers report; they then see all tokens."""
        ...

    def loss(self, head: Head, hidden: Tensor, acts: Acts | None, heard: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(a scalar to be differentiated, what the pass tells) of final states [M, dim]."""
        ...


@dataclass(frozen=True)
class Learnt:
    """The tokens of one pass that are learnt: their ``index`` int64 [M], ascending, the ``targets`` int64 [M] that
    follow them, ``weights`` float32 [M] of their losses, ``smoothing`` float32 [M] of their labels or None. The pass
    tells their losses, float32 [M]."""

    index: Tensor
    targets: Tensor
    weights: Tensor
    smoothing: Tensor | None = None
    reports: bool = False

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.targets, self.weights, self.smoothing)

    def loss(self, head: Head, hidden: Tensor, acts: Acts | None, heard: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return head.loss(hidden, self.wanted)


@dataclass(frozen=True)
class FinalStates:
    """Nothing is learned: the pass tells the final states of the tokens ``index``."""

    index: Tensor
    reports: bool = False

    def loss(self, head: Head, hidden: Tensor, acts: Acts | None, heard: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return hidden.new_zeros(()), hidden


def one_pass(
    model: Decoder,
    tokens: Tensor,
    segments: Segments,
    acts: Acts | None,
    aim: Aim,
    checkpointing: bool,
    entered: tuple[int, Tensor] | None = None,
) -> Tensor:
    """Forward and backward over ``tokens`` int64 [N]; what the aim tells, of Learnt the tokens' losses. ``entered`` as
    Pass has it."""
    index = aim.index
    wanted = None if aim.reports else index
    with listening(aim.reports) as heard:
        hidden = model.hidden(Pass(tokens, segments, acts, None, wanted, checkpointing, entered))
    hidden = hidden[index] if aim.reports else hidden
    loss, told = aim.loss(Head(model, acts, index), hidden, acts, heard)
    if loss.requires_grad:
        loss.backward()
    return told
