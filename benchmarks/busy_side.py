"""One side of one row as `side.py` runs it, beside a program that keeps a core busy; started by busy.py:

    python benchmarks/busy_side.py SIDE ROW SETTING WHEN

WHEN later: the program starts here, when all is imported and Halter has chosen its threads. Nothing says how many
threads there are or how they wait: Halter does it as its commands do, the peer takes what torch takes.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from importlib import import_module


def main() -> None:
    side, name, text, when = sys.argv[1:5]
    if side == "halter":
        import halter  # noqa: F401  before torch, as in a user's program
    import busy
    import torch
    from side import MODULES
    from workloads import Setting, find

    setting = Setting(**json.loads(text))
    work = find(name)
    module = import_module(MODULES[side])
    if side == "halter":
        from halter.numerics import threads

        threads.put(threads.choose())
    with busy.program() if when == "later" else nullcontext():
        result = module.measure(work, setting)
    print(json.dumps({**result, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
