"""POST /v1/chat/completions through the openai client: answers are those of halter.generate, and of OpenAI's types."""

from __future__ import annotations

import math
from typing import Any

import pytest
import serving
from serving import TALK

from halter.generation.engine import generate

openai = pytest.importorskip("openai")
PATH = "/v1/chat/completions"
GREEDY: dict[str, Any] = {"messages": TALK, "temperature": 0, "max_tokens": 12}


def wanted(world: Any, name: str = "tiny", **options: Any) -> list[Any]:
    adapter = None if name == "tiny" else world.loaded(name)
    told = {"max_new_tokens": 12, **options}
    return generate(world.model, world.tokenizer, [TALK], adapter, template=world.opened.template, **told)


@pytest.mark.parametrize("name", ["tiny", *serving.METHODS])
def test_each_adapter_answers_as_generate_does_whole_and_streamed(world: Any, served: Any, name: str) -> None:
    (want,) = wanted(world, name, logprobs=2)
    client = served.client()
    whole = client.chat.completions.create(model=name, **GREEDY, logprobs=True, top_logprobs=2)
    openai.types.chat.ChatCompletion.model_validate(whole.model_dump(), strict=True)
    assert whole.model == name and whole.choices[0].message.content == want.text
    assert whole.usage.prompt_tokens == len(want.prompt_tokens)
    assert whole.usage.completion_tokens == len(want.tokens) == whole.usage.total_tokens - len(want.prompt_tokens)
    told = whole.choices[0].logprobs.content
    assert [one.logprob for one in told] == pytest.approx([one.logprob for one in want.logprobs], abs=1e-5)
    assert [len(one.top_logprobs) for one in told] == [2] * len(want.tokens)
    assert [bytes(one.bytes or []) for one in told] == [world.tokenizer.piece(id) for id in want.tokens]
    chunks = list(client.chat.completions.create(model=name, **GREEDY, stream=True, logprobs=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == want.text
    streamed = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert [one.logprob for one in streamed] == pytest.approx([one.logprob for one in told], abs=1e-5)
    adapters = whole.model_extra["halter"]["adapters"]
    assert [one["name"] for one in adapters] == ([] if name == "tiny" else [name])


def test_a_stream_has_openais_events_in_their_order(world: Any, served: Any) -> None:
    options = {"include_usage": True}
    asked = {**GREEDY, "model": "lora", "n": 2, "temperature": 0.9, "seed": 7}
    told = serving.events(served.raw(PATH, {**asked, "stream": True, "stream_options": options}))
    for one in told:
        openai.types.chat.ChatCompletionChunk.model_validate(one, strict=True)
    assert len({(one["id"], one["created"], one["model"], one["object"]) for one in told}) == 1
    *chunks, last = told
    assert [(c["choices"][0]["index"], c["choices"][0]["delta"]) for c in chunks[:2]] == [
        (0, {"role": "assistant", "content": ""}),
        (1, {"role": "assistant", "content": ""}),
    ]
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] > 0
    for index in range(2):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert [c["finish_reason"] for c in own][:-1] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == "length" and own[-1]["delta"] == {}
    plain = served.client().chat.completions.create(**asked)
    assert plain.usage.prompt_tokens == last["usage"]["prompt_tokens"] == len(wanted(world)[0].prompt_tokens)
    said = [
        "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"][0]["index"] == i)
        for i in (0, 1)
    ]
    assert said == [choice.message.content for choice in plain.choices] and said[0] != said[1]
    assert "usage" not in serving.events(served.raw(PATH, {**GREEDY, "model": "tiny", "stream": True}))[0]


def test_a_stream_cut_at_any_byte_reads_the_same(served: Any) -> None:
    raw = served.raw(PATH, {**GREEDY, "model": "ia3", "stream": True, "temperature": 1, "seed": 3, "max_tokens": 5})
    whole = [one.data for one in openai._streaming.SSEDecoder().iter_bytes(iter([raw]))]
    assert len(whole) > 3
    for at in range(len(raw) + 1):
        assert [one.data for one in openai._streaming.SSEDecoder().iter_bytes(iter([raw[:at], raw[at:]]))] == whole, at


