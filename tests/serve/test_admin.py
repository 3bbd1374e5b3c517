"""The second port: its key, and adapters loaded, unloaded and replaced while requests run."""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import serving
from serving import TALK
from test_leaving import endless, until
from test_trust import ring

from halter.cli import main
from halter.serve.adapters.held import digest_of

openai = pytest.importorskip("openai")
CHAT = "/v1/chat/completions"
GREEDY: dict[str, Any] = {"messages": TALK, "temperature": 0, "max_tokens": 8, "model": "mine"}


class Admin:
    """The second port of a server."""

    def __init__(self, file: Path) -> None:
        until(file.exists)
        self.told = json.loads(file.read_text())

    def ask(self, path: str, body: Any = None, key: str | None = None, **headers: str) -> tuple[int, Any]:
        line = http.client.HTTPConnection(self.told["url"].removeprefix("http://"), timeout=serving.PATIENCE)
        every = {"authorization": f"Bearer {self.told['key'] if key is None else key}", **headers}
        data = None if body is None else json.dumps(body).encode()
        kind = {} if data is None else {"content-type": "application/json"}
        line.request("GET" if data is None else "POST", path, data, kind | every)
        answer = line.getresponse()
        found = answer.status, json.loads(answer.read())
        line.close()
        return found

    def row(self, name: str) -> Any:
        return next(row for row in self.ask("/adapters")[1]["adapters"] if row["name"] == name)


def versions(world: Any, folder: Path) -> tuple[Path, Any]:
    """A folder with a first version, and what puts another one there."""
    place = folder / "mine"
    first, second = world.adapter("lora", seed=31), world.adapter("llama_adapter", seed=32)
    first.save(place)

    def replace(keep: bool = False) -> None:
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
        (first if keep else second).save(place)

    return place, replace


def test_the_second_port_asks_for_its_own_key(world: Any, tmp_path: Path) -> None:
    file = tmp_path / "admin.json"
    with world.server(admit=ring().admit, admin=file) as server:
        admin = Admin(file)
        assert file.stat().st_mode & 0o777 == 0o600 and admin.told["url"].startswith("http://127.0.0.1:")
        assert admin.ask("/adapters")[0] == 200
        for key in ("", "of-all", admin.told["key"][:-1], admin.told["key"] + "x"):
            for path, body in (("/adapters", None), ("/reload", {"name": "lora"}), ("/health", None), ("/x", None)):
                assert admin.ask(path, body, key)[0] == 401
        assert server.ask("/v1/models", authorization=f"Bearer {admin.told['key']}")[0] == 401
        assert admin.ask("/adapters", host="evil.example")[0] == 403
        assert admin.ask("/adapters", origin="https://evil.example")[0] == 403
        assert admin.ask("/load", {"name": "lora"}, **{"content-type": "text/plain"})[0] == 415
        for name in ("nobody", "../adapters/lora", str(world.folder / "lora"), "tiny"):
            for path in ("/load", "/unload", "/reload"):
                assert admin.ask(path, {"name": name})[1]["error"]["code"] == "model_not_found"
        assert admin.ask("/load", {"name": "lora", "path": "/tmp"})[0] == 400 and server.opened == []
        assert str(world.folder) not in json.dumps(admin.ask("/adapters")[1])
    assert not file.exists()


def test_loaded_and_unloaded_by_name(world: Any, tmp_path: Path) -> None:
    file = tmp_path / "admin.json"
    with world.server(admin=file) as server:
        admin = Admin(file)
        assert admin.row("lora")["state"] == "known"
        status, row = admin.ask("/load", {"name": "lora"})
        assert status == 200 and row["state"] == "loaded" and row["methods"] == ["lora"] and row["bytes"] > 0
        asked = {**GREEDY, "model": "lora"}
        said = server.ask(CHAT, asked)[2]["choices"][0]["message"]["content"]
        assert server.opened == ["lora"]
        assert admin.ask("/unload", {"name": "lora"})[1]["state"] == "unloaded"
        assert server.ask(CHAT, asked)[2]["error"]["code"] == "model_not_found"
        assert "lora" not in [model.id for model in server.client().models.list()]
        assert admin.ask("/load", {"name": "lora"})[0] == 200
        assert server.ask(CHAT, asked)[2]["choices"][0]["message"]["content"] == said
        assert admin.ask("/load", {"name": "damaged"})[1]["error"]["code"] == "adapter_unusable"
        assert admin.row("damaged")["state"] == "broken"


