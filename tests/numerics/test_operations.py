"""Operations of our own: a step, dropout and a 4-bit product never import the compiler."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import sys
import torch
from halter.numerics import nf4, nf4_product
from halter.numerics.attention import attend
from halter.numerics.dropout import dropout
x = torch.randn(6, 2, 64, requires_grad=True)
attend(x, x, x, torch.tensor([[0, 6, 0, 6]])).sum().backward()
dropout(x, 0.5, 1).sum().backward()
nf4_product.product(x, nf4.quantise(torch.randn(32, 64))).sum().backward()
assert x.grad is not None and bool(x.grad.isfinite().all())
print([name for name in sys.modules if name == "torch._dynamo"])
"""
ENVIRONMENT = {**os.environ, "HALTER_NF4": "torch"}  # bitsandbytes imports it by itself


def test_no_compiler_is_imported():
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert (ran.stdout.strip(), ran.returncode) == ("[]", 0), ran.stderr
