"""response_format over the wire, by the openai client: whole and streamed, n answers, beside free rows and adapters."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pydantic
import pytest
import serving

openai = pytest.importorskip("openai")
pytest.importorskip("llguidance")
PATH = "/v1/chat/completions"
TALK = [{"role": "user", "content": "Who is Lily?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kinds": {"type": "array", "items": {"enum": ["girl", "dog"]}, "maxItems": 2},
    },
    "required": ["name", "age", "kinds"],
    "additionalProperties": False,
}


def format_of(schema: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, **more}}


ASKED: dict[str, Any] = {
    "model": "tiny",
    "messages": TALK,
    "max_tokens": 300,
    "seed": 5,
    "response_format": format_of(),
}


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=6)
    age: int = pydantic.Field(ge=0, le=99)


def streamed(served: Any, **asked: Any) -> dict[int, dict[str, Any]]:
    """{index: {text, finish, logprobs}} of a stream's choices, each chunk as OpenAI's types have it."""
    told: dict[int, dict[str, Any]] = {}
    for one in serving.events(served.raw(PATH, {**asked, "stream": True})):
        openai.types.chat.ChatCompletionChunk.model_validate(one, strict=True)
        for choice in one["choices"]:
            own = told.setdefault(choice["index"], {"text": "", "finish": None, "logprobs": []})
            own["text"] += choice["delta"].get("content") or ""
            own["finish"] = choice["finish_reason"] or own["finish"]
            own["logprobs"] += (choice["logprobs"] or {}).get("content", [])
    return told


@pytest.mark.parametrize("strict", [True, False, None])
@pytest.mark.parametrize("temperature", [0, 2])
def test_answers_are_of_the_schema_whole_and_streamed(served: Any, strict: Any, temperature: float) -> None:
    asked = {**ASKED, "n": 2, "logprobs": True, "top_logprobs": 2, "temperature": temperature}
    asked["response_format"] = format_of(strict=strict)
    whole = served.client().chat.completions.create(**asked)
    openai.types.chat.ChatCompletion.model_validate(whole.model_dump(), strict=True)
    told = streamed(served, **asked)
    for choice in whole.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
        assert told[choice.index]["text"] == choice.message.content
        assert told[choice.index]["finish"] == "stop"
        words = b"".join(bytes(one.bytes) for one in choice.logprobs.content).decode()
        assert words.strip() == choice.message.content
        assert len(told[choice.index]["logprobs"]) == len(choice.logprobs.content)
        # The model's own: what the form barred may well be what it held likeliest.
        assert any(one.token != one.top_logprobs[0].token for one in choice.logprobs.content)
    assert whole.usage.completion_tokens == sum(len(one.logprobs.content) for one in whole.choices)


def test_an_object_and_the_clients_own_way_of_asking(served: Any) -> None:
    client = served.client()
    asked = {**ASKED, "response_format": {"type": "json_object"}, "n": 4, "max_tokens": 60, "temperature": 2}
    ends = set()
    for choice in client.chat.completions.create(**asked).choices:
        ends.add(choice.finish_reason)
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
    assert ends <= {"stop", "length"}
    parsed = client.chat.completions.parse(model="tiny", messages=TALK, response_format=Person, max_tokens=200, seed=1)
    assert isinstance(parsed.choices[0].message.parsed, Person)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="tiny", messages=TALK, response_format=Person, max_tokens=3)


def test_forms_beside_free_answers_and_adapters(served: Any) -> None:
    """What is asked at one time is answered as what is asked alone."""
    bodies = []
    for at, model in enumerate(("tiny", "lora", "ia3", "prefix_tuning", "tiny", "lora")):
        body = {**ASKED, "model": model, "seed": at, "max_tokens": 40, "temperature": 1}
        bodies.append(body if at % 2 else {k: v for k, v in body.items() if k != "response_format"})
    bodies.append({**bodies[1], "tools": None, "stop": ['"age"']})

    def asked(body: dict[str, Any]) -> Any:
        (choice,) = served.ask(PATH, body)[2]["choices"]
        return choice["message"], choice["finish_reason"]

    alone = [asked(body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        assert list(pool.map(asked, bodies)) == alone
    assert alone[-1][1] == "stop" and "age" not in alone[-1][0]["content"]


def test_a_client_that_leaves_ends_a_formed_answer(served: Any) -> None:
    endless = {"type": "array", "items": {"type": "integer"}, "minItems": 400}
    stream = served.client().chat.completions.create(**{**ASKED, "response_format": format_of(endless), "stream": True})
    next(iter(stream))
    stream.close()
    gone = threading.Event()
    for _ in range(200):
        if served.service.admission.answers == 0:
            break
        gone.wait(0.05)
    assert served.service.admission.answers == 0
    assert served.client().chat.completions.create(**ASKED).choices[0].finish_reason == "stop"


def links(length: int) -> dict[str, Any]:
    chain = {f"d{at}": {"allOf": [{"$ref": f"#/$defs/d{at + 1}"}]} for at in range(length)}
    return {"$defs": {**chain, f"d{length}": {"type": "object"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    ("wanted", "param", "why"),
    [
        (format_of({"type": "strnig"}), "response_format.json_schema.schema", "Invalid type: strnig"),
        (format_of({"type": "object", "not": {}}), "response_format.json_schema.schema", "Unimplemented keys"),
        (format_of({"const": "x" * 70_000}), "response_format.json_schema.schema", "longer than"),
        (format_of(links(1200)), "response_format.json_schema.schema", "takes more than"),
        (format_of([]), "response_format", "dictionary"),
        (format_of(other=1), "response_format", "not supported"),
        ({"type": "json_schema"}, "response_format", "required"),
        ({"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}, "response_format", "pattern"),
        ({"type": "grammar", "grammar": "x"}, "response_format", "json_schema"),
        ("json", "response_format", ""),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_form_that_cannot_be_used_is_the_clients_mistake(served: Any, wanted: Any, param: str, why: str) -> None:
    status, _, told = served.ask(PATH, {**ASKED, "response_format": wanted})
    error = told["error"]
    assert status == 400 and error["type"] == "invalid_request_error" and len(error["message"]) < 600
    assert error["param"].startswith(param) and why in error["message"]
    assert served.ask("/health")[0] == 200 and served.client().chat.completions.create(**ASKED).choices


def test_what_is_recorded_names_the_form(served: Any) -> None:
    served.client().chat.completions.create(**ASKED)
    kept = [one["options"].get("grammar") for one in served.records if one["status"] == 200]
    assert kept[-1] is not None and len(kept[-1]) == 64
