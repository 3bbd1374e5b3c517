"""Compressed adapter files: spelt and read as documented, the loss as told, hostile sizes refused."""

from __future__ import annotations

import json
import math

import bounds
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.adapters.saving import state_of
from halter.errors import Refusal
from halter.export.compress import CompressOptions, compress, kept_numbers, partners_in
from halter.files.few_bits import pack, unpack
from halter.files.manifest import write_manifest
from halter.files.tensors import read_tensors
from halter.files.writing import write_tensors
from halter.methods.dora import Dora
from halter.methods.excitor import Excitor
from halter.methods.llama_adapter_v2 import LlamaAdapterV2
from halter.methods.loha import Loha
from halter.methods.lora import Lora
from halter.methods.pissa import Pissa

TOKENS = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(2))
SHAPE = tiny.config(layers=1, dim=64, ffn_dim=96)


def by_hand(values, bits):
    """The documented spelling, one number at a time, in Python's floats."""
    nf4 = [
        -1.0,
        -0.69619280,
        -0.52507305,
        -0.39491749,
        -0.28444138,
        -0.18477343,
        -0.09105004,
        0.0,
        0.07958030,
        0.16093020,
        0.24611230,
        0.33791524,
        0.44070983,
        0.56261700,
        0.72295684,
        1.0,
    ]
    out = []
    for at in range(0, len(values), 64):
        block = values[at : at + 64]
        mean = sum(map(abs, block)) / len(block)
        scale = float(torch.tensor(mean if bits == 1 else max(map(abs, block))).bfloat16())
        for v in block:
            share = max(-1.0, min(1.0, v / scale)) if scale else 0.0
            if bits == 8:
                out.append(round(share * 127) * scale / 127)
            elif bits == 4:
                out.append(min(nf4, key=lambda c, s=share: abs(c - s)) * scale)
            else:
                out.append(scale if v >= 0 else -scale)
    return torch.tensor(out)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 70), seed=st.integers(0, 99), share=st.floats(0.0, 1.0))
@pytest.mark.parametrize("bits", [8, 4, 1])
def test_numbers_come_back_as_documented(bits, rows, columns, seed, share):
    g = torch.Generator().manual_seed(seed)
    tensor = torch.randn(rows, columns, generator=g) * torch.rand(rows, 1, generator=g)
    keep = torch.rand(rows, columns, generator=g) < share
    got, wrong = unpack(pack("x", tensor, bits), {"x": (rows, columns)})
    assert not wrong
    bounds.assert_same(got["x"].flatten(), by_hand(tensor.flatten().tolist(), bits))
    pruned, wrong = unpack(pack("x", tensor, bits, keep), {"x": (rows, columns)})
    assert not wrong and not pruned["x"][~keep].any()
    bounds.assert_same(pruned["x"][keep], by_hand(tensor[keep].tolist(), bits))
    exact, _ = unpack(pack("x", tensor, 32, keep), {"x": (rows, columns)})
    assert torch.equal(exact["x"], torch.where(keep, tensor, 0.0))


def test_the_bytes_are_as_the_page_says():
    """Counted and spelt by hand: 1 bit packs the first number into the highest bit, 4 bits into the high half."""
    tensor = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 1.0, 1.0])
    one, four = pack("x", tensor, 1), pack("x", tensor, 4)
    assert one["x.code1"].tolist() == [0b10110001, 0b10000000] and one["x.scale"].tolist() == [1.0]
    assert four["x.code4"].tolist() == [0xF0, 0xFF, 0x00, 0x0F, 0xF0]
    assert pack("x", tensor, 8)["x.code8"].tolist() == [127, -127, 127, 127, -127, -127, -127, 127, 127]
    assert pack("x", tensor, 32, tensor > 0)["x.mask"].tolist() == [0b10110001, 0b10000000]


BITS_EACH = {8: 8.25, 4: 4.25, 1: 1.25}


