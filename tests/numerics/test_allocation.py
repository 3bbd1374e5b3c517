"""While training small freed blocks stay within the process, large ones go back at once, and the rest at the end."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROBE = """
import resource, sys, torch
from halter.numerics.allocation import _glibc, kept, reused
if _glibc() is None:
    print("no glibc"); sys.exit()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
def step():  # 512 tensors of 256 KiB, all freed at the end
    before = faults()
    held = [torch.ones(2**16) for _ in range(512)]
    return faults() - before
def steady():
    for _ in range(3):
        step()
    return step()
def freed():
    held = [torch.ones(2**18) for _ in range(32)]  # 1 MiB each, and every second one is freed
    before = resident()
    held = held[::2]
    return before - resident()
def large():  # a block of 64 MiB, above glibc's own largest limit
    before = faults()
    held = torch.ones(2**24)
    return faults() - before
def layers():  # a pass whose layers each want 64 MiB
    return min(large() for _ in range(8))
with reused(2**60):
    passes = [layers()]
with kept(), reused(2**26):
    passes.append(layers())
with kept():
    gap = freed()
    with kept(roomy=True):
        inner = freed()
with reused(2**26):
    passes.append(layers())
with kept(roomy=True):
    again = min(large() for _ in range(8))  # one beside the next, until those freed are together large enough
usual = steady()
with kept():
    steady()
    quiet = step()
    inside = resident()
print(usual, quiet, inside - resident(), gap, inner, again, *passes)
"""


def test_steps_do_not_fetch_their_memory_anew():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout.split()
    if done == ["no", "glibc"]:
        pytest.skip("this C library is not glibc")
    usual, quiet, returned, gap, inner, again, *passes = map(int, done)
    print(f"page faults a step: {usual} as usual, {quiet} with freed memory kept; given back: {returned:,} bytes")
    assert quiet < 64  # of 32,768 pages that a step touches; as usual it is whatever glibc has learnt by chance
    assert returned > 128 * 2**20 / 2
    assert gap > 15 * 2**20  # sixteen of them, and no gap where they lay
    assert inner < 2**20  # where there is room they stay
    assert again < 64  # so do the largest, of 16,384 pages
    short, within, roomy = passes
    assert roomy < 64 and min(short, within) > 2**14 / 2  # reused where there is room, unless kept says otherwise
