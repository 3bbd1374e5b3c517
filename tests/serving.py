"""A server on a real socket, in a thread: a tiny random LLaMA with adapters of many methods, in float32."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tiny
import tiny_tokenizers

from halter.adapters.adapter import Adapter, adapt
from halter.adapters.loading import load_adapter
from halter.cli.serve import opened_adapter
from halter.run.opening import Opened, Subject
from halter.serve.adapters.naming import table_of
from halter.serve.settings import ServeOptions
from halter.serve.wire.prompts import Speaking
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

METHODS = ("lora", "dora", "ia3", "llama_adapter", "excitor", "loreft", "prefix_tuning", "prompt_tuning")
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Zürich? 你好"}]
PATIENCE = 30.0
"""Seconds after which a test fails instead of hanging."""


class World:
    """A base and its adapters' folders: one of each method, one in another template, one that is broken."""

    context = 512
    template: str | None = None
    """The built-in one in which all are asked; None: the tokenizer's own."""

    def __init__(self, folder: Path) -> None:
        self.model = tiny.decoder(tiny.config(vocab_size=640, dim=64, head_dim=16, context=self.context))
        self.tokenizer = Tokenizer.from_folder(tiny_tokenizers.llama3(folder / "tokenizer"))
        self.folder = folder / "adapters"
        self.folder.mkdir()
        for number, method in enumerate(METHODS):
            adapter = self.adapter(method, seed=number)
            adapter.save(self.folder / method)
        other = self.adapter("lora", seed=90)
        template = ChatTemplate.builtin("alpaca")
        other.facts = {
            "template": {"name": template.name, "digest": template.digest},
            "template_source": template.source,
        }
        other.save(self.folder / "alpaca")
        damaged = self.folder / "damaged"
        self.adapter("lora", seed=91).save(damaged)
        tensors = damaged / "adapter_model.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
        own = self.tokenizer.chat_template if self.template is None else ChatTemplate.builtin(self.template)
        self.opened = Opened(Subject("tiny"), self.model, self.tokenizer, None, own, None)

    def adapter(self, method: str, seed: int) -> Adapter:
        adapter = adapt(self.model, method, seed=seed)
        tiny.jitter(adapter, 0.1, seed + 1)
        return adapter

    def loaded(self, name: str) -> Adapter:
        return load_adapter(self.folder / name, self.model)

    def server(self, **changes: Any) -> Served:
        return Served(self, **changes)


class Served:
    """A running server; ``records`` has what it told of every request. Use it in a with statement."""

    def __init__(
        self,
        world: World,
        admit: Any = None,
        keep: Callable[[Any], None] | None = None,
        also: Sequence[str] = (),
        **options: Any,
    ) -> None:
        from halter.serve import running
        from halter.serve.service import Service
        from halter.serve.trust.tenants import everybody
        from halter.serve.wire.shapes import ServedBase

        self.records: list[dict[str, Any]] = []
        chosen = ServeOptions(**{"port": 0, "drain": 5.0, **options})
        base = ServedBase("tiny", world.model, world.tokenizer, Speaking(world.opened.template))
        table = table_of([str(world.folder), *also], ["tiny"])
        self.opened: list[str] = []

        def open(folder: Path) -> Any:
            self.opened.append(folder.name)
            return opened_adapter(world.opened, folder)

        def make() -> Service:
            self.service = Service(base, table, open, chosen, admit or everybody, keep or self.records.append)
            return self.service

        begun = threading.Event()

        def hear(server: Any, address: Any) -> None:
            self.loop, self.server, self.port = asyncio.get_running_loop(), server, address[1]
            begun.set()

        def run() -> None:
            asyncio.run(running.serve(make, chosen, lambda text: None, hear))

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        assert begun.wait(PATIENCE)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *raised: Any) -> None:
        self.end()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.server.end)

    def client(self, retries: int = 0) -> Any:
        import openai

        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="any", max_retries=retries, timeout=PATIENCE
        )

    def ask(
        self, path: str, body: Any = None, method: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers, what the body says) of a plain request; ``body``: bytes, or what becomes JSON."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        kind = {} if data is None else {"content-type": "application/json"}
        line.request(method or ("GET" if data is None else "POST"), path, data, {**kind, **_dashed(headers)})
        answer = line.getresponse()
        told = answer.read()
        line.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, json.loads(told) if told and "json" in found.get("content-type", "") else told

    def raw(self, path: str, body: Any) -> bytes:
        """The bytes of an answer's body."""
        return self.ask(path, body)[2]


def _dashed(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def events(raw: bytes) -> list[Any]:
    """What the events of a stream say; the last one must be [DONE]."""
    lines = raw.decode().split("\n\n")
    assert lines.pop() == "" and all(line.startswith("data: ") and "\n" not in line for line in lines)
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]
