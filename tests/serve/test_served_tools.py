"""Tools over the wire: prompts as transformers writes them, calls as OpenAI's types have them, whole and streamed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import serving
import tiny_tokenizers

from halter.generation.streaming import Delta, Generation
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

openai = pytest.importorskip("openai")
pytest.importorskip("llguidance")
transformers = pytest.importorskip("transformers")
PATH = "/v1/chat/completions"
LLAMA_31 = (Path(__file__).parent / "llama_31.jinja").read_text("utf-8")
"""The template of Llama 3.1 to 3.3 as Meta published it, as far as it concerns functions of one's own."""


def tool(name: str, **properties: Any) -> dict[str, Any]:
    """With its keys in an order of their own, which templates show."""
    required = {"required": list(properties), "additionalProperties": False}
    parameters = {"properties": properties, "type": "object", **required}
    return {"function": {"parameters": parameters, "description": f"does {name}", "name": name}, "type": "function"}


TOOLS = [
    tool("weather", city={"enum": ["Zürich", "Bern"]}, days={"type": "integer", "minimum": 1, "maximum": 9}),
    tool("now"),
]
ASK = {"role": "user", "content": "How will the weather be in Zürich?"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Zürich","days":2}'}}
TALK = [
    {"role": "system", "content": "Be brief."},
    ASK,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": 'sunny "and"\nwarm'},
]
ASKED: dict[str, Any] = {"model": "tiny", "messages": [ASK], "max_tokens": 120, "seed": 3, "tools": TOOLS}


class ToolWorld(serving.World):
    """The same models with a longer context, asked in Llama 3.1's template."""

    context, template = 2048, "llama-3.1"


@pytest.fixture(scope="module")
def tooled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    world = ToolWorld(tmp_path_factory.mktemp("tooled"))
    with world.server() as server:
        yield server


def whole(served: Any, **asked: Any) -> Any:
    made = served.client().chat.completions.create(**{**ASKED, **asked})
    openai.types.chat.ChatCompletion.model_validate(made.model_dump(), strict=True)
    return made


def streamed(served: Any, **asked: Any) -> list[dict[str, Any]]:
    """The choices of a stream, put together as clients do: {content, calls, finish, logprobs}."""
    told: dict[int, dict[str, Any]] = {}
    for one in serving.events(served.raw(PATH, {**ASKED, **asked, "stream": True})):
        openai.types.chat.ChatCompletionChunk.model_validate(one, strict=True)
        for choice in one["choices"]:
            fresh = {"content": None, "calls": [], "finish": None, "logprobs": []}
            put_together(told.setdefault(choice["index"], fresh), choice)
    return [told[index] for index in sorted(told)]


def put_together(own: dict[str, Any], choice: dict[str, Any]) -> None:
    delta = choice["delta"]
    if delta.get("content") is not None:
        own["content"] = (own["content"] or "") + delta["content"]
    for call in delta.get("tool_calls", []):
        if call["index"] == len(own["calls"]):
            assert call["id"].startswith("call_") and call["type"] == "function" and call["function"]["name"]
            own["calls"].append([call["function"]["name"], ""])
        own["calls"][call["index"]][1] += call["function"]["arguments"]
    own["finish"] = choice["finish_reason"] or own["finish"]
    own["logprobs"] += (choice["logprobs"] or {}).get("content", [])


def of(choice: Any) -> dict[str, Any]:
    """The same of a whole answer's choice."""
    calls = [[one.function.name, one.function.arguments] for one in choice.message.tool_calls or []]
    logprobs = [] if choice.logprobs is None else [one.model_dump() for one in choice.logprobs.content]
    return {
        "content": choice.message.content,
        "calls": calls,
        "finish": choice.finish_reason,
        "logprobs": logprobs,
    }


def checked(choice: dict[str, Any]) -> None:
    """Calls of the tools, with what these take."""
    assert choice["finish"] == "tool_calls" and choice["content"] is None and choice["calls"]
    for name, arguments in choice["calls"]:
        (one,) = [each["function"] for each in TOOLS if each["function"]["name"] == name]
        jsonschema.validate(json.loads(arguments), one["parameters"])


@pytest.mark.parametrize("talk", [[ASK], TALK, [*TALK, {"role": "assistant", "content": "Warm."}, ASK]], ids=len)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["free", "tools"])
def test_prompts_are_transformers_own(tmp_path: Path, talk: Any, tools: Any) -> None:
    from halter.serve.wire.fields import ChatFields
    from halter.serve.wire.prompts import Speaking, chat_prompt

    folder = tiny_tokenizers.llama3(tmp_path, template=LLAMA_31)
    tokenizer = Tokenizer.from_folder(folder)
    fields = ChatFields.model_validate({"model": "x", "messages": talk, **({"tools": tools} if tools else {})})
    ours = chat_prompt(tokenizer, fields.messages, Speaking(tokenizer.chat_template), fields.tools)
    builtin = chat_prompt(tokenizer, fields.messages, Speaking(ChatTemplate.builtin("llama-3.1")), fields.tools)
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    called = {**CALL, "function": {"name": "weather", "arguments": json.loads(CALL["function"]["arguments"])}}
    theirs = [{**turn, "tool_calls": [called]} if "tool_calls" in turn else turn for turn in talk]
    text = peer.apply_chat_template(theirs, tools=tools, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(ours.tokens, skip_control=False) == text
    assert builtin.tokens == ours.tokens


@pytest.mark.parametrize("temperature", [0, 2])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=["any", "one"]
)
def test_calls_that_must_come_whole_and_streamed(tooled: Any, choice: Any, temperature: float) -> None:
    asked = {"tool_choice": choice, "n": 3, "temperature": temperature, "logprobs": True, "max_tokens": 400}
    made = [of(one) for one in whole(tooled, **asked).choices]
    for one in made:
        checked(one)
        assert one["logprobs"]
        if choice != "required":
            assert [name for name, _ in one["calls"]] == ["weather"]
    pieces = streamed(tooled, **asked)
    for one, other in zip(made, pieces, strict=True):
        assert len(one.pop("logprobs")) == len(other.pop("logprobs")) and one == other


