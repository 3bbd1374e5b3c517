"""Data formats that people have, each a small function from a row to what it means; found by their columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from halter.data.turns import BadRow, answered, listed, tools_of, turn
from halter.errors import Refusal

Row = Mapping[str, Any]


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
    messages = _system(row)
    for pair in listed(row, "history") if row.get("history") else ():
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(said, str) for said in pair)):
            raise BadRow("history is no list of [question, answer]")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    user = {"role": "user", "content": _string(row, "instruction")}
    if row.get("input") is not None and _string(row, "input").strip():
        user["input"] = row["input"]
    return Canonical([*messages, user, {"role": "assistant", "content": _answer(row, "output")}])


def sharegpt(row: Row) -> Canonical:
    """conversations: [{from, value}], with tools and function_call / observation turns where there are some."""
    return _chat(row, "conversations")


def openai(row: Row) -> Canonical:
    """messages: [{role, content, tool_calls?, loss?}], tools?"""
    return _chat(row, "messages")


def prompt_completion(row: Row) -> Canonical:
    """prompt and completion, both strings or both lists of messages, of which the completion alone is learned."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        asked = [{**said, "loss": False} if isinstance(said, Mapping) else said for said in prompt]
        return openai({**row, "messages": [*asked, *completion]})
    return Canonical(prompt=_string(row, "prompt"), completion=_answer(row, "completion"))


def text(row: Row) -> Canonical:
    """text: every token is learnt."""
    return Canonical(text=_answer(row, "text"))


def tokens(row: Row) -> Canonical:
    """input_ids, labels? (the token itself, or -100 where nothing is learnt), attention_mask? (0: padding)."""
    ids = listed(row, "input_ids")
    labels = listed(row, "labels") if row.get("labels") is not None else None
    mask = listed(row, "attention_mask") if row.get("attention_mask") is not None else [1] * len(ids)
    if not all(type(i) is int for i in (*ids, *(labels or ()))):
        raise BadRow("wrong type: input_ids and labels are lists of whole numbers")
    if len(mask) != len(ids) or (labels is not None and len(labels) != len(ids)):
        raise BadRow("input_ids, labels and attention_mask differ in length")
    if labels is not None and any(label not in (-100, i) for label, i, real in zip(labels, ids, mask) if real):
        raise BadRow("labels that are neither -100 nor the token at their own place (are they shifted?)")
    kept = [place for place, real in enumerate(mask) if real]
    return Canonical(
        tokens=[ids[place] for place in kept], labels=None if labels is None else [labels[place] for place in kept]
    )


@dataclass(frozen=True)
class Format:
    """A format, the columns it needs, and those it also reads."""

    read: Callable[[Row], Canonical]
    needs: frozenset[str]
    also: frozenset[str] = field(default=frozenset())


FORMATS: dict[str, Format] = {
    "tokens": Format(tokens, frozenset({"input_ids"}), frozenset({"labels", "attention_mask"})),
    "openai": Format(openai, frozenset({"messages"}), frozenset({"tools", "system"})),
    "sharegpt": Format(sharegpt, frozenset({"conversations"}), frozenset({"tools", "system"})),
    "alpaca": Format(alpaca, frozenset({"instruction", "output"}), frozenset({"input", "system", "history"})),
    "prompt_completion": Format(prompt_completion, frozenset({"prompt", "completion"}), frozenset({"tools"})),
    "text": Format(text, frozenset({"text"})),
}
WEAKEST = "text"
"""Data sets often carry a rendered copy of their rows under this name."""
PREFERENCE = frozenset({"chosen", "rejected"})
MEND = "name yours, e.g. data.columns: {instruction: question, output: answer}, or give data.row_template"


def find(columns: Set[str], where: str, chosen: Set[str] = frozenset()) -> str:
    """The name of the one format that has these columns; those that need a ``chosen`` one (named in data.columns) go
    before others. Refusals ``data-format``, ``data-ambiguous``, ``data-preference`` name columns and formats."""
    found = [name for name, form in FORMATS.items() if form.needs <= columns]
    found = [name for name in found if FORMATS[name].needs & chosen] or found
    if len(found) > 1:
        found = [name for name in found if name != WEAKEST]
    if columns >= PREFERENCE and not chosen:
        raise Refusal(
            "data-preference",
            "these rows are pairs of a chosen and a rejected answer, which are not for learning from answers",
            where=where,
            offenders=sorted(columns),
            fix="to learn the chosen answers all the same, data.columns: {prompt: prompt, completion: chosen}",
        )
    if len(found) == 1:
        return found[0]
    known = "; ".join(f"{name}: {', '.join(sorted(form.needs))}" for name, form in FORMATS.items())
    if found:
        raise Refusal(
            "data-ambiguous",
            f"these columns are of several formats: {', '.join(found)}",
            where=where,
            offenders=sorted(columns),
            expected=known,
            fix=f"say which to use, e.g. data.columns: {{{min(FORMATS[found[0]].needs)}: "
            f"{min(FORMATS[found[0]].needs)}}}",
        )
    what = "these columns are no format that Halter knows"
    raise Refusal("data-format", what, where=where, offenders=sorted(columns), expected=known, fix=MEND)


def _chat(row: Row, column: str) -> Canonical:
    messages = [message for said in listed(row, column) for message in turn(said)]
    if row.get("system") and not any(message["role"] == "system" for message in messages):
        messages = _system(row) + messages
    return Canonical(answered(messages), tools_of(row))


def _system(row: Row) -> list[dict[str, Any]]:
    return [{"role": "system", "content": _string(row, "system")}] if row.get("system") else []


def _string(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        raise BadRow(f"missing key {key}")
    if not isinstance(value, str):
        raise BadRow(f"wrong type of {key}: {type(value).__name__}")
    return value


def _answer(row: Row, key: str) -> str:
    value = _string(row, key)
    if not value.strip():
        raise BadRow(f"empty {key}")
    return value
