"""Data formats that people have, each a small function from a row to what it means; found by their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from halter.data.advice import columns_option, for_pairs, for_unknown
from halter.data.layouts import SYSTEM, layouts
from halter.data.meaning import Canonical, Format, Row
from halter.data.turns import (
    BadRow,
    answered,
    guessed,
    is_transcript,
    listed,
    no_value,
    optional,
    tools_of,
    transcript,
    turn,
    unknown_roles,
)
from halter.errors import Refusal


def alpaca(row: Row) -> Canonical:
    """instruction, input?, output, system?, history? (pairs of earlier turns)."""
    return Canonical([*instructed(row), {"role": "assistant", "content": _answer(row, "output")}])


def instructed(row: Row) -> list[dict[str, Any]]:
    """The messages of an instruction, up to its answer."""
    messages = _system(row)
    for pair in listed(row, "history") if optional(row, "history") else ():
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(said, str) for said in pair)):
            raise BadRow("history is no list of [question, answer]")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    user = {"role": "user", "content": _string(row, "instruction")}
    if optional(row, "input") is not None and _string(row, "input").strip():
        user["input"] = row["input"]
    return [*messages, user]


def sharegpt(row: Row) -> Canonical:
    """conversations: [{from, value}], with tools and function_call / observation turns where there are some."""
    return _chat(row, "conversations")


def openai(row: Row) -> Canonical:
    """messages: [{role, content, tool_calls?, loss?}], tools?"""
    return _chat(row, "messages")


def prompt_completion(row: Row) -> Canonical:
    """prompt and completion, strings or messages; of messages too the completion alone is learned."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if not (isinstance(prompt, list | Mapping) or isinstance(completion, list | Mapping)):
        return Canonical(prompt=_string(row, "prompt"), completion=_answer(row, "completion"))
    asked = [{"role": "user", "content": said} if isinstance(said, str) else said for said in _turns(prompt)]
    told = [{"role": "assistant", "content": said} if isinstance(said, str) else said for said in _turns(completion)]
    asked = [{**said, "loss": False} if isinstance(said, Mapping) else said for said in asked]
    return openai({**row, "messages": [*asked, *told]})


def text(row: Row) -> Canonical:
    """text: every token is learnt."""
    return Canonical(text=_answer(row, "text"))


def tokens(row: Row) -> Canonical:
    """input_ids, labels? (the token itself, or -100 where nothing is learnt), attention_mask? (0: padding)."""
    ids = listed(row, "input_ids")
    labels = listed(row, "labels") if optional(row, "labels") is not None else None
    mask = listed(row, "attention_mask") if optional(row, "attention_mask") is not None else [1] * len(ids)
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


FORMATS: dict[str, Format] = {
    "tokens": Format(tokens, frozenset({"input_ids"}), frozenset({"labels", "attention_mask"})),
    "openai": Format(openai, frozenset({"messages"}), frozenset({"tools", *SYSTEM})),
    "sharegpt": Format(sharegpt, frozenset({"conversations"}), frozenset({"tools", *SYSTEM})),
    "alpaca": Format(alpaca, frozenset({"instruction", "output"}), frozenset({"input", *SYSTEM, "history"})),
    "prompt_completion": Format(prompt_completion, frozenset({"prompt", "completion"}), frozenset({"tools"})),
    "text": Format(text, frozenset({"text"})),
}
ALSO = frozenset({"tools", *SYSTEM})
WEAKEST = "text"
"""Data sets often carry a rendered copy of their rows under this name."""
PREFERENCE = frozenset({"chosen", "rejected"})
TALKS = ("messages", "conversations", "conversation", "dialog", "dialogue", "dialogs", "chat", "turns")
"""Columns that hold a conversation where their value is a list of turns."""
TALK = "conversations in {}; learned: the assistant's turns"
READINGS = {
    "tokens": "token ids; learned: labels, or all of input_ids where there are none",
    "openai": TALK.format("messages"),
    "sharegpt": TALK.format("conversations"),
    "alpaca": "asked: instruction, input; learned: output",
    "prompt_completion": "asked: prompt; learned: completion",
    "text": "plain text, no chat template; learned: all of text",
}


