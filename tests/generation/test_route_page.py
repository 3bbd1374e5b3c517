"""docs/guide/add-a-server-route.md: its loop lets many threads ask one engine, and tells a refusal as a status."""

from __future__ import annotations

import importlib.util
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import tiny
import tiny_tokenizers

from halter.errors import Refusal
from halter.generation.engine import Engine, generate
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.generation.requests import Request
from halter.text.tokenizer import Tokenizer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "guide" / "add-a-server-route.md").read_text("utf-8")
PROMPTS = [[1, 5, 9], [1, 50], [1, 7, 7, 7, 8], [1, 30, 31]]
WAIT = 60.0  # seconds after which a test fails instead of hanging


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    (source,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    path = tmp_path_factory.mktemp("serve") / "loop.py"
    path.write_text(source, "utf-8")
    spec = importlib.util.spec_from_file_location("loop_of_the_page", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def request(prompt: list[int], count: int = 6) -> Request:
    return Request(EncodedPrompt(tuple(prompt), True), GenerationOptions(max_new_tokens=count, ignore_stop_ids=True))


def test_threads_ask_one_engine(page: ModuleType, tmp_path: Path) -> None:
    model = tiny.decoder(tiny.config(vocab_size=512))
    tokenizer = Tokenizer.from_folder(tiny_tokenizers.llama3(tmp_path))
    want = generate(model, tokenizer, PROMPTS, max_new_tokens=6, ignore_stop_ids=True)
    loop = page.EngineLoop(Engine(model, tokenizer, rows=2))

    def answered(prompt: list[int]) -> tuple[str, tuple[int, ...]]:
        _, heard = loop.add(request(prompt))
        texts = []
        while True:
            delta = heard.get(timeout=WAIT)
            texts.append(delta.text)
            if delta.result is not None:
                return "".join(texts), delta.result.tokens

    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        said = list(threads.map(answered, PROMPTS))
    assert said == [(answer.text, answer.tokens) for answer in want]

    number, heard = loop.add(request([1, 5], 200))
    assert heard.get(timeout=WAIT).result is None
    assert loop.cancel(number).finish_reason == "cancelled" and loop.cancel(number) is None
    last = heard.get(timeout=WAIT)
    while last.result is None:
        last = heard.get(timeout=WAIT)
    assert last.result.finish_reason == "cancelled"

    with pytest.raises(Refusal) as refused:  # told to who asked, and the loop goes on
        loop.add(request([]))
    status, body = page.status_and_body(refused.value)
    assert status == 400 and body["error"]["id"] == "prompt-empty" and body["error"]["fix"]
    assert page.status_and_body(RuntimeError("secret")) == (500, {"error": {"what": "internal error"}})
    assert answered(PROMPTS[1]) == said[1]
    loop.close()
