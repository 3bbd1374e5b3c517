"""Activations kept in CPU memory: the same gradients bit for bit, and a device that holds less of them."""

from __future__ import annotations

import gc
import weakref

import pytest
import tiny
import torch
from stand_in import Device, LateLane

from halter.adapters.adapter import adapt
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.training.offload import ActivationOffload, offloaded
from halter.training.one_pass import Learnt, one_pass

SHAPE = tiny.config(layers=6)
TOKENS = torch.randint(0, 96, (96,), generator=torch.Generator().manual_seed(0))
INDEX = torch.arange(2, 96, 4)


def step(model, adapter, checkpointing):
    segments = Segments.packed([40, 56], prompt_lengths=[3, 3])
    learnt = Learnt(INDEX, TOKENS[INDEX - 1], torch.full((len(INDEX),), 0.1))
    adapter.zero_grad()
    losses = one_pass(model, TOKENS, segments, adapter.bind(model, segments, 7), learnt, checkpointing)
    return [losses, *(p.grad for p in adapter.parameters())]


def offload(model, adapter, **options):
    """The model from now on with activations moved to the lane's CPU memory."""
    copy_stream = LateLane()
    tensor_saver = ActivationOffload(copy_stream, [*model.buffers(), *adapter.parameters()], **options)
    model.tensor_savers.append(tensor_saver)
    return copy_stream, tensor_saver


def pair(name, **options):
    made = []
    for _ in range(2):
        model = tiny.decoder(SHAPE)
        adapter = adapt(model, name, **options)
        tiny.jitter(adapter)
        made += [model, adapter]
    return made


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "options"), [("lora", {"dropout": 0.3}), ("dora", {}), ("excitor", {}), ("bottleneck", {}), ("ia3", {})]
)
@pytest.mark.parametrize("leaving", [0, 30_000])
def test_gradients_are_the_same(name, options, checkpointing, streamed, leaving):
    resident, plain, moving, adapter = pair(name, **options)
    if streamed:
        moving.stream_layers(copy_stream=LateLane())
    copy_stream, _ = offload(moving, adapter, smallest=1, leaving=leaving)
    for _ in range(2):
        for ours, theirs in zip(
            step(moving, adapter, checkpointing), step(resident, plain, checkpointing), strict=True
        ):
            assert torch.equal(ours, theirs) and not ours.isnan().any()
    assert copy_stream.rooms


def watched(model, adapter, checkpointing, copy_stream=None):
    device = Device(copy_stream=copy_stream)
    device.held = {
        t.untyped_storage()._cdata: weakref.ref(t.untyped_storage()) for t in (*model.buffers(), *adapter.parameters())
    }
    with device:
        step(model, adapter, checkpointing)
    return device.most


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_device_holds_less(checkpointing):
    resident, plain, moving, adapter = pair("lora", r=2)
    copy_stream, _ = offload(moving, adapter, smallest=1024, leaving=0)
    all_here, most = watched(resident, plain, checkpointing), watched(moving, adapter, checkpointing, copy_stream)
    layer_input = 96 * 32 * 4
    if checkpointing:  # the inputs of the layers above the first, but for those that are worked on
        assert most <= all_here - 2 * layer_input
    else:
        assert most < all_here / 2


def test_nothing_is_copied_that_stays_and_nothing_twice():
    _, _, model, adapter = pair("lora")
    copy_stream, tensor_saver = offload(model, adapter, smallest=1, leaving=10**9)
    x = torch.randn(64, requires_grad=True) * 1.0
    first, again = tensor_saver.take(x.view(8, 8)), tensor_saver.take(x[3:])
    assert len(copy_stream.under_way) == 1 and torch.equal(first(), x.view(8, 8)) and torch.equal(again(), x[3:])
    x.detach().add_(1)
    changed = tensor_saver.take(x)  # no longer what was taken
    assert len(copy_stream.under_way) == 2 and torch.equal(changed(), x)
    for tensor in (*model.buffers(), *adapter.parameters()):
        assert tensor_saver.take(tensor) is None and tensor_saver.take(tensor.detach()[1:]) is None
    small = ActivationOffload(copy_stream, smallest=65)
    assert small.take(torch.zeros(16)) is None and small.take(torch.zeros(17)) is not None


def test_a_pass_that_fails_leaves_nothing_behind():
    _, _, model, adapter = pair("lora")
    copy_stream, tensor_saver = offload(model, adapter, smallest=1, leaving=0)
    segments = Segments.packed([40, 56])
    hidden = model.hidden(Pass(TOKENS, segments, adapter.bind(model, segments)))
    alive = [ref for ref in tensor_saver._order if ref() is not None]
    assert len(alive) > 20
    del hidden
    gc.collect()
    assert all(ref() is None for ref in alive) and all(pair is None for pair in copy_stream.under_way)


def test_on_a_cpu_it_is_said_that_nothing_changes():
    model = tiny.decoder()
    said: list[str] = []
    with offloaded(model, [], True, said.append):
        assert model.tensor_savers == [] and "changes nothing on cpu" in said[0]
    with offloaded(model, [], False, said.append):
        assert len(said) == 1
