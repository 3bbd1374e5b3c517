"""[1] kill -9 at random moments: the run goes on from a whole checkpoint and ends with the bits of a quiet one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from same_bits import differences

from halter.files.runs import RunFolder
from halter.files.tensors import read_tensors

STEPS = 16
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

PARENT = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import torch, torch._dynamo, jinja2, tokenizers, rich.progress, numpy
torch.set_num_threads(1)
import halter
from pathlib import Path

from halter.files.runs import RunFolder
recipe = json.loads(sys.argv[2])
for line in sys.stdin:  # a folder each time; the child is forked from a process that has imported everything
    child = os.fork()
    if child == 0:
        folder = line.strip()
        os.dup2(os.open(f"{folder}.said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        # Leftovers of a dead child may be there; a run without a complete checkpoint begins again.
        halter.train({**recipe, "output_dir": folder}, say=lambda text: None,
                     resume=bool(RunFolder(folder).checkpoints()))
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Forks:
    """Runs children one after the other, each of which may be killed."""

    def __init__(self, recipe, cache) -> None:
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "HALTER_CACHE": str(cache)}
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, root, json.dumps(recipe)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, folder, kill_after=None) -> tuple[int, float]:
        """(exit code, seconds) of one child."""
        self.parent.stdin.write(f"{folder}\n")
        self.parent.stdin.flush()
        child, began = int(self.parent.stdout.readline()), time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):  # it may have ended by then
                os.kill(child, signal.SIGKILL)
        return int(self.parent.stdout.readline()), time.monotonic() - began

    def close(self) -> None:
        self.parent.stdin.close()
        self.parent.wait()


def killed(heavy_data, tmp_path, kills):
    recipe = {
        "model": {"path": str(heavy_data.base), "device": "cpu"},
        "method": {"name": "lora", "r": 2, "dropout": 0.1},
        "data": {"train": f"{heavy_data.train}#12", "template": "alpaca", "max_length": 320, "on_long": "cut"},
        "train": {"per_device_train_batch_size": 1, "max_steps": STEPS, "learning_rate": 1e-2, "save_steps": 1},
    }
    forks, draw = Forks(recipe, tmp_path / "cache"), random.Random(0)
    forks.run(tmp_path / "warm")
    code, seconds = forks.run(tmp_path / "whole")
    assert code == 0
    whole = read_tensors(tmp_path / "whole" / "adapter" / "adapter_model.safetensors")
    done, leftovers, runs = 0, 0, 0
    while done < kills:
        run, runs, code = RunFolder(tmp_path / f"run{runs}"), runs + 1, -signal.SIGKILL
        while code and not run.finished:  # it may have died with everything done
            code, _ = forks.run(run.path, draw.uniform(0.05, 1.0) * seconds) if done < kills else forks.run(run.path)
            if code == 0:
                break
            assert code == -signal.SIGKILL, Path(f"{run.path}.said").read_text()
            done += 1
            place = run.path / "checkpoints"
            leftovers += sum(".partial-" in p.name for p in place.iterdir()) if place.is_dir() else 0
            for _, folder in run.checkpoints():
                run.load_checkpoint(folder)  # whole, or refused
        assert differences(whole, read_tensors(run.adapter / "adapter_model.safetensors")) == []
        assert not [p for p in run.path.rglob("*") if ".partial-" in p.name]
    forks.close()
    print(f"one run: {seconds:.2f} s")
    print(f"kill -9: {done} kills over {runs} runs of {STEPS} saves, every end bit-equal; {leftovers} leftovers swept")
    return done


def test_killed_twenty_times(heavy_data, tmp_path):
    assert killed(heavy_data, tmp_path, 20) >= 20


@pytest.mark.nightly
def test_killed_two_hundred_times(heavy_data, tmp_path):
    assert killed(heavy_data, tmp_path, 200) >= 200
