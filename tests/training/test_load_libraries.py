"""What the first step would import is there before memory is looked at."""

from __future__ import annotations

import subprocess
import sys

PROBE = """
import sys, torch
from halter.model.nf4_linear import NF4Linear
from halter.training.memory import load_libraries
load_libraries(sys.argv[1] if len(sys.argv) > 1 else None, "cpu")
before = len(sys.modules)
weight = torch.nn.Parameter(torch.ones(3))
torch.optim.AdamW([weight])
if len(sys.argv) > 1:
    NF4Linear.quantize(torch.ones(64, 64))(torch.ones(2, 64))
print(len(sys.modules) - before)
"""


def test_nothing_large_is_imported_afterwards() -> None:
    for words in ([], ["nf4"]):
        done = subprocess.run([sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=True)
        assert int(done.stdout) < 20, words  # of the 1,400 modules that both bring
