"""Data formats that people have, each a small function from a row to what it means; found by their columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from halter.errors import Refusal

Row = Mapping[str, Any]
_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system", "tool": "tool",
    "observation": "tool", "function_response": "tool", "ipython": "tool", "function_call": "function_call",
}  # fmt: skip


class BadRow(ValueError):
    """A row that does not hold what its format says; the text is the kind of fault."""


@dataclass(frozen=True)
class Canonical:
    """What a row means, in one of four ways: ``messages`` (with ``tools``), ``prompt`` and ``completion``, ``text``,
    ``tokens`` with ``labels``."""

    messages: list[dict[str, Any]] | None = None
    tools: list[Any] | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    tokens: list[int] | None = None
    labels: list[int] | None = None


def alpaca(row: Row) -> Canonical:
    """instruction, input?, output, system?, history? (pairs of earlier turns)."""
    messages: list[dict[str, Any]] = []
    if row.get("system"):
        messages.append({"role": "system", "content": _string(row, "system")})
    for turn in row.get("history") or ():
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    user = {"role": "user", "content": _string(row, "instruction")}
    if row.get("input"):
        user["input"] = _string(row, "input")
    return Canonical([*messages, user, {"role": "assistant", "content": _answer(row, "output")}])


def sharegpt(row: Row) -> Canonical:
    """conversations: [{from, value}], with tools and function_call / observation turns where there are some."""
    messages: list[dict[str, Any]] = []
    if row.get("system"):
        messages.append({"role": "system", "content": _string(row, "system")})
    for turn in _list(row, "conversations"):
        who = turn.get("from", turn.get("role"))
        role = _ROLES.get(str(who).lower())
        if role is None:
            raise BadRow(f"unknown speaker {who!r}")
        content = turn.get("value", turn.get("content"))
        if not isinstance(content, str):
            raise BadRow("a turn without text")
        message: dict[str, Any] = {"role": role, "content": content}
        if role == "function_call":
            message = {"role": "assistant", "content": "", "tool_calls": _calls(content)}
        if "loss" in turn:
            message["loss"] = turn["loss"]
        messages.append(message)
    return Canonical(_spoken(messages), _tools(row))


def openai(row: Row) -> Canonical:
    """messages: [{role, content, tool_calls?, loss?}], tools?"""
    messages = []
    for message in _list(row, "messages"):
        role = _ROLES.get(str(message.get("role")).lower())
        if role is None or role == "function_call":
            raise BadRow(f"unknown role {message.get('role')!r}")
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            content = ""
        if isinstance(content, list):  # content parts
            if any(part.get("type") != "text" for part in content):
                raise BadRow("content parts other than text")
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise BadRow("a message without text")
        messages.append({**message, "role": role, "content": content})
    return Canonical(_spoken(messages), _tools(row))


def prompt_completion(row: Row) -> Canonical:
    """prompt and completion, both strings or both lists of messages."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return openai({"messages": [*prompt, *completion], "tools": row.get("tools")})
    return Canonical(prompt=_string(row, "prompt", empty=True), completion=_answer(row, "completion"))


def text(row: Row) -> Canonical:
    """text: every token is learnt."""
    return Canonical(text=_answer(row, "text"))


def tokens(row: Row) -> Canonical:
    """input_ids and labels (-100 where nothing is learnt), or input_ids alone."""
    ids = _list(row, "input_ids")
    labels = row.get("labels")
    if not all(isinstance(i, int) for i in ids) or (labels is not None and len(labels) != len(ids)):
        raise BadRow("input_ids and labels must be lists of whole numbers of one length")
    return Canonical(tokens=list(ids), labels=None if labels is None else list(labels))


@dataclass(frozen=True)
class Format:
    """A format, the columns it needs, and those it also reads."""

    read: Callable[[Row], Canonical]
    needs: frozenset[str]
    also: frozenset[str] = field(default=frozenset())


FORMATS: dict[str, Format] = {
    "tokens": Format(tokens, frozenset({"input_ids"}), frozenset({"labels"})),
    "openai": Format(openai, frozenset({"messages"}), frozenset({"tools"})),
    "sharegpt": Format(sharegpt, frozenset({"conversations"}), frozenset({"tools", "system"})),
    "alpaca": Format(alpaca, frozenset({"instruction", "output"}), frozenset({"input", "system", "history"})),
    "prompt_completion": Format(prompt_completion, frozenset({"prompt", "completion"}), frozenset({"tools"})),
    "text": Format(text, frozenset({"text"})),
}
"""In the order in which they are looked for: the first whose needed columns are all there is the row's."""


def find(columns: set[str], where: str) -> str:
    """The name of the format with these columns. Refusal ``data-format`` names columns and formats."""
    for name, form in FORMATS.items():
        if form.needs <= columns:
            return name
    known = "; ".join(f"{name}: {', '.join(sorted(form.needs))}" for name, form in FORMATS.items())
    raise Refusal(
        "data-format",
        "these columns are no format that Halter knows",
        where=where,
        offenders=sorted(columns),
        expected=known,
        fix="name yours, e.g. data.columns: {prompt: question, completion: answer}, or give data.row_template",
    )


def _string(row: Row, key: str, empty: bool = False) -> str:
    value = row.get(key)
    if value is None:
        raise BadRow(f"missing key {key}")
    if not isinstance(value, str):
        raise BadRow(f"wrong type of {key}: {type(value).__name__}")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise BadRow(f"lone surrogate in {key}")
    return value


def _answer(row: Row, key: str) -> str:
    value = _string(row, key)
    if not value.strip():
        raise BadRow(f"empty {key}")
    return value


def _list(row: Row, key: str) -> list[Any]:
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise BadRow(f"{key} is no list, or empty")
    return value


def _spoken(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not any(m["role"] == "assistant" and (m["content"].strip() or m.get("tool_calls")) for m in messages):
        raise BadRow("no answer of the assistant")
    return messages


def _calls(content: str) -> list[dict[str, Any]]:
    try:
        calls = json.loads(content)
    except ValueError as error:
        raise BadRow("a function_call that is no JSON") from error
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise BadRow("a function_call without a name")
    return [{"type": "function", "function": {"name": c["name"], "arguments": c.get("arguments", {})}} for c in calls]


def _tools(row: Row) -> list[Any] | None:
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise BadRow("tools that are no JSON") from error
    return tools or None