def test_options_do_what_they_do_in_generate(world: Any, served: Any) -> None:
    client = served.client()
    sampled = {"temperature": 0.8, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.25, "seed": 11}
    bias = {"17": -100.0, "40": 5.0}
    said = client.chat.completions.create(
        model="lora", messages=TALK, max_completion_tokens=12, n=3, logit_bias=bias, **sampled
    )
    want = wanted(world, "lora", n=3, logit_bias={17: -100.0, 40: 5.0}, **sampled)
    assert [choice.message.content for choice in said.choices] == [one.text for one in want]
    (plain,) = wanted(world)
    stop = plain.text[4:7]
    stopped = client.chat.completions.create(model="tiny", **GREEDY, stop=[stop]).choices[0]
    assert stopped.message.content == plain.text[: plain.text.index(stop)] and stopped.finish_reason == "stop"
    drawn = {
        client.chat.completions.create(model="tiny", messages=TALK, max_tokens=12).choices[0].message.content
        for _ in range(3)
    }
    assert len(drawn) > 1  # OpenAI's temperature is 1, and without a seed every answer is another


def test_several_adapters_at_once_are_their_stack(world: Any, served: Any) -> None:
    import halter

    together = [{"name": "lora", "weight": 0.5}, {"name": "dora"}]
    said = served.client().chat.completions.create(
        model="tiny", **GREEDY, logprobs=True, extra_body={"halter": {"adapters": together}}
    )
    stack = halter.stack([world.loaded("lora"), world.loaded("dora")], [0.5, 1.0])
    (want,) = generate(
        world.model, world.tokenizer, [TALK], stack, template=world.opened.template, max_new_tokens=12, logprobs=0
    )
    told = [one.logprob for one in said.choices[0].logprobs.content]
    assert told == pytest.approx([one.logprob for one in want.logprobs], abs=1e-5)
    assert [one["weight"] for one in said.model_extra["halter"]["adapters"]] == [0.5, 1.0]
    status, _, body = served.ask(PATH, {**GREEDY, "model": "lora", "halter": {"adapters": together}})
    assert status == 400 and body["error"]["param"] == "halter.adapters"
    mixed = [{"name": "lora"}, {"name": "alpaca"}]
    status, _, body = served.ask(PATH, {**GREEDY, "model": "tiny", "halter": {"adapters": mixed}})
    assert status == 400 and "different chat templates" in body["error"]["message"]
    heavy = [{"name": "prefix_tuning", "weight": 0.5}]
    status, _, body = served.ask(PATH, {**GREEDY, "model": "tiny", "halter": {"adapters": heavy}})
    assert status == 400 and "wholly or not at all" in body["error"]["message"]


def test_an_answer_that_fills_the_context_is_cut_as_openai_says_it(world: Any, served: Any) -> None:
    full = [{"role": "user", "content": "x " * 230}]
    endless = dict.fromkeys(map(str, world.tokenizer.stop_ids), -100)
    asked = {"model": "tiny", "messages": full, "temperature": 0, "max_tokens": 4096, "logit_bias": endless}
    status, _, body = served.ask(PATH, asked)
    assert status == 200 and body["choices"][0]["finish_reason"] == "length" and body["halter"]["context_full"] == [0]
    assert body["usage"]["total_tokens"] == world.model.config.context
    long = [{"role": "user", "content": "x " * 600}]
    status, _, body = served.ask(PATH, {**asked, "messages": long})
    assert status == 400 and body["error"]["code"] == "context_length_exceeded"


def test_numbers_that_json_lacks_are_told_as_openai_tells_them() -> None:
    from halter.serve.wire.tokens import number

    assert number(-math.inf) == -9999.0 and number(-1.5) == -1.5
