"""Prompts that begin alike, over HTTP: what a client is told of them, and that versions and tenants stay apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving import TALK
from test_admin import Admin, versions
from test_leaving import until
from test_trust import ring, shown

openai = pytest.importorskip("openai")
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
GREEDY: dict[str, Any] = {"messages": TALK, "temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": 2}


def usage_of(server: Any, path: str = CHAT, **more: Any) -> tuple[int, int]:
    """(tokens of the prompt, of these read from what was kept)."""
    asked = (GREEDY if path == CHAT else {"temperature": 0, "max_tokens": 4}) | more
    told = server.ask(path, asked)[2]
    return told["usage"]["prompt_tokens"], told["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_the_next_turn_begins_where_the_last_ended(world: Any) -> None:
    """Of the base and of every method that can; the answers are those of a server that keeps nothing."""
    with world.server() as server, world.server(prefix_gb=0.0) as without:
        for model in ("tiny", "lora", "llama_adapter", "excitor", "loreft", "prefix_tuning", "prompt_tuning"):
            talk, before = list(TALK), 0
            for turn in range(3):
                asked = {**GREEDY, "messages": talk, "model": model}
                told, plain = (each.ask(CHAT, asked)[2] for each in (server, without))
                one, other = told["choices"][0], plain["choices"][0]
                assert one["message"] == other["message"]
                pairs = zip(one["logprobs"]["content"], other["logprobs"]["content"], strict=True)
                assert all(abs(a["logprob"] - b["logprob"]) <= 1e-5 for a, b in pairs)
                usage = told["usage"]
                cached = usage["prompt_tokens_details"]["cached_tokens"]
                assert plain["usage"] == usage | {"prompt_tokens_details": {"cached_tokens": 0}}
                keeps = model in ("tiny", "lora", "llama_adapter", "excitor")
                # At least the prompt of the turn before: what was written may be other tokens when it is read.
                assert before <= cached < usage["prompt_tokens"] if keeps and turn else cached == 0, (model, turn)
                before = usage["prompt_tokens"] - 8
                assert server.records[-1]["cached_tokens"] == cached
                talk = [*talk, one["message"], {"role": "user", "content": "And then?"}]
                talk[-2] = {"role": "assistant", "content": one["message"]["content"]}


def test_several_answers_to_a_prompt_count_it_once(world: Any) -> None:
    with world.server() as server:
        told = [server.ask(CHAT, {**GREEDY, "model": "lora", "n": 3, "temperature": 1})[2] for _ in range(2)]
        whole = told[0]["usage"]["prompt_tokens"]
        found = [each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in told]
        assert found == [0, whole - 1] and [one["cached_tokens"] for one in server.records] == found


def test_a_scored_prompt_is_computed_whole(world: Any) -> None:
    ids = list(range(3, 40))
    scored = {"prompt": [ids], "echo": True, "logprobs": 1, "model": "lora"}
    with world.server() as server:
        assert usage_of(server, COMPLETE, prompt=[ids], model="lora") == (37, 0)
        assert usage_of(server, COMPLETE, prompt=[ids], model="lora") == (37, 36)
        assert usage_of(server, COMPLETE, **scored) == (37, 0)


def test_tenants_and_models_keep_apart(world: Any) -> None:
    """Else one could tell by the time, and by usage, what another has asked."""
    with world.server(admit=ring().admit) as server:

        def cached(key: str, model: str) -> int:
            told = server.ask(CHAT, {**GREEDY, "model": model}, **shown(key))[2]
            return int(told["usage"]["prompt_tokens_details"]["cached_tokens"])

        for key in ("of-all", "of-law"):
            for model in ("tiny", "lora"):
                assert [cached(key, model) > 0 for _ in range(2)] == [False, True]


def kept(server: Any) -> int:
    return len(server.service.engine._engine._prefixes)


def test_a_version_that_goes_takes_what_it_left_along(world: Any, tmp_path: Path) -> None:
    place, replace = versions(world, tmp_path)
    file = tmp_path / "admin.json"
    with world.server(admin=file, also=[str(place)]) as server:
        admin = Admin(file)
        assert [usage_of(server, model="mine")[1] > 0 for _ in range(2)] == [False, True] and kept(server)
        replace()
        assert admin.ask("/reload", {"name": "mine"})[0] == 200
        until(lambda: not kept(server))
        assert [usage_of(server, model="mine")[1] > 0 for _ in range(2)] == [False, True]
        assert admin.ask("/unload", {"name": "mine"})[0] == 200 and admin.ask("/load", {"name": "mine"})[0] == 200
        until(lambda: not kept(server))
        assert usage_of(server, model="mine")[1] == 0


def test_of_two_adapters_for_which_there_is_no_room_the_one_that_goes_leaves_nothing(world: Any) -> None:
    with world.server(adapter_gb=1.5 * weights(world) / 2**30) as server:
        assert [usage_of(server, model=name)[1] > 0 for name in ("lora", "lora", "ia3")] == [False, True, False]
        for name in ("dora", "excitor"):
            usage_of(server, model=name)
        assert usage_of(server, model="lora")[1] == 0


def weights(world: Any) -> int:
    """Bytes that the largest of a few adapters takes, bound."""
    names = ("lora", "ia3", "dora", "excitor")
    return max(2 * sum(t.nbytes for t in world.loaded(name).parameters()) for name in names)
