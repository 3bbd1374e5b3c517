"""The longest time for which a server's event loop does nothing else: everybody's streams stand still for as long.

    python benchmarks/serve_pause.py [--model playground] [--methods lora llama_adapter ...] [--loads 3] [--tokens 48]

Streams of the base go on while each method's adapter is asked for the first time (it is read, put on the base, and
answers one token), and a second time. A task on the loop wakes every millisecond; how late it wakes is the pause. A
thread looks at what the loop is doing whenever the task is late by LATE, and what stood there at the longest pause is
told: where the line is one that waits (select), the loop had nothing to do and another thread held the interpreter.
Target: no pause above 20 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from halter.adapters.adapter import adapt
from halter.cli.serve import opened_adapter
from halter.playground import base_folder
from halter.run.opening import OpenOptions, find, open_subject
from halter.serve.adapters.naming import table_of
from halter.serve.running import serve
from halter.serve.service import Service
from halter.serve.settings import ServeOptions
from halter.serve.wire.prompts import Speaking
from halter.serve.wire.shapes import ServedBase

METHODS = ("lora", "dora", "llama_adapter", "excitor", "ia3", "loreft", "prefix_tuning")
BEAT, LATE = 0.001, 0.010
PROMPT = "The little town has a market, and on the market"


@dataclass
class Watch:
    """How late the loop was at most since the last ``take``, and what stood on it then."""

    thread: int
    beat: float = field(default_factory=time.perf_counter)
    worst: float = 0.0
    seen: tuple[float, str] = (0.0, "")

    async def keep(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            now = time.perf_counter()
            self.worst, self.beat = max(self.worst, now - self.beat - BEAT), now

    def look(self) -> None:
        """In a thread of its own: the loop's stack while it is late."""
        while True:
            time.sleep(LATE / 2)
            late = time.perf_counter() - self.beat - BEAT
            if late > max(LATE, self.seen[0]):
                frame = sys._current_frames().get(self.thread)
                stack = traceback.extract_stack(frame)[-6:]
                places = [f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in reversed(stack)]
                self.seen = late, " < ".join(places)

    def take(self) -> dict[str, Any]:
        found = {"pause_ms": round(1000 * self.worst, 1), "on_the_loop": self.seen[1]}
        self.worst, self.seen = 0.0, (0.0, "")
        return found


async def asked(port: int, model: str, tokens: int, stream: bool = False) -> None:
    """One request by a client on the same loop: what it does is small, and counts as the server's."""
    body = json.dumps({"model": model, "prompt": PROMPT, "max_tokens": tokens, "stream": stream, "seed": 1}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    writer.write(head.encode() + b"content-type: application/json\r\nconnection: close\r\n\r\n" + body)
    said = await reader.read(-1)
    writer.close()
    assert said.startswith(b"HTTP/1.1 200"), said[:500]


async def streams(port: int, model: str, tokens: int) -> None:
    while True:
        await asked(port, model, tokens, stream=True)


async def measured(make: Any, options: ServeOptions, name: str, methods: list[str], given: argparse.Namespace) -> None:
    begun: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(make, options, lambda text: None, lambda *both: begun.set_result(both)))
    server, (_, port, *_) = await begun
    watch = Watch(threading.get_ident())
    tasks = [asyncio.create_task(watch.keep())]
    threading.Thread(target=watch.look, daemon=True).start()
    await asked(port, name, 4)
    tasks += [asyncio.create_task(streams(port, name, given.tokens)) for _ in range(4)]
    await asyncio.sleep(1.0)
    watch.take()
    await asyncio.sleep(3.0)
    print(json.dumps({"what": "streams of the base", **watch.take()}), flush=True)
    for method in methods:
        for which in ("first", "second"):
            await asked(port, method, 8)
            print(json.dumps({"what": f"{method}, {which} request", **watch.take()}), flush=True)
    for task in tasks:
        task.cancel()
    server.end()
    await serving


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=None, help="folder of a base; not given: the playground's")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    opened = open_subject(find(str(given.model or base_folder())), print, OpenOptions())
    with tempfile.TemporaryDirectory() as folder:
        for number, method in enumerate(given.methods):
            adapter = adapt(opened.model, method, seed=number)
            with torch.no_grad():
                for parameter in adapter.parameters():
                    parameter += 0.01
            adapter.save(Path(folder) / method)
        base = ServedBase("base", opened.model, opened.tokenizer, Speaking(opened.template))
        options = ServeOptions(port=0, drain=1.0)
        open_one = partial(opened_adapter, opened)
        make = partial(Service, base, table_of([folder], ["base"]), open_one, options)
        asyncio.run(measured(make, options, "base", given.methods, given))


if __name__ == "__main__":
    main()
