"""AdamW against the formula of its paper written out (arXiv 1711.05101), also with states in 8 bits."""

from __future__ import annotations

import pytest
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.training import optimizers

RATE, BETAS, EPS, DECAY = 1e-2, (0.8, 0.97), 1e-8, 0.3


def run(name, start, grads, decay):
    parameter = torch.nn.Parameter(start.clone())
    groups = [{"params": [parameter], "weight_decay": decay}]
    optimizer = optimizers.make(name, groups, RATE, BETAS, EPS, lambda _: None)
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach()


def written_out(start, grads, decay):
    value, m, v = start.double(), torch.zeros_like(start).double(), torch.zeros_like(start).double()
    for t, grad in enumerate((g.double() for g in grads), 1):
        m = BETAS[0] * m + (1 - BETAS[0]) * grad
        v = BETAS[1] * v + (1 - BETAS[1]) * grad**2
        step = (m / (1 - BETAS[0] ** t)) / ((v / (1 - BETAS[1] ** t)).sqrt() + EPS)
        value = value - RATE * decay * value - RATE * step
    return value


@pytest.mark.parametrize("name,bound", [("adamw", 1e-5), ("paged_adamw_32bit", 1e-5), ("adamw_8bit", 1e-2)])
@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_adamw_is_the_formula(name, bound, decay):
    """8-bit states begin at 4,096 numbers; its figure is the movement's error, norm-relative."""
    g = torch.Generator().manual_seed(0)
    start = torch.randn(96, 64, generator=g)
    grads = [torch.randn(96, 64, generator=g) * 0.1 for _ in range(5)]
    want, got = written_out(start, grads, decay), run(name, start, grads, decay).double()
    error = float((got - want).norm() / (want - start).norm())
    print(f"{name}: norm-relative error of the movement after 5 steps {error:.1e}")
    assert error < bound


def test_matrices_decay_and_vectors_do_not():
    adapter = adapt(tiny.decoder(tiny.config(attention_bias=True)), "full")
    decays = {p: group["weight_decay"] for group in adapter.groups(RATE, DECAY) for p in group["params"]}
    assert decays.keys() == set(adapter.parameters())
    assert {p.ndim: decays[p] for p in decays} == {1: 0.0, 2: DECAY}
    assert all(decays[p] == (DECAY if p.ndim == 2 else 0.0) for p in decays)