@pytest.mark.parametrize("bits", [8, 4, 1])
@pytest.mark.parametrize("method", ["lora", "llama_adapter", "bottleneck", "bitfit"])
def test_a_compressed_folder_loads_as_it_was_told(method, bits, tmp_path):
    model = tiny.decoder(SHAPE)
    adapter = adapt(model, method, **({"r": 16} if method == "lora" else {}))
    tiny.jitter(adapter)
    adapter.facts = {"base": {"name": "x"}}
    smaller, report = compress(adapter, tmp_path / "small", CompressOptions(bits))
    loaded = load_adapter(tmp_path / "small", model)
    before, after, read = state_of(adapter), state_of(smaller), state_of(loaded)
    assert all(torch.equal(after[name], read[name]) for name in before) and loaded.facts["base"] == {"name": "x"}
    lost = math.sqrt(sum(float((before[n].double() - read[n].double()).square().sum()) for n in before))
    whole = math.sqrt(sum(float(t.double().square().sum()) for t in before.values()))
    assert abs(report.error - lost / whole) < 1e-6
    with torch.no_grad():
        assert torch.equal(model(TOKENS, smaller), model(TOKENS, loaded))
    config = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    assert config["peft_type"] == "HALTER_COMPRESSED"  # no other program takes it for what it is not
    adapter.save(tmp_path / "whole")
    loaded.save(tmp_path / "again")  # and it is written whole again
    assert load_adapter(tmp_path / "again", model).methods == adapter.methods
    print(f"{method}: {report}")
    if method == "lora":
        stored = read_tensors(tmp_path / "small" / "adapter_model.safetensors")
        bytes_each = sum(t.numel() * t.itemsize for t in stored.values()) / sum(t.numel() for t in before.values())
        assert bytes_each * 8 == BITS_EACH[bits]
        assert {8: 0.005, 4: 0.08, 1: 0.5}[bits] < 1.5 * report.error < {8: 0.015, 4: 0.18, 1: 1.0}[bits]
        assert set(report.updates) == {slot.path for slot in adapter.slots} and report.update_error < 1


