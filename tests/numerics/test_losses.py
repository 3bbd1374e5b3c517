"""The chunked head loss against torch's cross entropy over whole logits, and by finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from halter.numerics import losses
from halter.numerics.losses import Wanted, head_loss


def case(tokens=37, dim=6, vocab=50, dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    hidden = torch.randn(tokens, dim, generator=g, dtype=dtype)
    weight = torch.randn(vocab, dim, generator=g, dtype=dtype)
    extra = torch.randn(vocab, dim, generator=g, dtype=dtype)
    targets = torch.randint(0, vocab, (tokens,), generator=g)
    weights = torch.rand(tokens, generator=g, dtype=torch.float64)
    return hidden, weight, extra, targets, weights


def project(weight):
    return lambda piece, start, end, tensors: piece @ (weight + (tensors[0] if tensors else 0)).t()


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_loss_and_gradients_equal_whole_logits(monkeypatch, rows):
    hidden, weight, extra, targets, weights = case()
    monkeypatch.setattr(losses, "chunk_rows", lambda *_: rows)
    hidden.requires_grad_(), extra.requires_grad_()
    loss, each = head_loss(project(weight), [extra], hidden, Wanted(targets, weights), 50)
    whole = F.cross_entropy(hidden @ (weight + extra).t(), targets, reduction="none")
    torch.testing.assert_close(each, whole.detach(), rtol=1e-13, atol=1e-13)
    want = torch.autograd.grad((whole * weights).sum() * 3, (hidden, extra))
    got = torch.autograd.grad(loss * 3, (hidden, extra))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_a_frozen_head_in_one_buffer_equals_whole_logits(monkeypatch, rows):
    hidden, weight, _, targets, weights = case()
    before = weight.clone()
    monkeypatch.setattr(losses, "chunk_rows", lambda *_: rows)
    hidden.requires_grad_()
    loss, each = head_loss(None, [], hidden, Wanted(targets, weights), 50, weight)
    whole = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    torch.testing.assert_close(each, whole.detach(), rtol=1e-13, atol=1e-13)
    got, want = torch.autograd.grad(loss * 3, hidden), torch.autograd.grad((whole * weights).sum() * 3, hidden)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    assert torch.equal(weight, before)


@pytest.mark.parametrize(("rows", "chunks"), [(1, 7), (16, 3), (1000, 1)])
@pytest.mark.parametrize("asked", [True, False])
def test_a_trained_matrix_equals_whole_logits(monkeypatch, rows, chunks, asked):
    hidden, weight, _, targets, weights = case()  # 37 tokens; chunks of as many rows as the matrix is wide, or more
    monkeypatch.setattr(losses, "chunk_rows", lambda *_: rows // 2)
    seen = []
    monkeypatch.setattr(losses, "_cross_entropy", lambda *a, real=losses._cross_entropy: seen.append(1) or real(*a))
    hidden.requires_grad_(asked), weight.requires_grad_()
    loss, _ = head_loss(None, [], hidden, Wanted(targets, weights), 50, weight)
    assert len(seen) == chunks
    whole = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    inputs = (hidden, weight) if asked else (weight,)
    want = torch.autograd.grad((whole * weights).sum() * 3, inputs)
    for a, b in zip(torch.autograd.grad(loss * 3, inputs), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_a_trained_matrix_sums_its_chunks_in_float32(monkeypatch):
    hidden, weight, _, targets, weights = (t.bfloat16() if t.is_floating_point() else t for t in case(tokens=600))
    monkeypatch.setattr(losses, "chunk_rows", lambda *_: 3)
    exact = weight.double().requires_grad_()
    (F.cross_entropy(hidden.double() @ exact.t(), targets, reduction="none") * weights).sum().backward()
    trained = weight.requires_grad_()
    head_loss(None, [], hidden, Wanted(targets, weights.float()), 50, trained)[0].backward()
    apart = (trained.grad.double() - exact.grad).norm() / exact.grad.norm()
    print(f"{float(apart):.2e} apart")
    assert apart < 4e-3  # one rounding of the sum and one of each chunk's; summed in bf16 it is above that


def test_a_trained_matrix_and_nothing_supervised():
    hidden, weight, _, targets, weights = case()
    weight.requires_grad_()
    head_loss(None, [], hidden[:0], Wanted(targets[:0], weights[:0]), 50, weight)[0].backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_by_finite_differences(frozen):
    hidden, weight, _, targets, weights = case(tokens=5)
    hidden.requires_grad_()
    one = weight if frozen else None
    assert torch.autograd.gradcheck(
        lambda h: head_loss(project(weight), [], h, Wanted(targets, weights), 50, one)[0], hidden
    )


@given(count=st.integers(0, 10_000), most=st.integers(1, 700))
def test_chunks_are_even_and_as_few_as_can_be(count, most):
    rows = losses.even_rows(count, most)
    chunks = -(-count // rows) if count else 0
    assert rows <= most and chunks == -(-count // most)
    assert chunks * rows - count < max(1, chunks)


def test_bf16_stays_near_float64():
    hidden, weight, _, targets, weights = case(dtype=torch.float32)
    exact, _ = head_loss(project(weight.double()), [], hidden.double(), Wanted(targets, weights), 50)
    low, _ = head_loss(project(weight.bfloat16()), [], hidden.bfloat16(), Wanted(targets, weights), 50)
    assert abs(float(low - exact)) < 2e-2 * float(exact)


def test_a_chunk_is_bounded():
    assert losses.chunk_rows(128256) * 128256 * 4 <= 64 * 2**20
    assert losses.chunk_rows(10**9) == 16


def test_nothing_supervised_and_nothing_trained():
    hidden, weight, _, targets, weights = case()
    loss, each = head_loss(project(weight), [], hidden[:0], Wanted(targets[:0], weights[:0]), 50)
    assert float(loss) == 0.0 and each.shape == (0,)
    loss, each = head_loss(None, [], hidden[:0], Wanted(targets[:0], weights[:0]), 50, weight)
    assert float(loss) == 0.0 and each.shape == (0,)
    for frozen in (None, weight):
        loss, _ = head_loss(project(weight), [], hidden, Wanted(targets, weights), 50, frozen)
        assert not loss.requires_grad
