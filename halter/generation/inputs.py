"""Prompts from a file: whatever rows people have."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halter.data.json_text import loads, repeated
from halter.data.sources import Fault, read_source
from halter.errors import Refusal
from halter.files.reading import lines_of, read_text
from halter.generation.prompts import Prompt


@dataclass(frozen=True)
class Asked:
    """One row of an input file and the prompt it holds."""

    origin: str
    row: Mapping[str, Any]
    prompt: Prompt
    later: tuple[str, ...] = ()
    """What is asked after the answer, turn by turn, each with the answers before it (MT-Bench's ``turns``)."""


STANDARD_INPUT = "-"
REPEATED = "a key twice"
"""The one column of a line that has a key twice: there is no prompt in it."""


def read_prompts(path: str, columns: Mapping[str, str] | None = None) -> list[Asked]:
    """The prompts of a file: lines of a .txt file, else rows (jsonl, json, csv, parquet; see ``prompt_of``).

    ``-`` is standard input, one prompt a line, which may be a row in JSON. ``columns`` {ours: theirs} says where a row
    has what ``prompt_of`` looks for. Refusals: ``input-rows`` names every row that cannot be used, ``input-empty`` a
    file without any.
    """
    asked: list[Asked] = []
    faults: list[str] = []
    if path == STANDARD_INPUT or Path(path).suffix.lower() == ".txt":
        lines = lines_of(sys.stdin.read() if path == STANDARD_INPUT else read_text(path))
        name = "standard input" if path == STANDARD_INPUT else path
        rows = [(f"{name}:{number}", _row_of(line, path)) for number, line in enumerate(lines, 1) if line.strip()]
        held = [(origin, row, _prompt(row, columns)) for origin, row in rows]
        asked = [_asked(origin, row, said) for origin, row, said in held if said is not None]
        faults = [": ".join([origin, *row.values()] if REPEATED in row else [origin]) for origin, row, said in held
                  if said is None]  # fmt: skip
    else:
        for found in read_source(path):
            prompt = None if isinstance(found, Fault) else _prompt(found[1], columns)
            if isinstance(found, Fault):
                faults.append(str(found))
            elif prompt is None:
                faults.append(f"{found[0]}: columns {', '.join(found[1])}")
            else:
                asked.append(_asked(found[0], found[1], prompt))
    if faults:
        raise Refusal(
            "input-rows",
            "these rows hold no prompt",
            found=faults,
            expected="prompt, messages, instruction (with input), question, turns, or text",
            fix="say where it is, e.g. --columns '{prompt: COLUMN}'",
        )
    if not asked:
        fix = "write prompts into it: text one a line (.txt), or rows with a prompt (.jsonl)"
        raise Refusal("input-empty", "there is no prompt in this file", where=path, fix=fix)
    return asked


def _row_of(line: str, path: str) -> Mapping[str, Any]:
    """A line as a row: its own where standard input has JSON, else the line is the prompt."""
    if path == STANDARD_INPUT and line.lstrip().startswith("{"):
        with suppress(ValueError):
            row, twice = loads(line)
            if isinstance(row, dict):
                return {REPEATED: repeated(row)} if twice else row
    return {"prompt": line}


def _prompt(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> Prompt | None:
    if not columns:
        return prompt_of(row)
    return prompt_of({ours: row[theirs] for ours, theirs in columns.items() if theirs in row})


def _asked(origin: str, row: Mapping[str, Any], prompt: Prompt) -> Asked:
    turns = row.get("turns") if isinstance(prompt, list) and prompt_of({**row, "turns": None}) is None else None
    return Asked(origin, row, prompt, tuple(turns[1:]) if turns else ())


def prompt_of(row: Mapping[str, Any]) -> Prompt | None:
    """What a row asks: ``messages`` up to the last one that is not the assistant's, ``prompt``, ``instruction`` with
    ``input`` (and ``system``), ``question``, ``text``, or the first of several ``turns``; None where it has none of
    them."""
    messages = row.get("messages")
    if isinstance(row.get("prompt"), list):
        messages = row["prompt"]
    if isinstance(messages, list):
        turns = list(messages)
        while turns and turns[-1].get("role") == "assistant":
            turns.pop()
        return turns or None
    if isinstance(row.get("instruction"), str):
        turn = {"role": "user", "content": row["instruction"]}
        turn |= {"input": row["input"]} if row.get("input") else {}
        return [*([{"role": "system", "content": row["system"]}] if row.get("system") else []), turn]
    found = next((row[key] for key in ("prompt", "question", "text") if isinstance(row.get(key), str)), None)
    asked = row.get("turns")
    if found is None and isinstance(asked, list) and asked and all(isinstance(turn, str) for turn in asked):
        return [{"role": "user", "content": asked[0]}]
    return found


def asks_nothing(prompt: Prompt) -> bool:
    """Whether a prompt has no words: an empty text, or messages that say nothing but the system's."""
    if isinstance(prompt, str):
        return not prompt.strip()
    turns = [turn for turn in prompt if isinstance(turn, Mapping)] if isinstance(prompt, Sequence) else []
    said = (turn.get(key) for turn in turns if turn.get("role") != "system" for key in ("content", "input"))
    return bool(turns) and not any(value.strip() if isinstance(value, str) else value for value in said)