def test_peft_refuses_the_folder_in_words(tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny.decoder(SHAPE)
    adapter = adapt(model, "lora", r=8)
    compress(adapter, tmp_path / "small")
    with pytest.raises((ValueError, KeyError), match="HALTER_COMPRESSED"):
        peft.PeftModel.from_pretrained(tiny.peer(model), tmp_path / "small")


def test_pruning_by_update_loses_less_of_it_than_by_magnitude(tmp_path):
    """A starts far larger than B, so that magnitudes alone say little; the loss of the update is measured."""
    model = tiny.decoder(SHAPE)
    adapter = adapt(model, "lora", r=16)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for slot in adapter.slots:
            slot.piece.b.copy_(torch.randn(slot.piece.b.shape, generator=generator) * torch.logspace(0, -2, 16))
    lost = {}
    for importance in ("update", "magnitude"):
        options = CompressOptions(32, 0.4, importance)
        _, report = compress(adapter, tmp_path / importance, options)
        lost[importance] = report.update_error
        assert abs(report.numbers / report.of - 0.4) < 0.001
    print(f"error of the update at 40 %: {lost}")
    assert lost["update"] < 0.75 * lost["magnitude"]


def test_importance_is_what_leaving_a_number_out_changes():
    g = torch.Generator().manual_seed(0)
    own = {"m.lora_A.weight": torch.randn(8, 40, generator=g), "m.lora_B.weight": torch.randn(50, 8, generator=g)}
    a, b = own.values()
    partners = {"m.lora_A.weight": ("m.lora_B.weight", True), "m.lora_B.weight": ("m.lora_A.weight", False)}
    keep = kept_numbers(own, CompressOptions(32, 0.3), partners)
    costs = {}
    for name, tensor in own.items():
        for at in range(0, tensor.numel(), 7):
            left_out = {n: t.clone() for n, t in own.items()}
            left_out[name].view(-1)[at] = 0
            change = left_out["m.lora_B.weight"] @ left_out["m.lora_A.weight"] - b @ a
            costs[name, at] = (float(change.norm()), bool(keep[name].flatten()[at]))
    kept, gone = ([c for c, k in costs.values() if k is wanted] for wanted in (True, False))
    assert min(kept) > max(gone) and len(kept) > 20


@pytest.mark.parametrize(
    ("methods", "pairs"),
    [
        ([Lora(r=2, target_modules=["q_proj", "embed_tokens"]), Dora(r=2, target_modules=["k_proj"])], 3),
        ([Pissa(r=2)], 7),
        ([LlamaAdapterV2(branch_rank=2)], 7),  # inside a piece that is more than a pair
        ([Excitor()], 0),
        ([Loha(r=2)], 0),
    ],
    ids=lambda v: str(v)[:40],
)
def test_the_factors_of_every_pair_are_partners(methods, pairs):
    adapter = adapt(tiny.decoder(SHAPE), methods)
    found = partners_in(adapter)
    inner = {name: other for name, (other, first) in found.items() if first}
    assert len(inner) == pairs and len(found) == 2 * pairs and set(found) <= set(state_of(adapter))
    assert all(name.count("_A") == 1 and other == name.replace("_A", "_B") for name, other in inner.items())
    assert all(found[other] == (name, False) for name, other in inner.items())


HOSTILE = {
    "code8": lambda t: t.new_zeros(10**6),
    "scale": lambda t: t[:-1],
}


@pytest.mark.parametrize("part", ["code8", "scale", "mask", "both", "float", "none", "nan", "beyond", "strange"])
def test_hostile_parts_are_refused_by_name(part, tmp_path):
    model = tiny.decoder(SHAPE)
    adapter = adapt(model, "lora", r=8, target_modules=["q_proj"])
    compress(adapter, tmp_path / "small", CompressOptions(8, 0.5 if part in ("mask", "beyond") else 1.0))
    file = tmp_path / "small" / "adapter_model.safetensors"
    stored = read_tensors(file)
    name = "model.layers.0.self_attn.q_proj.lora_A.weight"
    if part in HOSTILE:
        stored[f"{name}.{part}"] = HOSTILE[part](stored[f"{name}.{part}"])
    elif part == "mask":
        stored[f"{name}.mask"] = torch.full_like(stored[f"{name}.mask"], 255)
    elif part == "beyond":
        stored[f"{name}.mask"] = torch.cat([stored[f"{name}.mask"], torch.ones(1, dtype=torch.uint8)])
    elif part == "both":
        stored[name] = torch.zeros(8, 64)
    elif part == "float":
        stored[f"{name}.code8"] = stored[f"{name}.code8"].float()
    elif part == "none":
        del stored[f"{name}.code8"]
    elif part == "nan":
        stored[f"{name}.scale"] = torch.full_like(stored[f"{name}.scale"], float("nan"))
    else:
        stored["model.layers.9.self_attn.q_proj.lora_A.weight.code8"] = stored[f"{name}.code8"]
    write_tensors(file, stored, replace=True)
    (tmp_path / "small" / "manifest.json").unlink()
    write_manifest(tmp_path / "small", ("adapter_model.safetensors", "adapter_config.json", "halter.json"))
    with pytest.raises(Refusal) as caught:
        load_adapter(tmp_path / "small", model)
    assert caught.value.id == "adapter-mismatch"
    assert any(("layers.9" if part == "strange" else name) in wrong for wrong in caught.value.found)


@pytest.mark.parametrize("options", [(7, 1.0), (32, 1.0), (8, 0.0), (8, 1.5)])
def test_options_that_compress_nothing_are_refused(options, tmp_path):
    adapter = adapt(tiny.decoder(SHAPE), "lora", r=4)
    with pytest.raises(Refusal, match="compress-options"):
        compress(adapter, tmp_path / "small", CompressOptions(*options))
    assert not list(tmp_path.iterdir())
