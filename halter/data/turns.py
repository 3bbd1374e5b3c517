"""Turns of a conversation, in the spellings that people have, to messages with role and content."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from halter.data.fault import BadRow as BadRow
from halter.data.json_text import loads, repeated
from halter.data.parts import content_of, text_of

CALL = "function_call"
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "bot": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "llm": "assistant",
    "prompter": "user",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
    CALL: CALL,
    "tool_call": CALL,
}
SWITCHES = ("loss", "train", "weight")
EXCHANGES = ("human", "user", "instruction", "question", "input"), ("assistant", "gpt", "bot", "answer", "output")
SPEAKERS = {"Human": "human", "User": "user", "Assistant": "assistant", "System": "system"}
SPEAKER = re.compile(r"(?:\A\s*|\n\n)(" + "|".join(SPEAKERS) + r"):[ \t]*")
THOUGHT = ("reasoning_content", "reasoning", "thinking")
"""Keys under which an answer's reasoning stands apart from it."""


UNANSWERED = "empty "
"""How the faults of rows begin whose answer is there and says nothing."""


def under_system(messages: Sequence[Mapping[str, Any]], system: str) -> list[dict[str, Any]]:
    """The conversation with this system message ahead of it; one that it has is replaced."""
    spoken = [dict(message) for message in messages if message.get("role") != "system"]
    return [{"role": "system", "content": system}, *spoken]


def is_nan(value: Any) -> bool:
    """Whether a value is a number that is none: what pandas writes where a table has a gap."""
    return isinstance(value, float) and math.isnan(value)


def optional(row: Mapping[str, Any], key: str) -> Any:
    """What a column holds that need not be there: None where it lacks, is null, or is a gap of pandas (NaN)."""
    value = row.get(key)
    return None if is_nan(value) else value


def no_value(row: Mapping[str, Any], key: str) -> str:
    """What is wrong with a column that does not hold what it should."""
    value = row.get(key)
    if key not in row:
        return f"missing key {key}"
    if value is None or is_nan(value):
        return f"{key} is {'null' if value is None else 'NaN'}"
    return f"wrong type of {key}: {type(value).__name__}"


def turn(said: Any) -> list[dict[str, Any]]:
    """One turn as messages: {from, value} or {role, content}, with tool_calls, a legacy function_call, or a speaker
    called function_call whose words are the call as JSON; a question with its answer, {human, assistant}, is two."""
    if not isinstance(said, Mapping):
        raise BadRow(f"wrong type of a turn: {type(said).__name__}")
    if "role" not in said and "from" not in said and (both := _exchange(said)):
        return both
    who = optional(said, "role") if optional(said, "role") is not None else optional(said, "from")
    role = ROLES.get(who.lower()) if isinstance(who, str) else None
    if role is None:
        raise BadRow("missing key role" if who is None else f"unknown role {who!r}")
    spoken = optional(said, "content") if optional(said, "content") is not None else optional(said, "value")
    keys = [key for key in said if key in (*SWITCHES, "name", "tool_call_id", "input")]
    extra = {key: said[key] for key in keys if optional(said, key) is not None}
    calls = optional(said, "tool_calls") or ([said[CALL]] if optional(said, CALL) else None)
    if spoken is None and not calls:
        raise BadRow(_unsaid(said))
    if role == CALL:
        return [{"role": "assistant", "content": None, "tool_calls": _calls(_words(spoken)), **extra}]
    if calls:
        extra["tool_calls"] = _calls(calls)
    words = _words(spoken, may_lack=bool(calls))
    thought = next((said[key] for key in THOUGHT if isinstance(said.get(key), str) and said[key].strip()), "")
    if role == "assistant" and thought and not isinstance(words, list) and "</think>" not in (words or ""):
        words = f"<think>\n{thought.strip()}\n</think>\n\n{words or ''}"
    return [{"role": role, "content": words, **extra}]


def _unsaid(said: Mapping[str, Any]) -> str:
    """What is wrong with a turn without words and without calls."""
    held = [said[key] for key in ("content", "value") if key in said]
    return no_value({"content": held[0]} if held else {}, "content")


def unknown_roles(guesses: Mapping[Any, str]) -> str:
    """The fault of {a role that is none: the one that it may be, or ''}."""
    named = [f"{who!r}{f' (as {role}?)' if role else ''}" for who, role in guesses.items()]
    return f"unknown role {', '.join(named)}"


