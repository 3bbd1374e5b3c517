"""Loading streams: the high-water mark of anonymous memory, measured in a process of its own.

The promise: at most the target weights, plus 5 %, plus twice the largest tensor. A thread reads the process's resident
and shared pages every half millisecond; mapped files count as shared and are reported apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import meta_parts

from halter.model.config import ModelConfig
from halter.pretrained.save import save_model

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")

CONFIG = ModelConfig(
    layers=4, dim=1024, heads=16, kv_heads=8, head_dim=64, ffn_dim=2816, vocab_size=16000, context=512
)  # 79 M parameters

CHILD = """
import json, os, sys, threading, time
import torch
from halter.pretrained.load import load_model
PAGE = os.sysconf("SC_PAGE_SIZE")
def pages():
    with open("/proc/self/statm") as file:
        resident, shared = file.read().split()[1:3]
    return (int(resident) - int(shared)) * PAGE, int(shared) * PAGE
def measure(folder, small, options):
    load_model(small, device="cpu", **options)  # what the libraries take once is no part of loading
    base_anonymous, base_mapped = pages()
    peak = [0, 0]
    done = threading.Event()
    def look():
        anonymous, mapped = pages()
        peak[0], peak[1] = max(peak[0], anonymous), max(peak[1], mapped)
    def watch():
        while not done.is_set():
            look()
            time.sleep(0.0005)
    thread = threading.Thread(target=watch)
    thread.start()
    begun = time.perf_counter()
    model = load_model(folder, device="cpu", **options)
    seconds = time.perf_counter() - begun
    done.set(); thread.join(); look()
    weights = sum(b.numel() * b.element_size() for b in {b.data_ptr(): b for b in model.buffers()}.values())
    largest = max(b.numel() * b.element_size() for b in model.buffers())
    print(json.dumps({"weights": weights, "largest": largest, "peak": peak[0] - base_anonymous,
                      "mapped": peak[1] - base_mapped, "seconds": seconds}), flush=True)
for case in json.loads(sys.argv[1]):
    child = os.fork()  # a fresh process for each, the imports paid once
    if child == 0:
        measure(*case)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(1)
"""


HALF = replace(CONFIG, layers=2)


def tensors(config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    for name, shape in config.tensor_shapes().items():
        yield name, torch.full(shape, 0.25, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp("memory") / name for name in ("bfloat16", "float32", "meta", "small")}
    tiny = ModelConfig(layers=1, dim=64, heads=4, kv_heads=2, head_dim=16, ffn_dim=64, vocab_size=64, context=64)
    save_model(tensors(tiny), tiny, made["small"], dtype=torch.bfloat16)
    save_model(tensors(CONFIG), CONFIG, made["bfloat16"], dtype=torch.bfloat16, max_shard_bytes=60_000_000)
    save_model(tensors(HALF), HALF, made["float32"], dtype=torch.float32)
    made["meta"].mkdir()
    params = {"dim": CONFIG.dim, "n_layers": HALF.layers, "n_heads": 16, "n_kv_heads": 8, "norm_eps": 1e-5}
    (made["meta"] / "params.json").write_text(json.dumps(params))
    for rank, part in enumerate(meta_parts(dict(tensors(HALF)), (16, 8), 2)):
        torch.save(part, made["meta"] / f"consolidated.{rank:02d}.pth")
    return made


CASES = {
    "shards, bfloat16 as stored": ("bfloat16", {"dtype": "bfloat16"}),
    "one file, float32 to bfloat16": ("float32", {"dtype": "bfloat16"}),
    "Meta, two ranks": ("meta", {"dtype": "bfloat16"}),
    "shards, quantised to NF4": ("bfloat16", {"dtype": "bfloat16", "quantize": "nf4"}),
}


@pytest.fixture(scope="module")
def figures(folders: dict[str, Path]) -> dict[str, dict[str, float]]:
    arguments = [[str(folders[name]), str(folders["small"]), options] for name, options in CASES.values()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return dict(zip(CASES, map(json.loads, child.stdout.splitlines())))


@pytest.mark.parametrize("case", CASES)
def test_memory_stays_under_the_promise(
    figures: dict[str, dict[str, float]], case: str, capsys: pytest.CaptureFixture
) -> None:
    found = figures[case]
    promise = 1.05 * found["weights"] + 2 * found["largest"]
    with capsys.disabled():
        mb = {key: round(value / 1e6, 1) for key, value in found.items() if key != "seconds"}
        print(f"\n{case}: {mb} MB, promise {promise / 1e6:.1f} MB, {found['seconds']:.2f} s")
    assert found["peak"] >= 0.95 * found["weights"]  # else the measure is blind
    assert found["peak"] <= promise