def test_a_request_ends_with_the_version_with_which_it_began(world: Any, tmp_path: Path) -> None:
    """Complaint 3: a running request was silently answered by what was loaded after it."""
    file = tmp_path / "admin.json"
    place, replace = versions(world, tmp_path)
    old = digest_of(place)
    with world.server(also=[f"mine={place}"], admin=file) as server:
        admin, client = Admin(file), server.client()
        long = {**endless(world), "model": "mine", "max_tokens": 300}
        alone = server.ask(CHAT, long)[2]["choices"][0]["message"]["content"]
        short = server.ask(CHAT, GREEDY)[2]
        running = client.chat.completions.create(**long, stream=True, stream_options={"include_usage": True})
        chunks = [next(running) for _ in range(3)]
        replace()
        new = digest_of(place)
        status, row = admin.ask("/reload", {"name": "mine"})
        assert status == 200 and row["digest"] == new != old and row["methods"] == ["llama_adapter"]
        answer = server.ask(CHAT, GREEDY)[2]
        assert answer["halter"]["adapters"][0]["digest"] == new
        assert answer["choices"][0]["message"]["content"] != short["choices"][0]["message"]["content"]
        chunks += running
        assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == alone
        assert chunks[-1].model_extra["halter"]["adapters"][0]["digest"] == old
        until(lambda: admin.row("mine")["leaving"] == 0)
        assert not server.service.adapters._leaving
        assert server.ask(CHAT, {**GREEDY, "model": f"mine@{old[:8]}"})[0] == 404
        # The same again is the same; a version that cannot be used leaves the one that is there.
        assert admin.ask("/reload", {"name": "mine"})[1]["digest"] == new
        tensors = next(place.glob("*.safetensors"))
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
        assert admin.ask("/reload", {"name": "mine"})[1]["error"]["code"] == "adapter_unusable"
        assert server.ask(CHAT, GREEDY)[2]["choices"] == answer["choices"]


def test_reloads_between_requests_answer_with_the_version_they_name(world: Any, tmp_path: Path) -> None:
    """Complaint 5: a name that is used again, and what was kept under it."""
    file = tmp_path / "admin.json"
    place, replace = versions(world, tmp_path)
    with world.server(also=[f"mine={place}"], admin=file) as server:
        admin, said, ends = Admin(file), [], threading.Event()
        assert admin.ask("/load", {"name": "mine"})[0] == 200  # while its folder is whole

        def ask() -> None:
            while not ends.is_set():
                said.append(server.ask(CHAT, GREEDY))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(6):
            replace(keep=turn % 2 == 1)
            assert admin.ask("/reload", {"name": "mine"})[0] == 200
            seen = len(said)
            until(lambda seen=seen: len(said) > seen + 3)
        ends.set()
        for thread in threads:
            thread.join(serving.PATIENCE)
        until(lambda: not server.service.adapters._leaving)
    answers = {
        (told["halter"]["adapters"][0]["digest"], told["choices"][0]["message"]["content"]) for _, _, told in said
    }
    assert {status for status, _, _ in said} == {200} and len(answers) == 2 == len({digest for digest, _ in answers})


def test_a_file_that_is_something_else_is_left(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    from halter.serve import running

    async def served(*_: Any) -> None:
        raise AssertionError("it starts")

    monkeypatch.setattr(running, "serve", served)
    file = tmp_path / "keys.json"
    file.write_text('{"keys": []}')
    assert main.run(["serve", "playground", "--admin", str(file)]) == 2
    assert "[already-exists]" in capsys.readouterr().err and file.read_text() == '{"keys": []}'
