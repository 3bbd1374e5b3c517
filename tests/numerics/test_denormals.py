"""Numbers below the smallest normal one are zero, in this thread and in the workers started later."""

from __future__ import annotations

import subprocess
import sys

import pytest

from halter.numerics import denormals

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


def test_the_callers_thread_gets_its_setting_back():
    half = sys.float_info.min / 2
    assert half > 0
    with pytest.raises(ZeroDivisionError), denormals.flushed():
        assert half * 1.0 == 0.0
        1 / (half * 1.0)
    assert half * 1.0 > 0.0
