"""Ways out for columns that nobody knows, made from the columns that are there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from halter.data import tongues
from halter.data.meaning import plain_name
from halter.data.misnamed import headless
from halter.data.turns import is_transcript

ASKING = (
    "instruction",
    "question",
    "query",
    "prompt",
    "problem",
    "input",
    "text",
    "source",
    "title",
    "sentence",
    "document",
    "context",
    "dialogue",
    *tongues.ASKING,
)
ANSWERING = (
    "output",
    "answer",
    "response",
    "completion",
    "solution",
    "target",
    "label",
    "summary",
    "reply",
    "translation",
    "chosen",
    "caption",
    *tongues.ANSWERING,
)
QUESTIONS = {"instruction", "question", "query", "prompt", "problem", "input", "context", "system", *tongues.ASKING}
"""Columns that no answer stands in."""
TALKS = ("conversations", "messages", "conversation", "prompt", "history")
NO_TEXT = {"id", "idx", "index", "url", "license", "lang", "language", "split", "date", "hash", "model", "file"}
NO_TEXT |= tongues.NO_TEXT
"""Words of columns that are about a row and not in it."""
MOST, FEWEST_ALIKE = 12, 3
"""Rows that are looked at, and those from which on a column that says the same in all of them says nothing."""
MARK = re.compile(r"[\w:/.#-]*\d[\w:/.#-]*")
"""What an id looks like."""
LISTS = re.compile(r"wrong type of (output|completion|response|answer): list")
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
    faults = list(faults)
    if lists := next(filter(None, map(LISTS.fullmatch, faults)), None):
        return f"{lists[1]} holds lists, and one text is learned: {first_of('COLUMN')}"
    columns = dict.fromkeys(found[1] for fault in faults if (found := NUMBER.fullmatch(fault)))
    if "content" in columns:
        return "write the numbers as texts, in double quotes"
    told = columns_option({name: f"{{{name}}}" for name in columns})
    return f"{told} learns numbers as they are written" if columns else ""


def _quoted(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and not name[0].isdigit() else f'"{name}"'


TRAINED, HELD_OUT = ("train", "training"), ("validation", "valid", "val", "dev", "eval", "test")
"""Names of the parts of a data set."""


def _splits(row: Mapping[str, Any]) -> str:
    """What to do about one object that holds several lists of rows, each under a name of its own."""
    lists = [key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], Mapping)]
    if len(lists) < 2 or len(lists) < len(row) - 2:
        return ""
    train = next((key for key in lists if plain_name(key) in TRAINED), "")
    held = next((key for key in lists if plain_name(key) in HELD_OUT), "")
    what = f"{', '.join(lists)} are lists of rows, and one file holds one: write each into a file of its own"
    if train and held:
        return f"{what}, then --data {train}.json --validation {held}.json"
    return f"{what}, then " + " ".join(f"--data {key}.json" for key in lists)


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
    if told := _splits(first):
        return told
    if "pixel_values" in held:
        return "pixel_values were prepared for one model; give the pictures themselves, in a column images"
    texts = list(dict.fromkeys(key for row in rows[:MOST] for key, value in row.items() if isinstance(value, str)))
    texts = [key for key in texts if about(key)]
    texts = [key for key in texts if not _about_rows(key, [row.get(key) for row in rows[:MOST]])] or texts
    if told := _listed_answers(rows):
        return told
    if not texts:
        return "no column holds text: give rows with messages, with instruction and output, or with text"
    if all(plain_name(text) in QUESTIONS for text in texts):
        return (
            f"{' and '.join(texts)} holds what is asked, and no column what is answered: add a column of answers "
            "(output); without answers, halter generate --input asks such rows"
        )
    if len(texts) == 1:
        return f"to learn all of {texts[0]} as plain text, {columns_option({'text': texts[0]})}"
    answer = _named(texts, ANSWERING)
    if not answer and len(texts) == 2:
        answer = texts[0] if _named(texts[1:], sorted(QUESTIONS)) else texts[1]
    ask = _named([text for text in texts if text != answer], ASKING)
    rest = [text for text in texts if text not in (answer, ask)]
    if not ask and len(rest) == 1:
        ask, rest = rest[0], []
    if not answer and ask and len(rest) == 1:
        answer = rest[0]
    if ask and answer:
        told = columns_option({"instruction": ask, "output": answer})
        return f"say what is asked and what is learned, perhaps {told}; or data.row_template"
    told = columns_option({"instruction": ask or "ASKED", "output": answer or "ANSWER"})
    return f"say what is asked and what is learned: {told}, in capitals one of {', '.join(rest)}"


def _about_rows(name: str, values: Sequence[Any]) -> bool:
    """Whether a column is about rows and not in them: one value in all of them, or marks, where its name does not say
    that it is asked or answered."""
    given = [value for value in values if isinstance(value, str)]
    if len(given) < FEWEST_ALIKE or _named([name], (*ASKING, *ANSWERING)):
        return False
    return len(set(given)) == 1 or all(map(MARK.fullmatch, given))


def _listed_answers(rows: Sequence[Mapping[str, Any]]) -> str:
    """What to do about a column of answers that holds a list of texts in each row; '' where none does."""
    for name, value in (rows[0] if rows else {}).items():
        texts = isinstance(value, list) and value and all(isinstance(one, str) for one in value)
        if texts and _named([name], ANSWERING):
            return f"{name} holds lists, and one text is learned: {first_of(name)}"
    return ""


def first_of(column: str) -> str:
    """How the first text of each list in a column is made an answer."""
    made = f"{{**r, 'output': r[{column!r}][0]}}"
    turn = f"import json, sys; [print(json.dumps({made})) for r in map(json.loads, sys.stdin)]"
    return f'python -c "{turn}" < FILE.jsonl > first.jsonl takes the first of each as output'


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
