"""The 8-bit Linear: forward, storage, bitsandbytes' files, and adapters over an 8-bit base."""

from __future__ import annotations

import pytest
import sighted
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.contract.registry import find
from halter.errors import Refusal
from halter.model.int8_linear import Int8Linear
from halter.model.linear import DenseLinear
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.model.storages import STORAGES, held_in, quantised


def pair(out_features=48, in_features=40, dtype=torch.float32, bias=True):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(out_features, in_features, generator=g).to(dtype)
    b = torch.randn(out_features, generator=g).to(dtype) if bias else None
    small = Int8Linear.quantize(weight, b)
    return small, DenseLinear(small.weight(), b)


@pytest.mark.parametrize("rows", [1, 3, 33])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_it_is_the_dense_linear_of_its_dequantised_weight(rows, dtype, near):
    small, dense = pair(dtype=dtype)
    x, grad = torch.randn(rows, 40).to(dtype).requires_grad_(), torch.randn(rows, 48).to(dtype)
    for a, b in ((small(x), dense(x)), *zip(*(torch.autograd.grad(m(x), (x,), grad) for m in (small, dense)))):
        assert float((a - b).detach().norm()) < near * float(b.detach().norm())
    index = torch.tensor([[3, 0], [47, 3]])
    assert torch.equal(small.rows(index), dense.rows(index))
    stand_in, other = torch.randn(48, 40).to(dtype), torch.randn(48).to(dtype)
    assert torch.equal(small(x, stand_in), torch.nn.functional.linear(x, stand_in, small.bias))
    assert torch.equal(small(x, stand_in, other), torch.nn.functional.linear(x, stand_in, other))


def test_bytes_are_counted_and_nothing_dense_is_kept():
    small, _ = pair(512, 512, bias=False)
    assert small.nbytes == small.data.nbytes == 512 * 512 + 4 * 512
    assert sum(t.nbytes for t in Int8Linear.dry((512, 512), None, torch.float32).buffers()) == small.nbytes
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        small(torch.randn(4, 512, requires_grad=True))
    assert kept and {t.data_ptr() for t in kept} <= {b.data_ptr() for b in small.buffers()}


def test_bitsandbytes_files_both_ways():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)).half()
    module = bitsandbytes.nn.Linear8bitLt(128, 64, bias=False, has_fp16_weights=False)
    module.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to("cpu")
    theirs = module.state_dict()
    linear = Int8Linear.from_bitsandbytes(theirs, (64, 128))
    dense = bitsandbytes.functional.int8_vectorwise_dequant(theirs["weight"], theirs["SCB"])
    torch.testing.assert_close(linear.weight(), dense, rtol=3e-7, atol=0)
    ours = Int8Linear.quantize(weight).to_bitsandbytes()
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor) and ours[key].dtype == tensor.dtype, key
    for wrong in ({"weight_format": torch.tensor(1, dtype=torch.uint8)}, {"SCB": theirs["SCB"][1:]}):
        with pytest.raises(Refusal, match="int8-state"):
            Int8Linear.from_bitsandbytes({**theirs, **wrong}, (64, 128))


def both(dtype=torch.float32):
    """An 8-bit decoder and the dense one with the same dequantised weights."""
    small, dense = tiny.decoder(dtype=dtype), tiny.decoder(dtype=dtype)
    for layer in range(2):
        for place in tiny.LINEARS:
            held = Int8Linear.quantize(small.module(layer, place).weight())
            small.set_linear(small.layout.at(layer, place), held)
            dense.set_linear(dense.layout.at(layer, place), DenseLinear(held.weight()))
    return small, dense


@pytest.mark.parametrize("name", sighted.OF_TEXT)
def test_any_method_over_an_8_bit_base(name):
    small, dense = both()
    tokens = torch.arange(24).view(2, 12)
    adapters = [adapt(model, name) for model in (small, dense)]
    with torch.no_grad():
        away = float((small(tokens, adapter=adapters[0]) - small(tokens)).abs().max())
    # Where a dense weight stands in for the codes, their scale is rounded before the product and not after.
    assert (away < 1e-5) == find(name).starts_as_base and (away == 0 or name != "lora")
    grads = []
    for model, adapter in zip((small, dense), adapters, strict=True):
        tiny.jitter(adapter)
        segments = Segments.packed([12, 12])
        model.hidden(Pass(tokens.flatten(), segments, adapter.bind(model, segments))).float().square().sum().backward()
        grads.append([p.grad for p in adapter.parameters() if p.grad is not None])
    assert grads[0]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_the_table_of_storages_is_one_to_one():
    weight = torch.randn(64, 64)
    for kind, storage in STORAGES.items():
        model = tiny.decoder()
        assert storage.storage == kind and held_in(model) is None
        model.set_linear(model.layout.at(1, "o_proj"), quantised(kind, model.module(1, "o_proj").weight()))
        assert held_in(model) == kind and isinstance(quantised(kind, weight), storage)
