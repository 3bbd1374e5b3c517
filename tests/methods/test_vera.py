"""VeRA: one pair of matrices for all layers, drawn as peft draws it; the rest is in test_peft_matrix and the laws."""

from __future__ import annotations

import peft
import pytest
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.methods.vera import Vera

SHAPE = tiny.config()
R, KEY = 5, 7


def test_the_shared_pair_is_pefts_bit_for_bit():
    model = tiny.decoder(SHAPE)
    adapter = adapt(model, "vera", r=R, projection_key=KEY)
    config = peft.VeraConfig(task_type="CAUSAL_LM", r=R, target_modules=list(tiny.LINEARS), projection_prng_key=KEY)
    theirs = peft.get_peft_model(tiny.peer(model), config).base_model
    for mine, name in ((adapter.slots[0].piece.shared_a, "vera_A"), (adapter.slots[0].piece.shared_b, "vera_B")):
        assert torch.equal(mine, getattr(theirs, name)["default"])


@pytest.mark.parametrize("layers", [2, 9])
def test_it_is_held_once_however_many_layers_there_are(layers):
    """While it is built too: a piece by itself has vectors alone."""
    shape = tiny.config(layers=layers)
    piece = Vera(r=R).build(shape, 0)["up_proj"]
    assert sum(buffer.numel() for buffer in piece.buffers()) == 0
    adapter = adapt(tiny.decoder(shape), "vera", r=R)
    held = {id(buffer): buffer.numel() for slot in adapter.slots for buffer in slot.piece.buffers()}
    assert sum(held.values()) == R * (SHAPE.ffn_dim + SHAPE.ffn_dim) and len(held) == 2
