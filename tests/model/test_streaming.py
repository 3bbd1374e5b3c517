"""Layers held in CPU memory and brought to a device of limited room: the resident model bit for bit.

The device is a stand-in on the CPU whose copies arrive only when somebody waits for them; until then the target is NaN,
as is whatever a layer that had to go would have left behind.
"""

from __future__ import annotations

import copy
import weakref

import pytest
import tiny
import torch
from stand_in import Device, LateLane, address

from halter.adapters.adapter import adapt
from halter.contract.registry import names
from halter.errors import Refusal
from halter.generation.engine import generate
from halter.model import decoding as packing
from halter.model.copy_stream import PAGE, paged
from halter.model.int8_linear import Int8Linear
from halter.model.linear import DenseLinear, Linear
from halter.model.nf4_linear import NF4Linear
from halter.model.segments import Segments
from halter.model.streaming import layer_bytes
from halter.pretrained.load import load
from halter.training.one_pass import Learnt, one_pass

LAYERS = 4
STORAGES = {
    "dense": (DenseLinear, torch.float32),
    "bf16": (DenseLinear, torch.bfloat16),
    "nf4": (NF4Linear, torch.bfloat16),
    "int8": (Int8Linear, torch.bfloat16),
}
STREAMABLE = [name for name in names() if name != "full"]


def base(storage: str = "dense", layers: int = LAYERS):
    kind, dtype = STORAGES[storage]
    model = tiny.decoder(tiny.config(layers=layers), dtype)
    if kind is not DenseLinear:
        for layer in range(layers):
            for place in tiny.LINEARS:
                model.set_linear(model.layout.at(layer, place), kind.quantize(model.module(layer, place).weight()))
    return model


def pair(storage: str = "dense", buffers: int = 2, layers: int = LAYERS):
    """The resident model, and the same one streamed through room for so many layers."""
    resident = base(storage, layers)
    streamed = copy.deepcopy(resident)
    streamed.stream_layers(buffers * layer_bytes(resident.layers[0]), LateLane())
    return resident, streamed


def step(model, adapter, checkpointing=False, key=7, lengths=(9, 14, 5)):
    """Losses and gradients of one pass."""
    count = sum(lengths)
    tokens = torch.randint(0, 96, (count,), generator=torch.Generator().manual_seed(0))
    segments = Segments.packed(lengths, prompt_lengths=[3] * len(lengths))
    index = torch.arange(2, count, 2)
    learnt = Learnt(index, tokens[index - 1], torch.full((len(index),), 0.1))
    adapter.zero_grad()
    losses = one_pass(model, tokens, segments, adapter.bind(model, segments, key), learnt, checkpointing)
    return [losses, *(p.grad for p in adapter.parameters())]


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (torch.equal(a, b) and not a.isnan().any())


def adapters(name, resident, streamed, **options):
    """The same moved adapter for both, each started on its own base."""
    made = [adapt(model, name, **options) for model in (resident, streamed)]
    for adapter in made:
        tiny.jitter(adapter)
    return made


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", STREAMABLE)
def test_every_method_learns_the_same(name, checkpointing):
    resident, streamed = pair()
    plain, through = adapters(name, resident, streamed)
    for _ in range(2):  # the second begins where the first one's backward left the buffers
        same(step(streamed, through, checkpointing), step(resident, plain, checkpointing))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("buffers", [1, 2])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("name", "options"), [("lora", {"dropout": 0.3}), ("dora", {"dropout": 0.3})])
def test_every_storage_learns_the_same(name, options, storage, buffers, checkpointing):
    resident, streamed = pair(storage, buffers)
    plain, through = adapters(name, resident, streamed, **options)
    same(step(streamed, through, checkpointing), step(resident, plain, checkpointing))


def test_no_storage_is_forgotten_here():
    assert {kind for kind, _ in STORAGES.values()} == {
        kind for kind in Linear.__subclasses__() if kind.__module__.startswith("halter.model.")
    }


@pytest.mark.parametrize("storage", STORAGES)
def test_greedy_tokens_are_the_same(storage, data, monkeypatch):
    monkeypatch.setattr(packing, "PACK_STEPS", 10**6)  # another product, which a streamed base never takes
    kind, dtype = STORAGES[storage]
    quantize = None if kind is DenseLinear else kind.storage
    resident, tokenizer = load(data.base, dtype, quantize, "cpu")
    streamed = copy.deepcopy(resident)
    streamed.stream_layers(2 * layer_bytes(resident.layers[0]), LateLane())
    prompts = ["Once upon a time", "Tom had a dog. The dog was", "The"]
    found = generate(streamed, tokenizer, prompts, max_new_tokens=24)
    assert [a.tokens for a in found] == [a.tokens for a in generate(resident, tokenizer, prompts, max_new_tokens=24)]
    assert min(len(answer.tokens) for answer in found) > 8
    tokens = torch.arange(3, 23).view(2, 10)
    with torch.no_grad():
        assert torch.equal(streamed(tokens), resident(tokens))


