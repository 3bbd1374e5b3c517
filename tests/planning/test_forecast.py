"""halter.planning: counts of the mechanism table, bytes of what is really built, and a pass that is really run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from halter.adapters.adapter import adapt
from halter.contract.method import Method
from halter.contract.registry import find, names
from halter.errors import Refusal
from halter.methods.excitor import Excitor
from halter.methods.llama_adapter import LlamaAdapter
from halter.methods.llama_adapter_v2 import LlamaAdapterV2
from halter.methods.lora import Lora
from halter.model.config import preset
from halter.model.decoder import Decoder
from halter.model.decoding import for_decoding
from halter.model.nf4_linear import NF4Linear
from halter.model.storages import quantised
from halter.numerics import nf4_packed
from halter.planning import Setting, forecast
from halter.planning.dry import base_bytes, counts_by_place, dry_adapter, dry_base
from halter.planning.trace import training_pass
from tests import tiny

BASES = ("llama-1-7b", "llama-2-70b", "llama-3-8b", "llama-1-65b")
TABLE: list[tuple[Method, tuple[int, int, int, int]]] = [
    (Lora(r=8, target_modules=("q_proj", "v_proj")), (4_194_304, 16_384_000, 3_407_872, 20_971_520)),
    (Lora(r=64), (159_907_840, 828_375_040, 167_772_160, 799_539_200)),
    (LlamaAdapter(10, 30), (1_229_760, 6_394_752, 1_229_760, 6_394_752)),
    (LlamaAdapterV2(scale_side="in"), (2_764_800, 14_262_272, 2_887_680, 13_811_712)),
    (find("bottleneck")(), (33_820_672, 169_093_120, 33_820_672, 169_093_120)),
]
"""Counts from the official code (facts/mechanisms.md, section 0.1); layers from the last in 32 for V1."""


@pytest.mark.parametrize(("method", "counts"), TABLE, ids=lambda v: v.name() if isinstance(v, Method) else "")
def test_trainable_counts_are_the_tables(method: Method, counts: tuple[int, ...]) -> None:
    for base, expected in zip(BASES, counts, strict=True):
        shape = preset(base)
        own = replace(method, adapter_layers=shape.layers - 2) if isinstance(method, LlamaAdapter) else method
        adapter = dry_adapter(shape, [own])
        assert adapter.num_trainable == expected
        assert sum(counts_by_place(adapter).values()) == expected


def test_tied_weights_are_counted_once() -> None:
    shape = preset("llama-3.2-1b")
    found = forecast(Setting("llama-3.2-1b", shape, (find("full")(),), torch.bfloat16, length=16))
    assert found.trainable == sum(found.by_place.values()) == shape.num_parameters == 1_235_814_400
    assert found.training.base == 2 * shape.num_parameters
    assert found.training.gradients + found.training.temporary >= 4 * shape.num_parameters
    assert found.training.optimizer == 8 * shape.num_parameters


@pytest.mark.parametrize("held", [None, "nf4", "int8"])
def test_base_bytes_are_those_of_a_real_base(held: str | None) -> None:
    model = tiny.decoder(tiny.config(dim=64, ffn_dim=192))
    if held:
        for layer in range(model.config.layers):
            for place in tiny.LINEARS:
                model.set_linear(model.layout.at(layer, place), quantised(held, model.module(layer, place).weight()))
    assert base_bytes(dry_base(model.config, model.dtype, held)) == base_bytes(model)
    assert base_bytes(model).total == sum({id(b): b.nbytes for b in model.buffers()}.values())


def test_the_size_of_4_bits_is_the_papers() -> None:
    found = base_bytes(dry_base(preset("llama-1-7b"), torch.bfloat16, "nf4"))
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert found.constants == linear // 64 + 4 * (linear // (64 * 256)) + 4 * 7 * 32
    assert round(found.total / 1e9, 3) == 3.866  # facts/mechanisms.md, section 2


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_method_can_be_traced_without_memory(name: str, checkpointing: bool) -> None:
    shape = tiny.config(layers=3)
    method = find(name)(r=2) if "r" in find(name).__dataclass_fields__ else find(name)()
    adapter = dry_adapter(shape, [method])
    found = training_pass(dry_base(shape, torch.float32, None), adapter, 2, 24, checkpointing)
    assert found.worst["activations"] > 0 and found.operations > 0
    assert all(parameter.grad is None for parameter in adapter.parameters())


def test_checkpointing_keeps_less_and_computes_more() -> None:
    shape, method = tiny.config(layers=8), Lora(r=2)
    base, adapter = dry_base(shape, torch.float32, None), dry_adapter(shape, [method])
    plain, thrifty = (training_pass(base, adapter, 2, 64, on) for on in (False, True))
    assert thrifty.total < plain.total / 2
    assert plain.operations < thrifty.operations < 1.6 * plain.operations


def test_operations_are_those_of_the_matrix_products() -> None:
    """By hand: every weight of the linear layers twice forward, twice backward for dx, the head as well; the low-rank
    pair three times; attention 4 and 10 per scored pair and number of a head."""
    shape, rows, length = tiny.config(), 3, 40
    adapter = dry_adapter(shape, [Lora(r=2)])
    found = training_pass(dry_base(shape, torch.float32, None), adapter, rows, length, False)
    linear = sum(a * b for a, b in (shape.layout.at(0, p).shape for p in tiny.LINEARS)) * shape.layers
    head = shape.vocab_size * shape.dim
    pairs = rows * length * (length + 1) // 2 * shape.layers
    first = 2 * sum(
        a * b for a, b in (shape.layout.at(0, p).shape for p in ("q_proj", "k_proj", "v_proj"))
    )  # no dx there
    expected = rows * length * (4 * (linear + head) - first + 6 * adapter.num_trainable)
    expected += 14 * pairs * shape.heads * shape.head_dim
    assert found.operations == pytest.approx(expected, rel=0.005)


def test_adapters_of_real_bases_have_the_bytes_that_are_planned() -> None:
    shape = tiny.config(layers=4)
    model: Decoder = tiny.decoder(shape)
    for method in (Lora(r=2), Excitor(adapter_len=3, adapter_layers=2, r=2), LlamaAdapterV2()):
        adapter = adapt(model, method)
        found = forecast(Setting("tiny", shape, (method,), torch.float32, length=16))
        assert found.trainable == adapter.num_trainable
        assert found.adapter_disk == sum(t.nbytes for t in adapter.state_dict().values())
        assert found.checkpoint_disk == found.adapter_disk + 8 * found.trainable


@pytest.mark.skipif(not nf4_packed.available(), reason="no packed product on this machine")
@pytest.mark.parametrize(("dtype", "packs"), [(torch.bfloat16, True), (torch.float32, False)])
def test_packed_copies_for_writing_are_counted(dtype: torch.dtype, packs: bool, quickest: Any) -> None:
    quickest("packed")
    shape = tiny.config(dim=64, heads=4, kv_heads=2, head_dim=16, ffn_dim=192)
    found = forecast(Setting("tiny", shape, (Lora(r=2),), dtype, quantize="nf4", length=16)).generation
    model = tiny.decoder(shape, dtype=dtype)
    for layer in range(shape.layers):
        for place in tiny.LINEARS:
            model.set_linear(model.layout.at(layer, place), NF4Linear.quantize(model.module(layer, place).weight()))
    before = sum(linear.nbytes for _, linear in model.places() if isinstance(linear, NF4Linear))
    with for_decoding(model, 1, 100):
        after = sum(linear.nbytes for _, linear in model.places() if isinstance(linear, NF4Linear))
    assert found.packed == (after - before if packs else 0)
    assert found.total == sum(vars(found).values())


@pytest.mark.parametrize("kind", [None, "nf4", "int8"])
def test_streamed_layers_are_counted_where_they_lie(kind: str | None) -> None:
    shape = tiny.config(dim=64, ffn_dim=192, layers=6)
    setting = Setting("tiny", shape, (Lora(r=2),), torch.bfloat16, quantize=kind, length=16)
    whole, apart = forecast(setting), forecast(replace(setting, offload=True))
    model = tiny.decoder(shape, torch.bfloat16)
    for layer in range(shape.layers if kind else 0):
        for place in tiny.LINEARS:
            model.set_linear(model.layout.at(layer, place), quantised(kind, model.module(layer, place).weight()))  # type: ignore
    stream = model.stream_layers()
    outer = sum(t.nbytes for t in (model.embed_tokens.matrix, model.norm.scale, model.lm_head.weight()))
    assert (
        apart.host == stream.host_bytes and apart.training.base == apart.generation.base == outer + stream.device_bytes
    )
    saved = whole.training.base + whole.training.constants - apart.training.base
    assert whole.training.total - apart.training.total == saved > 0 and whole.host == 0
    with pytest.raises(Refusal, match="frozen"):
        forecast(replace(setting, methods=(find("full")(),), offload=True))
