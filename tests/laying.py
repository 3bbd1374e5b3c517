"""Whether torch can lay a weight of bf16 out here, which takes oneDNN and a processor with instructions for it."""

from __future__ import annotations

from functools import cache

import torch

from halter.numerics.products import lay_out

NO_LAYING = "torch lays no bf16 weight out on this machine"


@cache
def can_lay_out() -> bool:
    """Asked of torch itself: what it takes is torch's to say."""
    try:
        lay_out(torch.ones(32, 32, dtype=torch.bfloat16))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True
