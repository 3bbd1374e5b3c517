"""The weight that several acts make together, where an act changes its input otherwise than channel by channel."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from halter.adapters import folding
from halter.adapters.folding import fold_together
from halter.contract.method import Piece
from halter.methods.bitfit import AddedBias
from halter.model.layout import LINEAR, Place
from halter.model.places import Act


@dataclass(frozen=True)
class TurnedAct(Act):
    """y = W (Q x)."""

    turn: torch.Tensor

    def enter(self, x):
        return x @ self.turn.t()


class Turned(Piece):
    folds = True

    def __init__(self, turn):
        super().__init__()
        self.turn = turn

    def bind(self, site):
        return TurnedAct(self.turn.to(site.dtype))


@pytest.mark.parametrize("rows", [3, 1024])
@pytest.mark.parametrize("bias", [None, torch.arange(4.0)], ids=["no bias", "bias"])
def test_an_input_that_is_turned_folds(rows, bias, monkeypatch):
    """W Q and b + b': mixed channels are no column of the weight that could be looked up."""
    monkeypatch.setattr(folding, "ROWS", rows)
    generator = torch.Generator().manual_seed(0)
    weight, turn = torch.randn(4, 6, generator=generator), torch.randn(6, 6, generator=generator)
    added = AddedBias(4)
    with torch.no_grad():
        added.bias.fill_(0.5)
        for turns in (turn, turn.triu()):  # the second has the diagonal that unit vectors have
            made, total = fold_together([added, Turned(turns)], Place("q_proj", LINEAR, layer=0), weight, bias)
            torch.testing.assert_close(made, weight @ turns, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(total, torch.full((4,), 0.5) + (0 if bias is None else bias))
