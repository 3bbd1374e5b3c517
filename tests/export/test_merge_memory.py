"""Merging streams: beyond the base that is loaded already, it takes a few tensors and not a second model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")

CHILD = """
import json, os, sys, threading, time
import torch
import halter
from halter.model.config import ModelConfig
from halter.pretrained.save import save_model
from halter.pretrained.load import load_model
PAGE = os.sysconf("SC_PAGE_SIZE")
def anonymous():
    with open("/proc/self/statm") as file:
        resident, shared = file.read().split()[1:3]
    return (int(resident) - int(shared)) * PAGE
out = sys.argv[1]
def merged(name, **sizes):
    config = ModelConfig(heads=16, kv_heads=8, head_dim=64, context=512, **sizes)
    g = torch.Generator().manual_seed(0)
    weights = ((n, 0.02 * torch.randn(s, generator=g)) for n, s in config.tensor_shapes().items())
    save_model(weights, config, f"{out}/{name}", dtype=torch.bfloat16)
    model = load_model(f"{out}/{name}", "bfloat16", device="cpu", say=lambda _: None)
    adapter = halter.adapt(model, "lora", r=4)
    before, peak, done = anonymous(), [0], threading.Event()
    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.0005)
    thread = threading.Thread(target=watch)
    thread.start()
    halter.merge(model, adapter, f"{out}/{name}-merged", source=f"{out}/{name}")
    done.set(); thread.join()
    held = {b.data_ptr(): b.numel() * b.element_size() for b in model.buffers()}
    return {"weights": sum(held.values()), "largest": max(held.values()), "more": peak[0] - before}
merged("small", layers=1, dim=64, ffn_dim=64, vocab_size=64)  # what the libraries take once
sizes = dict(dim=1024, ffn_dim=2816, vocab_size=4000)
print(json.dumps([merged(str(layers), layers=layers, **sizes) for layers in (4, 20)]))
"""


def test_a_merge_does_not_hold_a_second_model(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, env=environment, check=False
    )
    assert child.returncode == 0, child.stderr
    few, many = json.loads(child.stdout)
    print([{name: f"{value / 1e6:.0f} MB" for name, value in found.items()} for found in (few, many)])
    assert many["more"] < 0.5 * many["weights"]
    assert many["more"] - few["more"] < 0.2 * (many["weights"] - few["weights"])
