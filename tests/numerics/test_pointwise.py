"""Norm, SwiGLU, rotation and dropout against the formulas, finite differences and transformers."""

from __future__ import annotations

import bounds
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from halter.numerics import rope
from halter.numerics.dropout import dropout, key
from halter.numerics.pointwise import normalise, swiglu


def test_norm_casts_in_the_order_of_transformers():
    torch.manual_seed(0)
    x, weight = (3 * torch.randn(40, 64)).bfloat16(), torch.randn(64).bfloat16()
    peer = LlamaRMSNorm(64, eps=1e-5)
    peer.weight.data = weight
    assert torch.equal(normalise(x, 1e-5) * weight, peer(x))


def test_norm_and_swiglu_by_finite_differences():
    torch.manual_seed(0)
    x, gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(lambda t: normalise(t, 1e-5), x)
    assert torch.autograd.gradcheck(swiglu, (gate, up))
    bounds.assert_same(normalise(x, 0.0), x / x.pow(2).mean(-1, keepdim=True).sqrt(), torch.float64)
    bounds.assert_same(swiglu(gate, up), gate * torch.sigmoid(gate) * up, torch.float64)


def test_rotation_is_a_rotation_by_position_times_frequency():
    frequencies = rope.inverse_frequencies(8, 10000.0)
    want = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64)
    # The exponent's rounding counts ln(10000) times.
    bounds.assert_within(frequencies, want, 24 * bounds.rounded(want, torch.float32))
    x = torch.randn(5, 2, 8, dtype=torch.float64)
    positions = torch.tensor([0, 1, 2, 7, 30])
    got = rope.rotate(x, *rope.angles(positions, frequencies.double(), torch.float64))
    turned = torch.view_as_complex(torch.stack((x[..., :4], x[..., 4:]), -1).contiguous()) * torch.exp(
        1j * positions[:, None, None] * frequencies.double()
    )
    bounds.assert_same(got, torch.cat((turned.real, turned.imag), -1))


def test_llama3_scaling_counts_kept_blended_divided():
    """Counts found by running Meta's code: 3.1 29/6/29, 3.2-1B 15/3/14, Scout's equal bounds 35/0/29."""
    for head_dim, factor, low, high, want in (
        (128, 8.0, 1.0, 4.0, (29, 6, 29)),
        (64, 32.0, 1.0, 4.0, (15, 3, 14)),
        (128, 16.0, 1.0, 1.0, (35, 0, 29)),
    ):
        plain = rope.inverse_frequencies(head_dim, 5e5)
        scaled = rope.llama3_scaling(plain, factor, low, high, 8192)
        kept, divided = scaled == plain, scaled == plain / factor
        assert (int(kept.sum()), int((~kept & ~divided).sum()), int(divided.sum())) == want


def test_dropout_is_a_function_of_its_key():
    x = torch.randn(400, 50, dtype=torch.float64, requires_grad=True)
    first = dropout(x, 0.3, key(1, "a"))
    assert torch.equal(first, dropout(x, 0.3, key(1, "a")))
    assert not torch.equal(first, dropout(x, 0.3, key(2, "a")))
    dropped = first == 0
    assert abs(float(dropped.double().mean()) - 0.3) < 0.01
    bounds.assert_same(first[~dropped], (x / 0.7)[~dropped], torch.float64)
    (grad,) = torch.autograd.grad(first.sum(), x)
    bounds.assert_same(grad, (~dropped).double() / 0.7, torch.float64)
    assert dropout(x, 0.0, 1) is x