def guessed(turns: Sequence[Any]) -> dict[str, str]:
    """{unknown role: the one that it may be}: who speaks first asks, and of two the other answers."""
    who = [
        said.get("role") if said.get("role") is not None else said.get("from")
        for said in turns
        if isinstance(said, Mapping)
    ]
    names = list(dict.fromkeys(name for name in who if isinstance(name, str)))
    known = {ROLES[name.lower()] for name in names if name.lower() in ROLES}
    free = [role for role in ("user", "assistant") if role not in known]
    strange = [name for name in names if name.lower() not in ROLES]
    return {name: free[min(n, len(free) - 1)] if free else "tool" for n, name in enumerate(strange)}


def _exchange(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of an object whose keys are the speakers."""
    ask, answer = (next((key for key in keys if isinstance(said.get(key), str)), None) for keys in EXCHANGES)
    if ask is None or answer is None:
        return []
    system = [{"role": "system", "content": said["system"]}] if isinstance(said.get("system"), str) else []
    system = system if system and system[0]["content"].strip() else []
    return [*system, {"role": "user", "content": said[ask]}, {"role": "assistant", "content": said[answer]}]


def is_transcript(text: str) -> bool:
    """Whether a text is a dialogue with its speakers' names written out, as hh-rlhf's."""
    return SPEAKER.match(text) is not None


def transcript(text: str) -> list[dict[str, Any]]:
    """The turns of a dialogue that is written out: Human: ... Assistant: ..."""
    pieces = SPEAKER.split(text)[1:]
    return [{"role": ROLES[SPEAKERS[who]], "content": said.strip()} for who, said in zip(pieces[::2], pieces[1::2])]


def answered(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same messages, if the assistant says something in them wherever it speaks and is to be learned."""
    spoken = [m for m in messages if m["role"] == "assistant"]
    if not spoken:
        raise BadRow("missing answer of the assistant")
    for number, message in enumerate(messages, 1):
        ignored = any(message.get(key) in (False, 0) for key in SWITCHES if key in message)
        if message["role"] == "assistant" and not ignored and not _says(message):
            raise BadRow(f"empty answer in message {number}")
    return messages


def listed(row: Mapping[str, Any], key: str) -> list[Any]:
    """A column that holds a list, or the JSON text of one (csv files have nothing else)."""
    value = row.get(key)
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json(value, key)
    if not isinstance(value, list):
        raise BadRow(no_value(row, key))
    if not value:
        raise BadRow(f"empty {key}")
    return value


def tools_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The tools of a row, each as {type: function, function: {...}}; also from JSON text and from bare functions."""
    tools = optional(row, "tools")
    if isinstance(tools, str):
        tools = _json(tools, "tools") if tools.strip() else None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("wrong type of tools: not a list of objects")
    return [{"type": "function", "function": tool} if "name" in tool and "type" not in tool else tool for tool in tools]


def _says(message: Mapping[str, Any]) -> bool:
    return bool(text_of(message["content"]).strip() or message.get("tool_calls"))


def _words(spoken: Any, may_lack: bool = False) -> Any:
    """What is said in a turn, a text or parts with pictures; None where it ``may_lack`` words and does."""
    if isinstance(spoken, list | tuple):
        return content_of(spoken)
    if spoken is None and may_lack:
        return None
    if not isinstance(spoken, str):
        raise BadRow(f"wrong type of content: {type(spoken).__name__}")
    return spoken


def _calls(calls: Any) -> list[dict[str, Any]]:
    """Calls as {type: function, function: {name, arguments}}, whichever way they were written down."""
    calls = _json(calls, CALL) if isinstance(calls, str) else calls
    made = []
    for call in calls if isinstance(calls, list) else [calls]:
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise BadRow("a tool call without a name")
        arguments = inner.get("arguments", inner.get("parameters"))
        function = {"name": inner["name"], "arguments": {} if arguments is None else arguments}
        made.append({**({"id": call["id"]} if call.get("id") else {}), "type": "function", "function": function})
    return made


def _json(text: str, key: str) -> Any:
    try:
        value, twice = loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"wrong type of {key}: not JSON") from error
    if twice:
        raise BadRow(f"{key}: {repeated(value)}")
    return value