def watched(model, adapter, checkpointing):
    """The device's view of one step; resident tensors are not counted as made."""
    standing = [t.untyped_storage() for t in (*model.buffers(), *adapter.parameters())]
    if not model.residence.resident:
        standing += [buffer.memory.untyped_storage() for buffer in model.residence._buffers]
    device = Device(set() if model.residence.resident else host_addresses(model))
    device.held = {storage._cdata: weakref.ref(storage) for storage in standing}
    with device:
        step(model, adapter, checkpointing)
    return device


def host_addresses(model):
    return {t.untyped_storage().data_ptr() for layer in model.layers for t in layer.buffers()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ["lora", "dora", "llama_adapter"])
def test_no_operation_reads_the_cpu_and_nothing_of_the_layers_is_kept(name, storage, checkpointing):
    resident, streamed = pair(storage)
    plain, through = adapters(name, resident, streamed)
    seen, reference = watched(streamed, through, checkpointing), watched(resident, plain, checkpointing)
    assert seen.touched == []
    assert seen.most <= reference.most  # two buffers stand, and the step takes what it takes with all layers there
    assert streamed.residence.device_bytes == 2 * layer_bytes(resident.layers[0])


def test_the_watch_itself_sees():
    resident, streamed = pair()
    with Device(host_addresses(streamed)) as device:
        streamed.layers[0].q_proj(torch.zeros(1, 32))
        kept = torch.zeros(1000)
    assert device.touched and device.most >= kept.nbytes


def test_layers_are_under_way_early_and_spared_at_both_turning_points():
    _, streamed = pair()
    stream, adapter = streamed.residence, adapt(streamed, "lora")
    for checkpointing in (False, True):
        before = stream.copies
        step(streamed, adapter, checkpointing)  # forward all but those still there, backward all but the last two
        assert stream.copies - before == (LAYERS if before == 0 else LAYERS - 2) + LAYERS - 2
        assert stream.late == 1  # the very first; all others were under way when they were asked for
    before = stream.copies
    for _ in range(3):
        with torch.no_grad():
            streamed(torch.arange(6)[None])
    assert stream.copies - before == 3 * LAYERS - 1  # layers 0 and 1 were there, and layer 0 is under way
    assert stream.late == 1


def test_layers_outside_their_turn_are_whole_and_on_the_cpu():
    resident, streamed = pair("nf4")
    step(streamed, adapt(streamed, "lora"))
    for (name, module, _buffer), (_, other, _) in zip(streamed.tensors(), resident.tensors(), strict=True):
        if "layers" in name and hasattr(module, "weight"):
            assert torch.equal(module.weight(), other.weight())
    assert streamed.residence.host_bytes == sum(layer_bytes(layer) for layer in resident.layers)


def test_too_little_room_and_trained_layers_are_refused():
    resident = base()
    largest = layer_bytes(resident.layers[0])
    with pytest.raises(Refusal, match=f"{largest:,}") as refused:
        resident.stream_layers(largest - 1)
    assert refused.value.id == "offload-too-small"
    _, streamed = pair()
    with pytest.raises(Refusal) as refused:
        adapt(streamed, "full")
    assert refused.value.id == "offload-full" and len(refused.value.found) == LAYERS * len(tiny.LINEARS)
    with pytest.raises(ValueError, match="streamed"):
        streamed.set_tensor("model.layers.0.mlp.up_proj.weight", torch.zeros(48, 32))


def test_cpu_memory_for_copies_lies_on_pages_of_its_own():
    for size in (1, PAGE - 1, PAGE, PAGE + 1):
        memory = paged(size)
        pages = -(-size // PAGE) * PAGE
        assert memory.numel() == size and memory.data_ptr() % PAGE == 0
        storage = memory.untyped_storage()
        assert memory.data_ptr() + pages <= storage.data_ptr() + storage.nbytes()


@pytest.mark.parametrize("storage", STORAGES)
def test_training_goes_on_after_a_generation(storage):
    resident, streamed = pair(storage)
    plain, through = adapters("dora", resident, streamed)
    with torch.inference_mode():
        streamed(torch.arange(6)[None], through)
    same(step(streamed, through), step(resident, plain))
    with torch.inference_mode():
        assert torch.equal(streamed(torch.arange(6)[None]), resident(torch.arange(6)[None]))
    same(step(streamed, through, True), step(resident, plain, True))


def test_a_pass_that_fails_in_a_layer_leaves_the_next_one_right():
    resident, streamed = pair()
    plain, through = adapters("lora", resident, streamed)
    whole = streamed.layers[2].mlp
    streamed.layers[2].mlp = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        step(streamed, through)
    streamed.layers[2].mlp = whole
    assert address(streamed.layers[2].q_proj.weight()) in host_addresses(streamed)
    same(step(streamed, through), step(resident, plain))
