"""What a server has in memory once nothing is worked on, however many requests it has had."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import serving
from test_admin import Admin
from test_leaving import CHAT, line_to, until

COMPLETE = "/v1/completions"
ALLOWED = 32 << 20
"""Bytes of growth over 15,000 requests: two kilobytes of each, for what libraries in C may keep for each shape."""
HERE = ("halter.generation.", "halter.serve.", "uvicorn.", "starlette.")
KEPT = ("KeptPart", "Party", "HeldAdapter", "OpenedAdapter")
"""What the budgets bound: of some requests there may be more than of others."""


def asked(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """A request as somebody may send one, also one that is refused."""
    model = draw.choice(["tiny", *serving.METHODS, "damaged", "nobody"])
    prompt = [1, *range(3, 3 + draw.choice([0, 20])), *(draw.randrange(3, 600) for _ in range(draw.choice([1, 5, 40])))]
    plain: dict[str, Any] = {"model": model, "max_tokens": draw.choice([1, 3, 6]), "stream": draw.random() < 0.3}
    kind = draw.randrange(6)
    if kind == 0:
        return CHAT, {**plain, "messages": serving.TALK, "logprobs": True, "top_logprobs": 2}
    if kind == 1:
        each = [{"name": name, "weight": 1 + draw.random() / 10} for name in draw.sample(["lora", "dora", "ia3"], 2)]
        return COMPLETE, {**plain, "model": "tiny", "prompt": prompt, "halter": {"adapters": each}}
    if kind == 2:
        return COMPLETE, {**plain, "stream": False, "prompt": prompt, "echo": True, "logprobs": 1}
    if kind == 3:
        return COMPLETE, {**plain, "prompt": prompt, "n": 2, "temperature": draw.choice([1, 1, 7])}
    return COMPLETE, {**plain, "prompt": prompt, "seed": 1}


def ask(server: Any, admin: Admin, number: int) -> None:
    draw = random.Random(number)
    path, body = asked(draw)
    if draw.random() < 0.05:
        line = line_to(server, {**body, "messages": serving.TALK, "max_tokens": 100, "stream": True})
        line.recv(draw.choice([1, 500]))
        line.close()
    elif draw.random() < 0.01:
        admin.ask(draw.choice(["/reload", "/load"]), {"name": draw.choice(serving.METHODS)})
    else:
        status, _, _ = server.ask(path, body)
        assert status in (200, 400, 404, 503)


def living() -> Counter[str]:
    """How many objects there are of each class that serves."""
    gc.collect()
    classes = (type(one) for one in gc.get_objects())
    return Counter(f"{one.__module__}.{one.__qualname__}" for one in classes if str(one.__module__).startswith(HERE))


def resident() -> int:
    """Bytes of this process, those aside that its C library has been given back and keeps."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("count", [200, pytest.param(20_000, marks=pytest.mark.nightly)])
def test_nothing_stays_of_a_request(
    world: Any, tmp_path: Path, count: int, record_property: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain ones, streams, clients that leave, refusals, loads and evictions: the same objects afterwards as after the
    first ones, and, of many, the same memory."""
    from halter.serve import running

    monkeypatch.setattr(running, "KEEP_ALIVE", 1)
    sizes: dict[str, Any] = {"adapter_gb": 0.0006, "prefix_gb": 0.001, "rows": 12}
    file = tmp_path / "admin.json"
    with world.server(keep=lambda record: None, admin=file, **sizes) as server, ThreadPoolExecutor(8) as threads:
        admin = Admin(file)
        assert admin.ask("/adapters")[0] == 200

        def after(first: int, end: int) -> tuple[Counter[str], int, int]:
            for _ in threads.map(lambda number: ask(server, admin, number), range(first, end)):
                pass
            until(lambda: not any("Connection" in name for name in living()))  # keep-alive's clock has each for a while
            return living(), sys.getallocatedblocks(), resident()

        before, blocks, had = after(0, count // 4)
        there, more_blocks, has = after(count // 4, count)
        record_property("memory", (blocks, more_blocks, had, has))
        print(f"{count} requests, after a quarter and in the end: {blocks}, {more_blocks} blocks; {had}, {has} bytes")
    more = {name: (before[name], n) for name, n in there.items() if n > before[name] and not name.endswith(KEPT)}
    assert not more
    if count >= 10_000:  # what is kept by then, of prompts say, is as much as there is room for
        assert more_blocks - blocks < count // 4 and has - had < ALLOWED
