"""What a conversation must look like before a template sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from halter.errors import Refusal
from halter.text.chat import reasoning

ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
SWITCHES = ("loss", "train", "weight")  # per message, whether it is learned; templates never see them
CONTENT = (str, list, tuple, dict, type(None))


def checked(messages: Sequence[Any], tools: Sequence[Any] | None) -> tuple[list[dict[str, Any]], list[bool]]:
    """The messages as templates expect them, and for each whether it may be learned.

    Refusal ``messages-malformed`` names every message that is wrong.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise _malformed(["no messages"])
    wrong = [f"message {i + 1}: {problem}" for i, m in enumerate(messages) if (problem := _problem(m))]
    if wrong:
        raise _malformed(wrong)
    try:
        json.dumps([messages, tools], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _malformed([f"a half of a surrogate pair, {error.object[error.start]!r}"]) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise _malformed([f"not JSON: {error}"]) from None
    learned = [not any(m.get(key) in (False, 0) and m.get(key) is not None for key in SWITCHES) for m in messages]
    return [_plain(m) for m in messages], learned


def _problem(message: Any) -> str | None:
    if not isinstance(message, dict):
        return f"is a {type(message).__name__}, not an object"
    role = message.get("role")
    if not isinstance(role, str) or not ROLE.fullmatch(role):
        return f"has the role {role!r}"
    if not isinstance(message.get("content"), CONTENT):
        return f"has content of type {type(message['content']).__name__}"
    if message.get("content") is None and not message.get("tool_calls"):
        return "has neither content nor tool_calls"
    calls = message.get("tool_calls")
    if calls and not (isinstance(calls, list | tuple) and all(isinstance(call, dict) for call in calls)):
        return "has tool_calls that are no list of objects"
    for key in SWITCHES:
        if message.get(key, True) is not None and message.get(key, True) not in (True, False):
            if isinstance(message[key], int | float):
                return f"has {key} {message[key]!r}: a message is learned whole (1) or not at all (0)"
            return f"has {key} {message[key]!r} instead of true or false"
    return None


def _malformed(wrong: list[str]) -> Refusal:
    return Refusal(
        "messages-malformed",
        "this conversation cannot be rendered",
        found=wrong,
        expected='objects like {"role": "user", "content": "..."}; content may be text, a list of parts, or null '
        "beside tool_calls; loss, train and weight are true or false",
        fix="correct the row; halter inspect shows how rows are read",
    )


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in message.items() if key not in SWITCHES}
    plain.setdefault("content", None)
    return plain


def reasoning_in(messages: Sequence[dict[str, Any]], numbers: Collection[int]) -> int:
    """How many of the messages with these numbers reason before they speak."""
    return sum(reasoning.parts(messages[number]["content"]) is not None for number in numbers)


def unreasoned(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation without the assistant's reasoning."""
    return [
        {**m, "content": reasoning.without(m["content"])}
        if m["role"] == "assistant" and isinstance(m["content"], str)
        else m
        for m in messages
    ]


def spellings(messages: list[dict[str, Any]], source: str) -> Iterator[list[dict[str, Any]]]:
    """The conversation as templates of different habits want tool calls: most likely first.

    Arguments as an object or as JSON text (OpenAI's interface gives text, most templates want to print an object
    themselves), a missing content beside calls as none where the template asks for that, else as an empty text.
    """
    calling = [m for m in messages if m.get("tool_calls")]
    if not calling:
        yield messages
        return
    objects_first = "tojson" in source
    asks = re.search(r"\bis\s+(not\s+)?none\b", source, re.IGNORECASE) is not None
    empties: tuple[str | None, ...] = (None, "") if asks else ("", None)  # who does not ask may print "None"
    for empty in empties if any(m["content"] is None for m in calling) else (None,):
        for as_object in (objects_first, not objects_first):
            yield [_spelled(m, as_object, empty) if m.get("tool_calls") else m for m in messages]


def _spelled(message: dict[str, Any], as_object: bool, empty: str | None) -> dict[str, Any]:
    calls = [_with_arguments(call, as_object) for call in message["tool_calls"]]
    return {**message, "content": empty if message["content"] is None else message["content"], "tool_calls": calls}


def _with_arguments(call: dict[str, Any], as_object: bool) -> dict[str, Any]:
    holder = call["function"] if isinstance(call.get("function"), dict) else call
    arguments = holder.get("arguments")
    if as_object and isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            return call
        arguments = parsed if isinstance(parsed, dict) else arguments
    elif not as_object and isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    holder = {**holder, "arguments": arguments}
    return {**call, "function": holder} if isinstance(call.get("function"), dict) else holder


def input_joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For templates that know no ``input``: it follows the content after an empty line."""
    return [
        {**{k: v for k, v in m.items() if k != "input"}, "content": _with_input(m["content"], m["input"])}
        if isinstance(m["content"], str | list) and isinstance(m.get("input"), str) and m["input"].strip()
        else m
        for m in messages
    ]


def _with_input(content: Any, given: str) -> Any:
    beside = f"\n\n{given}"
    return content + beside if isinstance(content, str) else [*content, {"type": "text", "text": beside}]


PICTURE, PICTURES = {"type": "image"}, ("image", "image_url")
"""What a template sees of a picture, and what a part that is one may call itself."""


def parts_joined(messages: list[dict[str, Any]], name: str, sees: bool) -> list[dict[str, Any]]:
    """For built-in templates: text parts side by side become one, a content of text alone becomes a text, and of a
    picture stays that there is one. Refusal for any other part, and for pictures where the template ``sees`` none."""
    return [{**m, "content": _parts(m["content"], i, name, sees)} for i, m in enumerate(messages)]


def _parts(content: Any, number: int, name: str, sees: bool) -> Any:
    if not isinstance(content, list | tuple):
        return content
    joined: list[Any] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            if joined and isinstance(joined[-1], str):
                joined[-1] += part["text"]
            else:
                joined.append(part["text"])
        elif kind in PICTURES and sees:
            joined.append(PICTURE)
        else:
            takes = "text and pictures" if sees else "text only"
            way = "give those" if sees else "give text, a template that knows pictures (llama-4, llama-3.2-vision)"
            raise Refusal(
                "template-unsupported",
                f"the built-in template {name} takes {takes}",
                found=[f"message {number + 1}"],
                fix=f"{way}, or the checkpoint's own template (leave data.template out)",
            )
    if all(isinstance(part, str) for part in joined):
        return "".join(joined)
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in joined if part]


def pictured(messages: list[dict[str, Any]]) -> bool:
    """Whether there is a picture in any of them, as ``parts_joined`` leaves them."""
    return any(isinstance(m["content"], list) and PICTURE in m["content"] for m in messages)
