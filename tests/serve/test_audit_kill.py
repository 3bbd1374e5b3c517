"""kill -9 while a server writes its log: what was acknowledged has its line, and the chain is whole but for a torn end.

The child writes through a disk that takes a line in pieces, so that a kill can fall between two of them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from audited import kinds, verified

from halter.serve.audit.lines import log_files

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

CHILD = """
import os, sys
sys.path[:0] = sys.argv[1:3]
from audited import record
from halter.files.disk import Disk
from halter.serve.audit.log import AuditLog
from halter.serve.audit.options import AuditOptions

class Pieces(Disk):
    def write(self, descriptor, data):
        return super().write(descriptor, data[:97])

folder, sync, first, last = sys.argv[3], sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
options = AuditOptions(sync=int(sync) if sync.isdigit() else sync, file_bytes=20_000)
with AuditLog(folder, options=options, disk=Pieces(), say=lambda text: None) as log:
    os.write(1, b"begun\\n")
    for n in range(first, last + 1):
        log.write(record(n))
        os.write(1, b"%d\\n" % n)  # the last event of the answer
"""


SYNCS = ("never", "never", "5", "each")


def attempt(folder: Path, sync: str, first: int, last: int, kill_at: int, wait: float) -> int:
    """The last request that a child acknowledged, which is killed so many seconds after it acknowledged ``kill_at``."""
    tests = Path(__file__).parent
    command = [sys.executable, "-c", CHILD, str(tests), str(tests.parents[1]), str(folder), sync, str(first), str(last)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"begun\n"
        reached = first - 1
        for line in child.stdout:
            reached = int(line)
            if reached == kill_at:
                time.sleep(wait)
                child.send_signal(signal.SIGKILL)
    assert child.returncode in (0, -signal.SIGKILL)
    return reached


def killed(folder: Path, requests: int, kills: int, seed: int) -> dict[str, int]:
    """Write so many requests, the child killed so many times and begun again; counts what was seen."""
    draw, done = random.Random(seed), 0
    seen = {"requests": requests, "kills": 0, "torn": 0, "unheard": 0}
    points = sorted(draw.sample(range(1, requests - 50), kills))
    while done < requests:
        points = [point for point in points if point > done]
        kill_at = points[0] if points else requests + 1
        done = attempt(folder, draw.choice(SYNCS), done + 1, requests, kill_at, draw.uniform(0, 0.001))
        seen["kills"] += done < requests
        found = verified(folder)
        assert {damage.kind for damage in found.damages} <= {"torn"}, found.damages
        seen["torn"] += bool(found.damages)
    lines = [json.loads(line) for _, path in log_files(folder) for line in path.read_text("ascii").splitlines()]
    assert kinds(folder) == [] and verified(folder).last == len(lines)
    there = [line["request"] for line in lines if "request" in line]
    assert set(there) == {f"req-{n}" for n in range(1, requests + 1)}
    seen["unheard"] = len(there) - requests  # a line was written, and the kill came before the answer's end
    assert 0 <= seen["unheard"] <= kills
    assert sum("note" in line for line in lines) == seen["torn"]
    return seen


def test_killed_while_it_writes(tmp_path: Path) -> None:
    print(killed(tmp_path / "audit", 600, 8, seed=1))


@pytest.mark.nightly
def test_ten_thousand_requests_and_a_hundred_kills(tmp_path: Path) -> None:
    seen = killed(tmp_path / "audit", 10_000, 100, seed=2)
    print(seen)
    assert seen["kills"] >= 80 and seen["torn"] >= 3