def test_one_call_or_several(tooled: Any, world: Any) -> None:
    (more,) = [str(id) for id in range(world.tokenizer.vocab_size) if world.tokenizer.piece(id) == b";"]
    asked = {"tools": [tool("now")], "tool_choice": "required", "logit_bias": {more: 50}, "temperature": 0}
    asked["max_tokens"] = 500
    several = of(whole(tooled, **asked).choices[0])
    assert len(several["calls"]) == 16
    checked(several)
    ids = [call.id for call in whole(tooled, **asked).choices[0].message.tool_calls]
    assert len(set(ids)) == 16
    single = of(whole(tooled, **asked, parallel_tool_calls=False).choices[0])
    assert len(single["calls"]) == 1
    checked(single)


def test_a_call_that_is_cut_is_told_as_that(tooled: Any) -> None:
    asked = {"tool_choice": "required", "max_tokens": 9, "temperature": 0}
    made = of(whole(tooled, **asked).choices[0])
    assert made["finish"] == "length" and not made["calls"] and made["content"].startswith('{"name": "')
    assert streamed(tooled, **asked) == [made]


def test_free_answers_are_as_without_tools_in_the_answer(tooled: Any) -> None:
    """auto: what a random model writes is plain text, and comes in pieces as it is certain; none: the model is told of
    no tools."""
    asked: dict[str, Any] = {"temperature": 1, "n": 2, "logprobs": True, "max_tokens": 30}
    made = [of(one) for one in whole(tooled, **asked).choices]
    assert all(one["content"] and one["finish"] == "length" and not one["calls"] for one in made)
    pieces = streamed(tooled, **asked)
    for one, other in zip(made, pieces, strict=True):
        assert len(one.pop("logprobs")) == len(other.pop("logprobs")) and one == other
    told = serving.events(tooled.raw(PATH, {**ASKED, **asked, "stream": True}))
    assert told[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert len([one for one in told if one["choices"][0]["delta"].get("content")]) > 10
    off = whole(tooled, **asked, tool_choice="none")
    body = {name: value for name, value in {**ASKED, **asked}.items() if name != "tools"}
    plain = tooled.client().chat.completions.create(**body)
    assert [of(one)["content"] for one in off.choices] == [of(one)["content"] for one in plain.choices]
    assert off.usage.prompt_tokens == plain.usage.prompt_tokens < whole(tooled, **asked).usage.prompt_tokens


def test_a_schema_beside_tools_is_one_or_the_other(tooled: Any) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}
    form = {"type": "json_schema", "json_schema": {"name": "flags", "schema": schema}}
    seen = set()
    for seed in range(3):
        asked = {"response_format": form, "temperature": 2, "n": 8, "seed": seed, "max_tokens": 200}
        for one in map(of, whole(tooled, **asked).choices):
            if one["finish"] == "stop":
                jsonschema.validate(json.loads(one["content"]), schema)
            elif one["finish"] == "tool_calls":
                checked(one)
            seen.add(one["finish"])
    assert {"stop", "tool_calls"} <= seen