def find(columns: Set[str], where: str, chosen: Set[str] = frozenset()) -> str:
    """The name of the one format of FORMATS that has these columns; those that need a ``chosen`` one (named in
    data.columns) go before others. '' where none has. Refusal ``data-ambiguous``."""
    found = [name for name, form in FORMATS.items() if form.needs <= columns]
    found = [name for name in found if FORMATS[name].needs & chosen] or found
    if len(found) > 1:
        found = [name for name in found if name != WEAKEST]
    if len(found) > 1:
        raise Refusal(
            "data-ambiguous",
            f"these columns are of several formats: {', '.join(found)}",
            where=where,
            found=sorted(columns),
            expected="one of them",
            fix="say which to use: "
            + " or ".join(columns_option({min(FORMATS[name].needs): min(FORMATS[name].needs)}) for name in found),
        )
    return found[0] if found else ""


def recognise(
    rows: Sequence[Row],
    where: str,
    chosen: Set[str] = frozenset(),
    spelt: Sequence[Row] | None = None,
    templated: bool = False,
) -> tuple[str, Format]:
    """(reading in words, format) of a file by the first of its rows whose columns say so.

    Columns are as plain_name has them, and in ``spelt`` as the file has them. ``templated``: a template was asked for,
    and a way out keeps it. Refusals ``data-format``, ``data-ambiguous``, ``data-preference`` name the columns and a
    way out.
    """
    spelt = rows if spelt is None else spelt
    for row, raw in zip(rows, spelt):
        columns = set(row)
        if columns >= PREFERENCE and not chosen:
            raise Refusal(
                "data-preference",
                "these rows are pairs of a chosen and a rejected answer; training here learns single answers",
                where=where,
                found=sorted(raw),
                fix=f"to learn the chosen answers alone, {for_pairs(raw, templated)}",
            )
        name = find(columns, where, chosen)
        if name and name != WEAKEST or (name and name in chosen):
            return _told(name, row), FORMATS[name]
        talk = next((column for column in TALKS if is_talk(row.get(column), column)), None)
        if talk is not None:
            return TALK.format(talk), Format(Talk(talk), frozenset({talk}), ALSO)
        other = next(layouts(columns, row), None)
        if other is not None:
            return other
        if name:
            return READINGS[name], FORMATS[name]
    there = sorted({key for row in spelt for key in row})
    known = "messages; conversations; instruction, output; question, answer; prompt, completion; text; and the like"
    what = "nothing says what is asked and what is learned in these columns"
    raise Refusal("data-format", what, where=where, found=there, expected=known, fix=for_unknown(spelt))


def is_talk(value: Any, column: str) -> bool:
    """Whether a column of this name holds a conversation in this value."""
    if not isinstance(value, list) or not value:
        return False
    # A list of texts is a dialogue, except mt_bench's turns: questions that follow one another.
    return isinstance(value[0], Mapping) or (column != "turns" and len(value) > 1 and isinstance(value[0], str))


def _told(name: str, row: Row) -> str:
    if name == "alpaca" and "input" not in row:
        return "asked: instruction; learned: output"
    if name == "prompt_completion" and isinstance(row["prompt"], str) and isinstance(row["completion"], str):
        return f"{READINGS[name]}; continued as plain text, no chat template"
    return READINGS[name]


@dataclass(frozen=True)
class Talk:
    """A conversation in a column of any name."""

    column: str

    def __call__(self, row: Row) -> Canonical:
        return _chat(row, self.column)


def _turns(value: Any) -> list[Any]:
    """The turns of a value that is a conversation, or one turn of it."""
    if isinstance(value, str) and is_transcript(value):
        return list(transcript(value))
    return value if isinstance(value, list) else [value]


def conversation(row: Row, column: str) -> list[dict[str, Any]]:
    """The messages of a conversation, in whatever spelling its column has it, after the row's system message."""
    value = row.get(column)
    turns = transcript(value) if isinstance(value, str) and is_transcript(value) else listed(row, column)
    if len(turns) > 1 and all(isinstance(said, str) for said in turns):  # in turn, from the user on
        turns = [{"role": ("user", "assistant")[n % 2], "content": said} for n, said in enumerate(turns)]
    if strange := guessed(turns):
        raise BadRow(unknown_roles(strange))
    messages = [message for said in turns for message in turn(said)]
    if _system(row) and not any(message["role"] == "system" for message in messages):
        messages = _system(row) + messages
    return messages


def _chat(row: Row, column: str) -> Canonical:
    return Canonical(answered(conversation(row, column)), tools_of(row))


def _system(row: Row) -> list[dict[str, Any]]:
    column = next((name for name in SYSTEM if optional(row, name)), None)
    return [] if column is None else [{"role": "system", "content": _string(row, column)}]


def _string(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise BadRow(no_value(row, key))
    return value


def _answer(row: Row, key: str) -> str:
    value = _string(row, key)
    if not value.strip():
        raise BadRow(f"empty {key}")
    return value
