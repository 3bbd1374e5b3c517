"""`make gpu` as it will run where a GPU is lent, rehearsed on the CPU with tiny shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_whole_script_runs(tmp_path: Path) -> None:
    record = tmp_path / "gpu.json"
    environment = {**os.environ, "DEVICE": "cpu", "TINY": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--json", str(record)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    parts = json.loads(record.read_text())["parts"]
    failed = {name: part["failed"] for name, part in parts.items() if "failed" in part}
    assert done.returncode == 0 and not failed, failed or done.stderr[-2000:]
    assert not any("skipped" in part for part in parts.values()) or sum(p["wall_seconds"] for p in parts.values()) > 400
    assert (
        parts["laws"]["methods"] >= 16 and parts["lora"]["loss"] > 0 and parts["decoding"]["tokens_per_second_32"] > 0
    )
    page = subprocess.run(
        [sys.executable, "-c", "import gpu, json, sys; print(gpu.page(json.load(open(sys.argv[1]))))", str(record)],
        capture_output=True,
        text=True,
        cwd=ROOT / "benchmarks",
        check=True,
    ).stdout
    assert "LoRA beside peft:" in page and all(f"| {name} |" in page for name in parts)
