"""Numbers below the smallest normal one are zero, in this thread and in the workers started later."""

from __future__ import annotations

import subprocess
import sys

PROBE = """
import torch
from halter.numerics import denormals
torch.set_num_threads(2)
denormals.flush()
x = torch.full((200_000,), 2e-38)
print(int((x * 0.25).count_nonzero()), int((x * 1.0).count_nonzero()))
"""


def test_every_thread_flushes():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "200000"]
