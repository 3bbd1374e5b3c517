"""While training small freed blocks stay within the process, large ones go back at once, and the rest at the end."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

MIB = 2**20
PROBE = """
import json, re, torch
from halter.numerics.allocation import _glibc, kept, reused
if _glibc() is None:
    print("null")
    raise SystemExit
def resident():  # exact, and the same whatever the size of the pages that the kernel hands out
    return int(re.search(r"^Rss: +(\\d+) kB", open("/proc/self/smaps_rollup").read(), re.M)[1]) * 1024
def returned(count, floats, every=1):  # bytes that go back when every n-th of these tensors is freed
    held = [torch.ones(floats) for _ in range(count)]
    before = resident()
    held = [tensor for i, tensor in enumerate(held) if i % every]
    return before - resident()
def step():  # 512 tensors of 256 KiB, all freed at the end
    return returned(512, 2**16)
def gaps():  # 32 of 1 MiB each, and every second one is freed
    return returned(32, 2**18, 2)
def layers():  # one after the other, 64 MiB each: above glibc's own largest limit
    return [returned(1, 2**24) for _ in range(8)][-1]
said = {}
with reused(2**60):
    said["a pass where memory is short"] = layers()
with kept(), reused(2**26):
    said["a pass within kept"] = layers()
with kept():
    said["gaps"] = gaps()
    with kept(roomy=True):
        said["gaps where there is room"] = gaps()
with reused(2**26):
    said["a pass where there is room"] = layers()
with kept(roomy=True):
    said["layers where there is room"] = layers()
with kept():
    for _ in range(3):
        step()
    said["a step"] = step()
    inside = resident()
said["the end"] = inside - resident()
print(json.dumps(said))
"""


def test_steps_do_not_fetch_their_memory_anew():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout
    returned = json.loads(done)
    if returned is None:
        pytest.skip("this C library is not glibc")
    print({what: f"{size / MIB:.1f} MiB given back" for what, size in returned.items()})
    assert returned["a step"] < 8 * MIB  # of 128
    assert returned["the end"] > 64 * MIB
    assert returned["gaps"] > 15 * MIB  # sixteen of them, and no gap where they lay
    assert returned["gaps where there is room"] < MIB
    assert returned["layers where there is room"] < 4 * MIB  # of 64
    assert returned["a pass where there is room"] < 4 * MIB  # unless kept says otherwise
    assert min(returned["a pass where memory is short"], returned["a pass within kept"]) > 60 * MIB
