"""One side of one row in a process of its own; prints one JSON line. Started by run.py:

    python benchmarks/side.py SIDE ROW SETTING

SIDE: halter, alone, peer, second_peer, litgpt, limit, prepare or check. Memory is the process's own high-water mark
(VmHWM) less its value when everything that the side needs is imported.
"""

from __future__ import annotations

import json
import resource
import sys
from importlib import import_module

from workloads import Setting, find

MODULES = {
    "halter": "side_halter",
    "alone": "side_alone",
    "peer": "side_peer",
    "second_peer": "side_trl",
    "limit": "limits",
    "litgpt": "side_litgpt",
    "check": "side_peer",
    "prepare": "prepare",
}


def high_water() -> int:
    """Bytes: the most resident memory that this process has had."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def stay_inside(share: float = 0.9) -> None:
    """Let an allocation that the machine has no room for fail in this process, before the system ends another."""
    if sys.platform != "linux":
        return
    with open("/proc/meminfo", encoding="ascii") as lines:
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    with open("/proc/self/statm", encoding="ascii") as line:
        held = int(line.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + int(free * share),) * 2)


def main() -> None:
    side, name, text = sys.argv[1:4]
    setting = Setting(**json.loads(text))
    work = find(name).ranked(setting)
    if side in ("halter", "alone"):
        import halter  # noqa: F401  before torch, as in a user's program: it says how long threads spin
    module = import_module(MODULES[side])
    if side == "prepare":
        module.prepare(work, setting)
        print("{}")
        return
    if side == "check":
        print(json.dumps(module.check(work, setting, json.loads(sys.stdin.read()))))
        return
    stay_inside()
    before = high_water()
    result = module.measure(work, setting)
    print(json.dumps({**result, "peak_bytes": high_water() - before}))


if __name__ == "__main__":
    main()
