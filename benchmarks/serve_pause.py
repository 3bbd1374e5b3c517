"""The longest time for which a server's event loop does nothing else: everybody's streams stand still for as long.

    python benchmarks/serve_pause.py [--model FOLDER] [--methods lora llama_adapter ...] [--tokens 48]

Streams of the base go on while each method's adapter is asked for the first time (it is read, put on the base, and
answers one token), and a second time, and then while large requests come. A task on the loop wakes every millisecond;
how late it wakes is the pause. A thread looks at what the loop is doing whenever the task is late by LATE, and what
stood there at the longest pause is told: where the line is one that waits (select), the loop had nothing to do and
another thread held the interpreter.
Target: no pause above 20 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
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
from halter.generation.grammars.grammar import grammars_of
from halter.playground import base_folder
from halter.run.opening import OpenOptions, find, open_subject
from halter.serve.adapters.naming import table_of
from halter.serve.running import serve
from halter.serve.service import Service
from halter.serve.settings import ServeOptions
from halter.serve.wire.prompts import Speaking
from halter.serve.wire.shapes import ServedBase

METHODS = ("lora", "dora", "llama_adapter", "excitor", "ia3", "loreft", "prefix_tuning")
BEAT, LATE, PIECE = 0.001, 0.010, 1 << 16
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
    whole = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "stream": stream, "seed": 1}
    await sent(port, "/v1/completions", json.dumps(whole).encode())


async def sent(port: int, path: str, body: bytes, status: int = 200) -> None:
    """A body that is there already, and its answer, read in pieces as a socket gives them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    writer.write(head.encode() + b"content-type: application/json\r\nconnection: close\r\n\r\n")
    for start in range(0, len(body), PIECE):
        writer.write(body[start : start + PIECE])
        await writer.drain()
    said = await reader.read(PIECE)
    while await reader.read(PIECE):
        pass
    writer.close()
    assert said.startswith(b"HTTP/1.1 %d " % status), said[:500]


def large(model: str, context: int) -> list[tuple[str, str, bytes, int]]:
    """(what, path, body, status) of requests that are large in one way each, within the limits."""
    prompt = [3 + number % 500 for number in range(context - 2)]
    long = "The little town has a market. " * 8000
    text = "The little town has a market. " * (context // 16)
    talk = [{"role": "user", "content": "So?"}, {"role": "assistant", "content": "So."}] * 200
    rich = {"max_tokens": 1, "logprobs": 5, "echo": True, "prompt": prompt}
    form = {"type": "object", "properties": {f"p{n}": {"type": "string", "maxLength": 50} for n in range(300)}}
    answer = {"type": "json_schema", "json_schema": {"name": "form", "schema": form}}
    chat, completions = "/v1/chat/completions", "/v1/completions"
    cases: list[tuple[str, str, dict[str, Any], int]] = [
        ("12 prompts of 240 kB, refused as too long", completions, {"prompt": [long] * 12}, 400),
        ("128 prompts", completions, {"prompt": [text] * 128, "max_tokens": 1}, 200),
        ("a scored prompt as long as the context", completions, rich, 200),
        ("400 messages, refused as too long", chat, {"messages": talk}, 400),
        ("a schema of 300 properties", chat, {"messages": talk[:1], "response_format": answer, "max_tokens": 4}, 200),
        ("a schema of 300 properties again", chat, {"messages": talk[:1], "response_format": answer}, 200),
        ("240 kB to be tokenised", "/tokenize", {"prompt": long}, 200),
    ]
    return [(what, path, json.dumps({"model": model, **body}).encode(), status) for what, path, body, status in cases]


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
    for what, path, body, status in given.large:
        await sent(port, path, body, status)
        print(json.dumps({"what": what, **watch.take()}), flush=True)
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
    parser.add_argument("--tokens", type=int, default=48, help="of each stream")
    parser.add_argument("--context", type=int, default=2048, help="most tokens of a scored prompt")
    given = parser.parse_args()
    opened = open_subject(find(str(given.model or base_folder())), print, OpenOptions())
    given.large = large("base", min(given.context, opened.model.config.context))
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
        grammars_of(opened.tokenizer)  # this and what follows is as the command does it
        gc.collect()
        gc.freeze()
        asyncio.run(measured(make, options, "base", given.methods, given))


if __name__ == "__main__":
    main()
