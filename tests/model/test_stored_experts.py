"""Experts in few bits against the Linears that compute the same, bitsandbytes, and the dense definition."""

from __future__ import annotations

from math import prod

import bounds
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_llama4_text import CONFIG, config, logits, made, moved

from halter.errors import Refusal
from halter.model.experts import EXPERTS, StackedExperts
from halter.model.int8_linear import Int8Linear
from halter.model.layout import LINEAR, Place
from halter.model.nf4_linear import NF4Linear
from halter.model.places import Routed
from halter.model.storages import dry, experts_too, held_in, quantised
from halter.model.stored_experts import QuantisedExperts

QUICK = settings(max_examples=25, deadline=None, database=None, phases=[Phase.generate])
SIZES = st.tuples(st.integers(1, 4), st.sampled_from([1, 3, 48, 64, 130]), st.sampled_from([1, 2, 33, 64]))


def place_of(shape):
    return Place("experts_in", EXPERTS, "experts.gate_up_proj", shape, suffix="")


def drawn(shape, seed=0, dtype=torch.float32):
    """Matrices whose experts differ in size, so that another expert's scale is seen."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (values * torch.logspace(-1, 1, shape[0])[:, None, None]).to(dtype)


def routed(x, counts):
    return Routed(x, counts, torch.arange(len(x)))


def stored(how, matrices, double_quant=True):
    made_of = QuantisedExperts(how, place_of(tuple(matrices.shape)), matrices.dtype, "cpu", double_quant)
    for number, matrix in enumerate(matrices):
        made_of.put(number, matrix)
    return made_of


@pytest.mark.parametrize("how", ["nf4", "nf4 plain", "int8"])
def test_each_expert_is_the_linear_layer_of_its_transpose(how):
    """Codes, scales and products to the bit, forward and backward, for odd shapes and experts without rows."""
    kind, double = how.split()[0], how != "nf4 plain"

    @QUICK
    @given(SIZES, st.integers(0, 99))
    def check(shape, seed):
        matrices = drawn(shape, seed)
        held = stored(kind, matrices, double)
        linears = [quantised(kind, matrix.t().contiguous(), None, double) for matrix in matrices]
        for number, linear in enumerate(linears):
            for name, want in linear.named_buffers():
                assert torch.equal(getattr(held, name)[number], want), name
            assert torch.equal(held.of(number), linear.weight().t())
        assert torch.equal(held.weight(), torch.stack([linear.weight().t() for linear in linears]))
        counts = torch.randint(0, 4, (shape[0],), generator=torch.Generator().manual_seed(seed)).tolist()
        x = torch.randn(sum(counts), shape[1], requires_grad=True)
        got = held(routed(x, counts))
        want = torch.cat([linear(rows) for linear, rows in zip(linears, x.split(counts), strict=True)])
        assert got.shape == (sum(counts), shape[2]) and torch.equal(got, want)
        if counts and sum(counts):
            weigh = torch.randn(got.shape)
            grads = [torch.autograd.grad((y * weigh).sum(), x)[0] for y in (got, want)]
            assert torch.equal(*grads)

    check()


def test_codes_are_those_of_bitsandbytes_for_each_expert():
    functional = pytest.importorskip("bitsandbytes").functional
    matrices = drawn((3, 128, 64))
    held, eight = stored("nf4", matrices, False), stored("int8", matrices)
    for number, matrix in enumerate(matrices):
        codes, state = functional.quantize_4bit(matrix.t().contiguous(), blocksize=64, quant_type="nf4")
        assert torch.equal(held.codes[number], codes.view(torch.uint8).view(-1, 1))
        torch.testing.assert_close(held.absmax[number], state.absmax)
        rows, scale, _ = functional.int8_vectorwise_quant(matrix.t().contiguous().half())
        wide = stored("int8", matrix.t().contiguous().half().float().t()[None])
        torch.testing.assert_close(wide.absmax[0], scale)
        assert float((wide.codes[0].int() - rows.int()).abs().max()) <= 1 and eight.codes.shape == (3, 64, 128)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_products_are_those_of_the_dequantised_matrices(how):
    """Against float64, within what rounding the sums allows; dL/dx alone flows backward."""
    matrices = drawn((3, 192, 70))
    held, counts = stored(how, matrices), [4, 0, 5]
    x = torch.randn(9, 192, requires_grad=True)
    got, wide = held(routed(x, counts)), held.weight().double()
    owners = torch.tensor([0] * 4 + [2] * 5)
    want = torch.einsum("ni,nio->no", x.double(), wide[owners])
    room = torch.einsum("ni,nio->no", x.double().abs(), wide[owners].abs()) * 200 * torch.finfo(torch.float32).eps
    assert bool(((got.double() - want).abs() <= room).all())
    (grad,) = torch.autograd.grad(got.sum(), x)
    torch.testing.assert_close(grad.double(), wide[owners].sum(-1), rtol=1e-4, atol=1e-3)
    own = torch.randn(3, 192, 70)
    same = torch.cat([x[:4] @ own[0], x[4:] @ own[2]])
    assert torch.equal(held(routed(x, counts), own), same)  # what stands in for the base's is used instead


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_only_chosen_experts_are_dequantised(how):
    held = stored(how, drawn((4, 64, 64)))
    x = torch.randn(3, 64)
    want = held(routed(x, [0, 0, 3, 0]))
    for number in (0, 1, 3):
        held.absmax[number] = float("nan")
    assert torch.equal(held(routed(x, [0, 0, 3, 0])), want)
    assert held(routed(x[:0], [0] * 4)).shape == (0, 64)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_what_cannot_be_held_is_refused(how):
    held = QuantisedExperts(how, place_of((2, 64, 32)), torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"\[64, 32\], not \[32, 64\]"):
        held.put(0, torch.ones(32, 64))
    with pytest.raises(Refusal) as refused:
        held.put(1, torch.full((64, 32), float("inf")))
    assert refused.value.id == "weight-not-finite"


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_a_plan_knows_what_experts_take(how):
    """In bits a number: 4 and 8, scales besides; as many bytes as the Linears of all experts together."""
    place = place_of((5, 256, 192))
    plan = dry(how, place, None, torch.bfloat16)
    one = (NF4Linear if how == "nf4" else Int8Linear).dry((192, 256), None, torch.bfloat16)
    assert plan.nbytes == 5 * one.nbytes == stored(how, drawn(place.shape)).nbytes
    assert plan.nbytes * 8 / prod(place.shape) == pytest.approx({"nf4": 4.127, "int8": 8.125}[how], abs=2e-2)
    assert all(buffer.is_meta for buffer in plan.buffers()) and plan.dtype == torch.bfloat16


def in_few_bits(model, how):
    """The same model, its linear layers and experts quantised in place."""
    for held in model.layout.in_few_bits():
        module = model.module(held.layer, held.name)
        if held.kind == LINEAR:
            model.set_linear(held, quantised(how, module.weight(), module.bias))
        else:
            model.set_linear(held, stored(how, module.weight()))
    return model


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_streamed_layers_hold_experts_in_few_bits(how):
    """Gradients of an adapter are the resident base's to the bit, and those through the dequantised base."""
    grads = {}
    for way in ("resident", "streamed", "dequantised"):
        model = in_few_bits(made(config(), torch.float32), how)
        assert held_in(model) == how and experts_too(model)
        if way == "dequantised":
            for held, module in [*model.places()]:
                if held.kind == EXPERTS:
                    dense = StackedExperts(held, torch.float32, "cpu")
                    dense.matrix.copy_(module.weight())
                    model.set_linear(held, dense)
            assert not experts_too(model)
        if way == "streamed":
            model.stream_layers()
        adapter = moved(model)
        torch.cat(logits(model, adapter, checkpointing=way == "streamed")).square().mean().backward()
        grads[way] = [parameter.grad for parameter in adapter.parameters()]
    assert all(torch.equal(*pair) for pair in zip(grads["resident"], grads["streamed"], strict=True))
    for got, want in zip(grads["resident"], grads["dequantised"], strict=True):
        bounds.assert_same(got, want)


def test_another_shape_is_not_taken_for_a_places():
    model = made()
    with pytest.raises(ValueError, match="4 x 24 x 32 does not fit"):
        model.set_linear(CONFIG.layout.at(1, "experts_in"), stored("nf4", drawn((4, 24, 32))))
