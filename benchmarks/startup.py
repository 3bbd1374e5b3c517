"""How long `import halter` and `halter --help` take, from starting the interpreter to its end: median and best of 11.

    python benchmarks/startup.py

Targets: 0.2 s and 0.3 s.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import halter": [sys.executable, "-c", "import halter"],
    "halter --help": [sys.executable, "-m", "halter", "--help"],
}


def seconds(command: list[str], times: int = 11) -> list[float]:
    """Wall times of running ``command`` repeatedly, in seconds, without the first run, which warms the disk."""
    taken = []
    for _ in range(times + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        taken.append(time.perf_counter() - started)
    return taken[1:]


if __name__ == "__main__":
    for name, command in COMMANDS.items():
        taken = seconds(command)
        print(
            json.dumps({"what": name, "median_s": round(statistics.median(taken), 4), "best_s": round(min(taken), 4)})
        )
