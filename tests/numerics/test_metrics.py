"""Token losses against torch's cross entropy."""

from __future__ import annotations

import math

import bounds
import pytest
import torch
import torch.nn.functional as F

from halter.numerics.metrics import perplexity, token_losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_token_losses(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (20 * torch.randn(7, 50, generator=generator)).to(dtype)
    targets = torch.randint(0, 50, (7,), generator=generator)
    mine = token_losses(logits, targets)
    assert mine.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    want = F.cross_entropy(logits.double(), targets, reduction="none")
    # The logits' differences are rounded, the sum of their exponentials and its logarithm.
    wide, largest = bounds.accumulating(dtype), float(logits.double().abs().max())
    bounds.assert_within(mine, want, 6 * bounds.unit(wide) * largest + bounds.summing(50 + 16, wide))


def test_perplexity() -> None:
    assert perplexity(math.log(42)) == pytest.approx(42) and perplexity(1e4) == math.inf
