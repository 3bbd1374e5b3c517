"""Ways out for columns that nobody knows, made from the columns that are there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from halter.data.meaning import plain_name
from halter.data.misnamed import headless
from halter.data.turns import is_transcript

ASKING = ("instruction", "question", "query", "prompt", "problem", "input", "text", "source", "title", "sentence",
          "document", "context", "dialogue")  # fmt: skip
ANSWERING = ("output", "answer", "response", "completion", "solution", "target", "label", "summary", "reply",
             "translation", "chosen", "caption")  # fmt: skip
QUESTIONS = {"instruction", "question", "query", "prompt", "problem", "input", "context", "system"}
"""Columns that no answer stands in."""
TALKS = ("conversations", "messages", "conversation", "prompt", "history")
NO_TEXT = {"id", "idx", "index", "url", "license", "lang", "language", "split", "date", "hash", "model", "file"}
"""Words of columns that are about a row and not in it."""
MOST = 12
NUMBER = re.compile(r"wrong type of (\w+): (?:int|float)")
GUESSED = re.compile(r"'([^']+)' \(as (\w+)\?\)")


def columns_option(pairs: Mapping[str, str]) -> str:
    """data.columns as it is typed on the command line."""
    return "data.columns='{" + ", ".join(f"{ours}: {_quoted(theirs)}" for ours, theirs in pairs.items()) + "}'"


def roles_option(roles: Mapping[str, str]) -> str:
    """data.roles as it is typed on the command line."""
    return "data.roles='{" + ", ".join(f"{_quoted(theirs)}: {ours}" for theirs, ours in roles.items()) + "}'"


def roles_guessed(faults: Iterable[str]) -> dict[str, str]:
    """{speaker: the role that it may have} of faults as data.turns.unknown_roles words them."""
    return {name: role for fault in faults for name, role in GUESSED.findall(fault)}


def numbers_learned(faults: Iterable[str]) -> str:
    """How columns are learned that hold numbers where texts should stand; '' where none does."""
    columns = dict.fromkeys(found[1] for fault in faults if (found := NUMBER.fullmatch(fault)))
    if "content" in columns:
        return "write the numbers as texts, in double quotes"
    told = columns_option({name: f"{{{name}}}" for name in columns})
    return f"{told} learns numbers as they are written" if columns else ""


def _quoted(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and not name[0].isdigit() else f'"{name}"'


def for_unknown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A reading of these rows' own text columns, to be corrected by who knows them."""
    first = rows[0] if rows else {}
    if told := headless(list(first)):
        return told
    held = {plain_name(key): value for key, value in first.items()}
    if isinstance(held.get("turns"), list):
        return "turns holds questions and no answers to learn; halter generate --input asks them"
    if isinstance(held.get("choices"), list) and any(isinstance(one, Mapping) for one in held["choices"]):
        return "choices holds answers whose questions stand in another file; join the two by their ids"
    if held.keys() & {"image", "images", "pixel_values"}:
        return "pictures are not read yet; rows need a text to learn"
    texts = list(dict.fromkeys(key for row in rows[:MOST] for key, value in row.items() if isinstance(value, str)))
    texts = [key for key in texts if about(key)]
    if not texts:
        return "no column holds text: give rows with messages, with instruction and output, or with text"
    if all(plain_name(text) in QUESTIONS for text in texts):
        return (
            f"{' and '.join(texts)} holds what is asked, and no column what is answered: add a column of answers "
            "(output); without answers, halter generate --input asks such rows"
        )
    if len(texts) == 1:
        return f"to learn all of {texts[0]} as plain text, {columns_option({'text': texts[0]})}"
    answer = _named(texts, ANSWERING) or texts[-1]
    ask = _named([text for text in texts if text != answer], ASKING) or next(t for t in texts if t != answer)
    told = columns_option({"instruction": ask, "output": answer})
    return f"say what is asked and what is learned, perhaps {told}; or data.row_template"


def about(column: str) -> bool:
    """Whether a column may hold what is asked or answered, by its name."""
    return not NO_TEXT & set(plain_name(column).split("_"))


def _named(columns: Iterable[str], known: Sequence[str]) -> str:
    listed = list(columns)
    for word in known:
        for column in listed:
            if word in plain_name(column).split("_") or plain_name(column).rstrip("s") == word:
                return column
    return ""


def for_pairs(row: Mapping[str, Any], templated: bool = False) -> str:
    """How the chosen answers of this very row can be learned, in the template where one was asked for."""
    chosen = next((value for key, value in row.items() if plain_name(key) == "chosen"), None)
    names = {plain_name(key): key for key in row}
    column = names.get("chosen", "chosen")
    talk = next((names[key] for key in TALKS if isinstance(row.get(names.get(key, "")), list)), "")
    asks = next((names[key] for key in ASKING if isinstance(row.get(names.get(key, "")), str)), "")
    if isinstance(chosen, str) and is_transcript(chosen):
        return columns_option({"messages": column})
    if isinstance(chosen, list) and len(chosen) > 1:
        return columns_option({"messages": column})
    if talk:
        return columns_option({"prompt": talk, "completion": column})
    if asks and isinstance(chosen, str):
        raw = plain_name(asks) == "prompt" and not templated
        return columns_option({"prompt" if raw else "instruction": asks, "completion" if raw else "output": column})
    return columns_option({"messages" if isinstance(chosen, list) else "text": column})
