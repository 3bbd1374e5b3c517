"""Label smoothing against transformers' LabelSmoother, NEFTune against its equation, both through the training step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.trainer_pt_utils import LabelSmoother

from halter.adapters.adapter import adapt
from halter.data.example import Example
from halter.data.pack import pack
from halter.errors import Refusal
from halter.numerics.losses import Wanted, head_loss
from halter.numerics.noise import neftune
from halter.training import step as training_step
from halter.training.options import TrainOptions
from halter.training.step import take_step
from halter.training.trainee import Trainee
from tests import tiny


def trainee_of(model, **more):
    adapter = adapt(model, "lora", r=2).to(model.dtype)
    tiny.jitter(adapter)
    sgd = torch.optim.SGD(adapter.parameters(), lr=0.1)
    return Trainee(adapter, sgd, lambda _: 1.0, torch.amp.GradScaler(enabled=False), 0.0, **more)


def rows(*lengths):
    g = np.random.default_rng(3)
    return pack([Example(g.integers(3, 96, n).astype(np.int32), np.arange(n) >= n // 2, f"row:{n}") for n in lengths])


@pytest.mark.parametrize("whole_matrix", [False, True])
@pytest.mark.parametrize("epsilon", [0.1, 0.9])
def test_smoothed_loss_and_gradient_are_torchs_and_transformers(whole_matrix, epsilon):
    g = torch.Generator().manual_seed(5)
    hidden, weight = (torch.randn(n, 6, generator=g, dtype=torch.float64) for n in (37, 50))
    targets = torch.randint(0, 50, (37,), generator=g)
    hidden.requires_grad_()
    share = torch.full((37,), epsilon, dtype=torch.float64)
    loss, each = head_loss(
        lambda piece, start, end, tensors: piece @ weight.t(),
        [],
        hidden,
        Wanted(targets, torch.full((37,), 1 / 37, dtype=torch.float64), share),
        50,
        weight if whole_matrix else None,
    )
    logits = hidden @ weight.t()
    exact = F.cross_entropy(logits, targets, label_smoothing=epsilon)
    torch.testing.assert_close(loss, exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(each.mean(), exact.detach(), rtol=1e-12, atol=0)
    got, want = torch.autograd.grad(loss, hidden)[0], torch.autograd.grad(exact, hidden, retain_graph=True)[0]
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-14)
    theirs = LabelSmoother(epsilon=epsilon)({"logits": logits[None]}, targets[None])  # sums V terms in float32
    torch.testing.assert_close(loss, theirs, rtol=50 * torch.finfo(torch.float32).eps, atol=0, check_dtype=False)


def test_a_step_is_smoothed_for_each_adapter_by_itself():
    """Two adapters trained together, one with smoothing: the losses are those of each alone."""
    model, batches = tiny.decoder(dtype=torch.float64), (rows(9, 14), rows(11))
    alone = [
        take_step(model, [trainee_of(model, smoothing=share)], [[batch]])[0].loss
        for share, batch in zip((0.2, 0.0), batches, strict=True)
    ]
    together = take_step(model, [trainee_of(model, smoothing=share) for share in (0.2, 0.0)], [batches])
    assert [record.loss for record in together] == pytest.approx(alone, rel=1e-7)
    plain = take_step(model, [trainee_of(model)], [[batches[0]]])[0].loss
    assert alone[0] > plain + 0.01


def test_noise_is_uniform_with_the_papers_bound():
    lengths, alphas, dim = (40, 10, 25), (5.0, 15.0, 0.0), 64
    embedded = torch.randn(75, dim)
    noise = (neftune(embedded, lengths, alphas, 7) - embedded).split(lengths)
    for part, length, alpha in zip(noise, lengths, alphas, strict=True):
        bound = alpha / math.sqrt(length * dim)
        slack = 3 * torch.finfo(torch.float32).eps * 5  # rounding of a sum of size 5
        assert float(part.abs().max()) <= bound + slack
        if alpha:
            values = part.flatten().double() / bound
            # Mean 0 and variance 1/3 of a uniform number; six standard errors of n of them.
            n = len(values)
            assert abs(float(values.mean())) < 6 * math.sqrt(1 / 3 / n)
            assert abs(float(values.square().mean()) - 1 / 3) < 6 * math.sqrt(4 / 45 / n)
    assert torch.equal(neftune(embedded, lengths, alphas, 7), neftune(embedded, lengths, alphas, 7))
    assert not torch.equal(neftune(embedded, lengths, alphas, 7), neftune(embedded, lengths, alphas, 8))


def test_a_step_with_noise_is_the_step_over_the_noisy_embeddings(monkeypatch):
    """Another loss at every step, none for alpha 0, the same again for the same step, and no beginning is shared."""
    model, batch, shared = tiny.decoder(), rows(12, 20), []
    monkeypatch.setattr(training_step, "share_beginnings", lambda b, _: shared.append(1) or b)
    plain = take_step(model, [trainee_of(model)], [[batch]])[0].loss
    assert shared == [1]
    noisy = [take_step(model, [trainee_of(model, noise=5.0, step=step)], [[batch]])[0].loss for step in (0, 1, 1)]
    assert shared == [1]
    assert noisy[0] != noisy[1] == noisy[2] and plain not in noisy
    seen = []
    monkeypatch.setattr(training_step, "neftune", lambda h, *_: seen.append(h) or h * 0 + 1)
    flat = take_step(model, [trainee_of(model, noise=5.0)], [[batch]])[0].loss
    assert len(seen) == 1 and seen[0].shape == (32, model.config.dim) and flat != plain


def test_options_that_cannot_be_are_refused():
    with pytest.raises(Refusal, match="neftune_noise_alpha"):
        TrainOptions(neftune_noise_alpha=5, cache_frozen="on")
    with pytest.raises(Refusal, match="label_smoothing_factor"):
        TrainOptions(label_smoothing_factor=1.0)
    TrainOptions(neftune_noise_alpha=5, label_smoothing_factor=0.1)
