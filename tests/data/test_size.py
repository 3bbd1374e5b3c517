"""Entry 26: data larger than memory. A file is tokenised into the cache piece by piece and read row by row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_tokenizers as tiny

CHILD = """
import json, sys, time
from pathlib import Path
from halter.data import examples
from halter.data.load import load_examples
from halter.data.options import DataOptions
from halter.data.order import plan_epoch
from halter.data.pack import pack
from halter.text.tokenizer import Tokenizer

def memory(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1]) / 1024

file, tokenizer, piece = sys.argv[1], Tokenizer.from_folder(sys.argv[2]), int(sys.argv[3])
examples.PIECE_BYTES = piece
baseline = memory("VmRSS")

def first_step():
    start = time.perf_counter()
    loaded = load_examples(DataOptions(train=file, max_length=1 << 20), tokenizer, None)
    train = loaded.train
    plan = plan_epoch(train.lengths, train.targets, seed=0, epoch=0, tokens_per_step=100_000, micro_tokens=20_000)
    seen = sum(len(pack([train[row] for row in micro]).tokens) for step in plan[:20] for micro in step)
    return time.perf_counter() - start, loaded.report, seen

made, report, seen = first_step()
cached, again, seen_again = first_step()
assert seen == seen_again and again.cached == again.rows
held = 5 * report.tokens / 2**20
above = memory("VmHWM") - baseline
print(json.dumps({"above": above, "held": held, "made": made, "cached": cached, "rows": report.rows}))
"""


def generated(path: Path, megabytes: int) -> Path:
    """Rows of 50 to 2,000 small ids each, megabytes in all."""
    random = np.random.default_rng(0)
    lines = [
        json.dumps(
            {"input_ids": random.integers(3, 300, int(random.integers(50, 2000))).tolist()}, separators=(",", ":")
        )
        for _ in range(500)
    ]
    block = ("\n".join(lines) + "\n").encode()
    with path.open("wb") as file:
        while file.tell() < megabytes << 20:
            file.write(block)
    return path


def measured(folder: Path, megabytes: int, piece: int) -> dict[str, Any]:
    file, tokenizer = generated(folder / "rows.jsonl", megabytes), tiny.llama3(folder / "tokenizer")
    os.utime(file, (0, 0))
    environment = os.environ | {"HALTER_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(file), str(tokenizer), str(piece)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    print(f"{megabytes} MB, {found['rows']:,} rows, {found['held']:.0f} MB of tokens")
    print(f"{found['above']:.0f} MB above baseline; first batch {found['made']:.1f} s, {found['cached']:.2f} s cached")
    return found


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_rows_are_not_held_in_memory(tmp_path: Path) -> None:
    """100 MB in pieces of 4 MiB: tokens of more than 100 MB, and less than half of that above the baseline."""
    found = measured(tmp_path, 100, 4 << 20)
    assert found["held"] > 100 and found["above"] < 50
    assert found["cached"] < 5


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_two_gigabytes(tmp_path: Path) -> None:
    found = measured(tmp_path, 2048, 64 << 20)
    assert found["held"] > 2000 and found["above"] <= 500
    assert found["cached"] < 10
