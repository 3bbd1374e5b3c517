"""What a piece says of the low-rank pair that it is, of every method: no method is named here.

Warm starts, compression and combining believe it (halter/contract/pair.py).
"""

from __future__ import annotations

from contextlib import suppress

import bounds
import pytest
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.contract.registry import find, names
from halter.errors import Refusal

every_method = pytest.mark.parametrize("name", names())


def slots(name, model, seed=0):
    """Pieces moved off their start, with the options' defaults and, where a method has it, at the tokens' table."""
    made = [adapt(model, name, seed=seed)]
    if "target_modules" in find(name).__dataclass_fields__:
        with suppress(Refusal):
            made.append(adapt(model, name, seed=seed, target_modules=["embed_tokens"]))
    for adapter in made:
        tiny.jitter(adapter, seed=seed + 1)
    return [slot for adapter in made for slot in adapter.slots]


def weight_of(slot):
    """Any weight of a place, and not the base's: what is said must hold of every one."""
    return torch.randn(slot.at.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@every_method
def test_what_a_piece_says_of_its_pair_is_what_it_does(name):
    """Folded is the weight with the pair in it, brought to the lengths where there are some."""
    for slot in slots(name, tiny.decoder()):
        pair = slot.piece.pair()
        assert pair is not None or not slot.piece.takes_pairs
        if pair is None:
            continue
        assert slot.piece.folds
        a, b = (factor.double() for factor in pair.whole())
        update = pair.scale * (b @ a)
        want = weight_of(slot) + (update.T if pair.looked_up else update)
        if pair.lengths is not None:
            side = 0 if pair.looked_up else 1
            want *= (pair.lengths.double() / want.norm(dim=side)).unsqueeze(side)
        bounds.assert_same(slot.piece.fold(weight_of(slot), None)[0], want)
        assert len(a) == pair.rank == b.shape[1]
        if pair.start is None:
            left, right = pair.factors
            bounds.assert_same(pair.scale * left.double() @ right.double(), update.T if pair.looked_up else update)


@every_method
def test_the_pairs_of_a_piece_are_made_of_its_own_tensors(name):
    for slot in slots(name, tiny.decoder()):
        own = {id(tensor) for tensor in (*slot.piece.parameters(), *slot.piece.buffers())}
        for pair in slot.piece.pairs():
            tensors = (pair.a, pair.b, pair.c, pair.lengths, *(pair.start or ()))
            assert {id(tensor) for tensor in tensors if tensor is not None} <= own


@every_method
def test_a_piece_that_takes_a_pair_does_what_that_did(name):
    model = tiny.decoder()
    for slot, before in zip(slots(name, model), slots(name, model, 3), strict=True):
        if not slot.piece.takes_pairs:
            with pytest.raises(NotImplementedError):
                slot.piece.take(None, torch.nn.Identity())
            continue
        slot.piece.take(before.piece.pair(), model.module(slot.layer, slot.place))
        bounds.assert_same(slot.piece.fold(weight_of(slot), None)[0], before.piece.fold(weight_of(slot), None)[0])
