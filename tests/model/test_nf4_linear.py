"""The 4-bit Linear: gradient, storage, bitsandbytes' files, and adapters over a 4-bit base."""

from __future__ import annotations

import bounds
import pytest
import sighted
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.contract.registry import find
from halter.errors import Refusal
from halter.model.linear import DenseLinear
from halter.model.nf4_linear import NF4Linear
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.numerics import nf4, nf4_packed


def pair(out_features=48, in_features=40, dtype=torch.float32, bias=True):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(out_features, in_features, generator=g).to(dtype)
    b = torch.randn(out_features, generator=g).to(dtype) if bias else None
    small = NF4Linear.quantize(weight, b)
    return small, DenseLinear(small.weight(), b)


@pytest.mark.parametrize("rows", [1, 3, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_dense_linear_of_its_dequantised_weight(rows, dtype):
    small, dense = pair(dtype=dtype)
    x = torch.randn(rows, 40).to(dtype).requires_grad_()
    grad = torch.randn(rows, 48).to(dtype)
    for a, b in ((small(x), dense(x)), *zip(*(torch.autograd.grad(m(x), (x,), grad) for m in (small, dense)))):
        assert torch.equal(a, b)
    index = torch.tensor([[3, 0], [47, 3]])
    assert torch.equal(small.rows(index), dense.rows(index))
    stand_in = torch.randn(48, 40).to(dtype)
    assert torch.equal(small(x, stand_in), torch.nn.functional.linear(x, stand_in, small.bias))


def test_bytes_are_counted_and_nothing_dense_is_kept():
    small, _ = pair(512, 512, bias=False)
    assert small.nbytes == small.data.nbytes == 512 * 512 // 2 + 4096 + 4 * 16 + 4
    x = torch.randn(4, 512, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        small(x)
    assert kept and {t.data_ptr() for t in kept} <= {b.data_ptr() for b in small.buffers()}


def test_a_packed_copy_serves_few_rows_in_inference_and_is_counted(quickest, monkeypatch):
    quickest("packed")
    small, _ = pair(96, 128, torch.bfloat16)
    if not small.pack():
        pytest.skip("no packed product on this machine (AVX512-BF16)")
    held = {name: tensor.clone() for name, tensor in small.named_buffers()}
    assert small.nbytes == sum(t.numel() * t.element_size() for t in held.values()) + 96 * 128 * 4.25 / 8
    x = torch.randn(2, 6, 128).bfloat16()
    calls, packed = [], nf4_packed.product
    monkeypatch.setattr(nf4_packed, "product", lambda *a: calls.append(1) or packed(*a))
    with torch.inference_mode():
        few, called, many = small(x), len(calls), small(torch.cat((x, x)))[:2]
    watched = small(x.requires_grad_())
    (dx,) = torch.autograd.grad(watched.float().sum(), x)
    ones = torch.ones(12, 96)
    bounds.assert_within(
        dx.view(12, -1), ones @ small.weight().float(), bounds.product(ones, small.weight().t(), x.dtype)
    )
    small.unpack()
    plain = small(x.detach())
    assert torch.equal(watched, plain) and called == len(calls) == 1
    exact, bias = nf4.dequantise(small.data, torch.float64), small.bias.double()
    for y, weights in ((few, 3), (many, 1), (plain, 1)):  # how often the weight is rounded
        off = bounds.product(x, exact, x.dtype, weights=weights, bias=bias)
        bounds.assert_within(y, x.double() @ exact.t() + bias, off)
    assert all(torch.equal(tensor, held[name]) for name, tensor in small.named_buffers())
    assert not pair(96, 128)[0].pack()  # computes in float32


@pytest.mark.parametrize("double", [True, False])
def test_bitsandbytes_files_both_ways(double):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double)
    theirs = {"weight": codes, **{f"weight.{k}": v.contiguous() for k, v in state.as_dict(packed=True).items()}}
    linear = NF4Linear.from_bitsandbytes(theirs, (64, 128), compute_dtype=torch.float32)
    assert torch.equal(linear.weight(), functional.dequantize_4bit(codes, state))
    ours = linear.to_bitsandbytes()
    assert ours.keys() == theirs.keys()
    again = functional.QuantState.from_dict(
        {k: v for k, v in ours.items() if k != "weight"}, device=torch.device("cpu")
    )
    assert torch.equal(functional.dequantize_4bit(ours["weight"], again), linear.weight())
    with pytest.raises(Refusal, match="nf4-state"):
        NF4Linear.from_bitsandbytes(theirs, (128, 64))


def both(dtype=torch.float32):
    """A 4-bit decoder and the dense one with the same dequantised weights."""
    small, dense = tiny.decoder(dtype=dtype), tiny.decoder(dtype=dtype)
    for layer in range(2):
        for place in tiny.LINEARS:
            quantised = NF4Linear.quantize(small.module(layer, place).weight())
            small.set_linear(small.layout.at(layer, place), quantised)
            dense.set_linear(dense.layout.at(layer, place), DenseLinear(quantised.weight()))
    return small, dense


@pytest.mark.parametrize("name", sighted.OF_TEXT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_method_over_a_4_bit_base(name, dtype):
    small, dense = both(dtype)
    tokens = torch.arange(24).view(2, 12)
    adapters = [adapt(model, name) for model in (small, dense)]
    with torch.no_grad():
        same = torch.equal(small(tokens, adapter=adapters[0]), small(tokens))
    assert same == find(name).starts_as_base
    grads = []
    for model, adapter in zip((small, dense), adapters, strict=True):
        tiny.jitter(adapter)
        segments = Segments.packed([12, 12])
        model.hidden(Pass(tokens.flatten(), segments, adapter.bind(model, segments))).float().square().sum().backward()
        grads.append([p.grad for p in adapter.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True)) and grads[0]


def test_loading_quantises_and_reads_quantised(tmp_path):
    import halter
    from halter.files.writing import write_json, write_tensors
    from halter.pretrained.load import load_model
    from halter.pretrained.save import save_model

    model = tiny.decoder()
    save_model(model, model.config, tmp_path / "dense")
    fresh = load_model(tmp_path / "dense", "float32", "nf4")
    assert all(fresh.module(i, p).storage == "nf4" for i in range(2) for p in tiny.LINEARS)
    assert fresh.lm_head.storage == "dense"
    want = NF4Linear.quantize(model.module(1, "up_proj").weight())
    assert torch.equal(fresh.module(1, "up_proj").weight(), want.weight())
    (tmp_path / "stored").mkdir()
    tensors = {}
    for name, module, buffer in model.tensors():
        place = name.split(".")[-2]
        if place in tiny.LINEARS:
            stored = NF4Linear.quantize(module.weight()).to_bitsandbytes()
            tensors |= {name.removesuffix("weight") + k: v for k, v in stored.items()}
        else:
            tensors[name] = getattr(module, buffer)
    write_tensors(tmp_path / "stored" / "model.safetensors", tensors)
    rule = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    write_json(tmp_path / "stored" / "config.json", model.config.to_hf() | {"quantization_config": rule})
    stored = load_model(tmp_path / "stored", "float32")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(stored(tokens), fresh(tokens))
    assert halter.adapt(stored, "lora").num_trainable > 0
