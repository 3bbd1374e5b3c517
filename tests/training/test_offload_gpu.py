"""On a real GPU: streamed layers and moved activations are the resident run, in the memory that is promised."""

from __future__ import annotations

import gc

import pytest
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.model.nf4_linear import NF4Linear
from halter.model.segments import Segments
from halter.model.streaming import layer_bytes
from halter.training.offload import offloaded
from halter.training.one_pass import Learnt, one_pass

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHAPE = tiny.config(layers=12, dim=1024, heads=8, kv_heads=4, head_dim=128, ffn_dim=4096, context=2048)
LENGTH = 1024


def base(nf4):
    model = tiny.decoder(SHAPE, torch.bfloat16)
    for layer in range(SHAPE.layers if nf4 else 0):
        for place in tiny.LINEARS:
            model.set_linear(model.layout.at(layer, place), NF4Linear.quantize(model.module(layer, place).weight()))
    return model.to("cuda")


def steps(model, checkpointing, moved=False):
    """Losses and gradients of three passes, and the most memory that they took."""
    adapter = adapt(model, "lora")
    tiny.jitter(adapter.cpu())
    adapter.to("cuda")
    tokens = torch.randint(0, 96, (2 * LENGTH,), generator=torch.Generator().manual_seed(0)).cuda()
    index = torch.arange(1, 2 * LENGTH, 8, device="cuda")
    learnt = Learnt(index, tokens[index - 1], torch.full((len(index),), 0.01, device="cuda"))
    segments = Segments.packed([LENGTH] * 2, "cuda", prompt_lengths=[3, 3])
    found = []
    torch.cuda.reset_peak_memory_stats()
    with offloaded(model, [adapter], moved, print):
        for _ in range(3):
            adapter.zero_grad()
            found.append(one_pass(model, tokens, segments, adapter.bind(model, segments, 7), learnt, checkpointing))
            found += [p.grad.clone() for p in adapter.parameters()]
    torch.cuda.synchronize()
    return [t.cpu() for t in found], torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("nf4", [False, True])
def test_streamed_is_resident_with_two_layers_on_the_gpu(nf4, checkpointing):
    model = base(nf4)
    wanted, all_there = steps(model, checkpointing)
    size = layer_bytes(model.layers[0])
    stream = model.stream_layers()
    assert stream.locked and stream.device_bytes == 2 * size
    gc.collect()
    torch.cuda.empty_cache()
    found, most = steps(model, checkpointing)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2 * float(theirs.abs().max()))
    assert all_there - most > (SHAPE.layers - 3) * size


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_moved_activations_are_the_same_in_less_memory(checkpointing, streamed):
    model = base(False)
    if streamed:
        model.stream_layers()
    wanted, all_there = steps(model, checkpointing)
    found, most = steps(model, checkpointing, moved=True)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2 * float(theirs.abs().max()))
    if not checkpointing:  # with it, the layers' inputs are fewer bytes than may be under way
        assert most < all_there
