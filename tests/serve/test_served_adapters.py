"""Adapters by name: who answers is who was asked for, or nobody. Each law is a complaint about another server."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import serving
import torch
from serving import TALK

from halter.generation.engine import generate
from halter.generation.prompts import encode_prompt

openai = pytest.importorskip("openai")
CHAT = "/v1/chat/completions"
GREEDY: dict[str, Any] = {"messages": TALK, "temperature": 0, "max_tokens": 10}


def alone(world: Any, name: str) -> Any:
    adapter = None if name == "tiny" else world.loaded(name)
    options = {"template": world.opened.template, "max_new_tokens": 10, "logprobs": 0}
    return generate(world.model, world.tokenizer, [TALK], adapter, **options)[0]


def said(world: Any, name: str) -> str:
    return str(alone(world, name).text)


def test_every_adapter_is_listed_before_it_was_ever_used(world: Any) -> None:
    with world.server() as server:
        listed = server.client().models.list().data
        names = [one.id for one in listed]
        assert names == ["tiny", *sorted([*serving.METHODS, "alpaca", "damaged"])]
        assert listed[1].model_extra["parent"] == "tiny" and server.opened == []
        assert str(world.folder) not in str(server.ask("/v1/models")[2])
        server.client().chat.completions.create(model="lora", **GREEDY)
        facts = server.client().models.retrieve("lora").model_extra["halter"]
        assert facts["methods"] == ["lora"] and len(facts["digest"]) == 64
        assert server.ask("/v1/models/nobody")[0] == 404


def test_an_adapter_that_failed_is_never_answered_for_by_the_base(world: Any, served: Any) -> None:
    for name in ("nobody", "lora/../dora", "../adapters/lora", "LORA", "", "auto", "lora@", "x" * 200):
        status, _, told = served.ask(CHAT, {**GREEDY, "model": name})
        assert status == 404 and told["error"]["code"] == "model_not_found", name
    for _ in range(2):
        status, _, told = served.ask(CHAT, {**GREEDY, "model": "damaged"})
        assert status == 400 and told["error"]["code"] == "adapter_unusable"
        assert "adapter-damaged" in told["error"]["message"] and str(world.folder) not in str(told)
    assert served.opened.count("damaged") == 1
    stream = served.ask(CHAT, {**GREEDY, "model": "damaged", "stream": True})
    assert stream[0] == 400
    assert served.ask(CHAT, {**GREEDY, "model": "lora"})[2]["choices"][0]["message"]["content"] == said(world, "lora")


def test_an_adapter_of_no_numbers_is_found_before_anybody_hears_it(world: Any, tmp_path: Path) -> None:
    adapter = world.adapter("lora", seed=5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.fill_(3e38)
    adapter.save(tmp_path / "huge")
    with world.server(also=[f"vast={tmp_path / 'huge'}"]) as server:
        status, _, told = server.ask(CHAT, {**GREEDY, "model": "vast"})
        assert status == 400 and told["error"]["code"] == "adapter_unusable"
        assert server.ask(CHAT, {**GREEDY, "model": "lora"})[0] == 200


def test_nothing_heavy_is_done_where_all_clients_wait(world: Any, monkeypatch: Any) -> None:
    """Reading, tokenising, templates, binding and rendering happen in threads; the event loop hands over."""
    from halter.serve import answering, app
    from halter.serve.adapters import held
    from halter.serve.wire import chat_shape, completion_shape

    heavy = [(answering, "fields_of"), (chat_shape, "chat_prompt"), (completion_shape, "completion_prompt")]
    heavy += [
        (app, "word_of"),
        (app, "_detokenized"),
        (held, "digest_of"),
        (held, "ready"),
        (held.HeldAdapters, "_read"),
        (chat_shape.ChatShape, "body"),
    ]
    seen: dict[str, set[str]] = {}

    def watched(name: str, function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            seen.setdefault(name, set()).add(threading.current_thread().name)
            return function(*arguments, **named)

        return call

    for owner, name in heavy:
        monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
    with world.server() as server:
        assert server.ask(CHAT, {**GREEDY, "model": "lora", "logprobs": True})[0] == 200
        assert server.ask("/v1/completions", {"model": "lora", "prompt": "a", "logprobs": 1})[0] == 200
        ids = server.ask("/tokenize", {"prompt": "The dog", "return_token_strs": True})[2]["tokens"]
        assert server.ask("/detokenize", {"tokens": ids})[0] == 200
        events = server.thread.name
    assert seen.keys() == {name for _, name in heavy} and not any(events in names for names in seen.values())


def test_a_digest_pins_a_version(world: Any, served: Any) -> None:
    whole = served.client().chat.completions.with_raw_response.create(model="ia3", **GREEDY)
    (one,) = whole.parse().model_extra["halter"]["adapters"]
    assert whole.headers["x-halter-adapter"] == f"ia3@{one['digest'][:8]}"
    pinned = f"ia3@{one['digest'][:8]}"
    again = served.client().chat.completions.create(model=pinned, **GREEDY)
    assert again.model == pinned and again.choices[0].message.content == whole.parse().choices[0].message.content
    with pytest.raises(openai.NotFoundError):
        served.client().chat.completions.create(model="ia3@00000000", **GREEDY)


def test_an_adapter_speaks_in_its_own_template(world: Any, served: Any) -> None:
    from halter.text.chat.conversations import ChatTemplate

    template = ChatTemplate.builtin("alpaca")
    (want,) = generate(
        world.model, world.tokenizer, [TALK], world.loaded("alpaca"), template=template, max_new_tokens=10
    )
    answer = served.ask(CHAT, {**GREEDY, "model": "alpaca"})[2]
    assert answer["choices"][0]["message"]["content"] == want.text
    own = encode_prompt(world.tokenizer, TALK, template)
    assert answer["usage"]["prompt_tokens"] == len(own.tokens) != len(encode_prompt(world.tokenizer, TALK).tokens)


def test_many_methods_at_once_answer_as_each_alone(world: Any) -> None:
    """All methods, the base, plain and streamed, in one batch, arriving at any time; none leans on another's prompt."""
    names = ["tiny", *serving.METHODS]
    want = {name: alone(world, name) for name in names}
    with world.server(step_tokens=24, rows=6) as server:

        def ask(turn: int) -> tuple[str, list[float], str]:
            name = names[turn * 7 % len(names)]
            asked = {**GREEDY, "model": name, "logprobs": True}
            if turn % 2:
                chunks = [c.choices[0] for c in server.client().chat.completions.create(**asked, stream=True)]
                told = [one.logprob for c in chunks if c.logprobs for one in c.logprobs.content]
                return name, told, "".join(c.delta.content or "" for c in chunks)
            (choice,) = server.client().chat.completions.create(**asked).choices
            return name, [one.logprob for one in choice.logprobs.content], choice.message.content

        with ThreadPoolExecutor(9) as threads:
            answers = list(threads.map(ask, range(27)))
    assert {name for name, _, _ in answers} == {*names}
    for name, told, text in answers:
        assert told == pytest.approx([one.logprob for one in want[name].logprobs], abs=1e-5), name
        assert text == want[name].text, name