def test_calls_beside_free_answers_and_adapters(tooled: Any) -> None:
    bodies = [
        {**ASKED, "model": "tiny", "temperature": 1, "max_tokens": 40, "tool_choice": choice, "seed": at}
        for at, choice in enumerate(("auto", "required", "none", "required", "auto", "required"))
    ]

    def asked(body: dict[str, Any]) -> dict[str, Any]:
        return of(tooled.client().chat.completions.create(**body).choices[0])

    alone = [asked(body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        assert list(pool.map(asked, bodies)) == alone


def test_a_stop_string_in_a_call_leaves_text(tooled: Any) -> None:
    asked = {"tool_choice": "required", "stop": ['"parameters"'], "temperature": 0}
    made = of(whole(tooled, **asked).choices[0])
    assert made["finish"] == "stop" and not made["calls"] and made["content"].startswith('{"name": "')
    assert streamed(tooled, **asked) == [made]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [TOOLS[0]] * 129}, "tools"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": [tool("f", a={"not": {}})], "tool_choice": "required"}, "tools.0.function.parameters"),
        (
            {"tools": [TOOLS[0], {"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}],
             "tool_choice": "required"},
            "tools.1.function.parameters",
        ),
        ({"messages": [ASK, {"role": "assistant", "content": None}]}, "messages.1"),
        ({"messages": [ASK, {"role": "tool", "content": "x"}]}, "messages.1"),
        ({"messages": [ASK, {**TALK[2], "tool_calls": [{**CALL, "path": "/"}]}]}, "messages.1"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)  # fmt: skip
def test_what_is_refused_by_name(tooled: Any, wrong: dict[str, Any], param: str) -> None:
    status, _, told = tooled.ask(PATH, {**ASKED, **wrong})
    assert status == 400 and told["error"]["param"].startswith(param), told


def test_a_template_without_tools_is_told(tooled: Any, served: Any) -> None:
    for server, model in ((tooled, "alpaca"), (served, "tiny")):  # a built-in one, and a stranger's that ignores them
        status, _, told = server.ask(PATH, {**ASKED, "model": model})
        error = told["error"]
        assert (status, error["param"], error["code"]) == (400, "tools", "unsupported_parameter"), told
        assert "no place for them" in error["message"]
        assert server.ask(PATH, {**ASKED, "model": model, "tool_choice": "none"})[0] == 200


def test_a_talk_with_calls_goes_on(tooled: Any) -> None:
    back = whole(tooled, messages=TALK, max_tokens=5)
    assert back.usage.prompt_tokens > whole(tooled, max_tokens=5).usage.prompt_tokens
    made = whole(tooled, tool_choice="required", parallel_tool_calls=False, max_tokens=300).choices[0].message
    (call,) = made.tool_calls
    answer = {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "12 degrees"}]}
    assert whole(tooled, messages=[ASK, made, answer], max_tokens=5).choices[0].finish_reason == "length"
    empty = {**TALK[2], "content": ""}  # as some clients send it: no beginning of an answer
    same = [
        whole(tooled, messages=[*TALK[:2], one, TALK[3]], max_tokens=1).usage.prompt_tokens for one in (empty, TALK[2])
    ]
    assert same[0] == same[1]
    last = [whole(tooled, messages=[ASK, one], max_tokens=1).usage.prompt_tokens for one in (empty, TALK[2])]
    assert last[0] == last[1]


def test_a_model_that_calls_by_itself(served: Any, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto, as a model writes that was taught it: the pieces of a stream, with stop ids and without."""
    from halter.serve.wire.chat_shape import ChatShape
    from halter.serve.wire.fields import ChatFields
    from halter.serve.wire.prompts import Speaking
    from halter.serve.wire.shapes import ServedBase

    base = ServedBase("tiny", world.model, world.tokenizer, Speaking())
    asked = ChatFields.model_validate(ASKED)
    text = '{"name": "weather", "parameters": {"city": "Bern", "days": 2}}; {"name": "now", "parameters": {}}'
    for reason, finish in (("stop", "tool_calls"), ("length", "length")):
        result = Generation(text, (1, 2), reason, None, (1,))  # type: ignore[arg-type]
        made = ChatShape().body(base, asked, {}, [result])["choices"][0]
        stream = ChatShape().stream(base, asked, {})
        own: dict[str, Any] = {"content": None, "calls": [], "finish": None, "logprobs": []}
        pieces = [Delta(0, one) for one in text] + [Delta(0, "", result)]
        for one in [*stream.opening(), *(chunk for piece in pieces for chunk in stream.piece(0, piece))]:
            put_together(own, one["choices"][0])
        calls = [[call["function"]["name"], call["function"]["arguments"]] for call in made["message"]["tool_calls"]]
        assert own["calls"] == calls == [["weather", '{"city": "Bern", "days": 2}'], ["now", "{}"]]
        assert own["content"] is made["message"]["content"] is None
        assert own["finish"] == made["finish_reason"] == finish