def test_room_is_made_by_letting_go_of_what_nobody_uses(world: Any) -> None:
    with world.server(adapter_gb=1e-4) as server:  # some 100 kB: one of these at a time
        client = server.client()
        for _ in range(2):
            for name in ("lora", "dora"):
                answer = client.chat.completions.create(model=name, **GREEDY)
                assert answer.choices[0].message.content == said(world, name)
        assert server.opened == ["lora", "dora", "lora", "dora"]
        going = client.chat.completions.create(model="lora", **{**GREEDY, "max_tokens": 400}, stream=True)
        next(going)
        status, told, body = server.ask(CHAT, {**GREEDY, "model": "dora"})
        assert status == 503 and body["error"]["code"] == "overloaded" and int(told["retry-after"]) > 0
        going.close()


def test_a_load_keeps_nobody_waiting_and_happens_once(world: Any) -> None:
    with world.server() as server:
        slow, opened = threading.Event(), server.service.adapters._open

        def late(folder: Any) -> Any:
            slow.wait(serving.PATIENCE)
            return opened(folder)

        server.service.adapters._open = late
        with ThreadPoolExecutor(3) as threads:
            loading = [threads.submit(server.ask, CHAT, {**GREEDY, "model": "loreft"}) for _ in range(3)]
            assert server.ask(CHAT, {**GREEDY, "model": "tiny"})[0] == 200  # while the adapter is being read
            assert not any(one.done() for one in loading)
            slow.set()
            answers = [one.result(serving.PATIENCE)[2]["choices"][0]["message"]["content"] for one in loading]
        assert answers == [said(world, "loreft")] * 3 and server.opened == ["loreft"]


def test_files_that_change_while_they_are_read_are_no_adapter(world: Any) -> None:
    from halter.serve.adapters.held import digest_of

    with world.server() as server:
        folder = world.folder / "dora"
        before, opened = digest_of(folder), server.service.adapters._open
        facts = (folder / "halter.json").read_bytes()

        def changing(place: Any) -> Any:
            found = opened(place)
            (folder / "halter.json").write_bytes(facts + b" ")
            return found

        server.service.adapters._open = changing
        try:
            assert server.ask(CHAT, {**GREEDY, "model": "dora"})[2]["error"]["code"] == "adapter_unusable"
        finally:
            (folder / "halter.json").write_bytes(facts)
        assert digest_of(folder) == before


def test_tenants_see_what_is_theirs(world: Any) -> None:
    from halter.serve.trust.tenants import Tenant

    one = Tenant("one", "k1", adapters=frozenset({"lora"}))
    with world.server(admit=lambda shown: one if shown == "secret" else None) as server:
        for path in ("/v1/models", "/tokenizer_info", "/nonsense", "/health/../v1/models"):
            status, told, body = server.ask(path)
            assert status == 401 and told["www-authenticate"] == "Bearer" and body["error"]["code"] == "invalid_api_key"
        assert server.ask("/health")[0] == server.ask("/ready")[0] == 200
        key = {"authorization": "Bearer secret"}
        assert [one["id"] for one in server.ask("/v1/models", **key)[2]["data"]] == ["lora"]
        assert server.ask(CHAT, {**GREEDY, "model": "lora"}, **key)[0] == 200
        for name in ("tiny", "dora"):
            assert server.ask(CHAT, {**GREEDY, "model": name}, **key)[2]["error"]["code"] == "model_not_found"
        stack = {"halter": {"adapters": [{"name": "dora"}]}, "model": "tiny"}
        assert server.ask(CHAT, {**GREEDY, **stack}, **key)[0] == 404
    kept = [record["status"] for record in server.records]
    (away,) = [record for record in server.records if record["status"] == 401]
    assert away["times"] == 4 and kept.count(200) == 1 and kept.count(404) == 3


@pytest.mark.parametrize("name", serving.METHODS)
def test_an_adapter_without_numbers_draws_none(world: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """torch imports its compiler to fill a tensor on meta, and no thread goes on meanwhile."""
    from halter.adapters.loading import planned

    monkeypatch.setattr(torch, "Generator", None)
    assert all(one.is_meta for one in planned(world.folder / name, world.model.config).parameters())
