"""Prompts from a file: whatever rows people have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def read_prompts(path: str) -> list[Asked]:
    """The prompts of a file: lines of a .txt file, else rows (jsonl, json, csv, parquet; see ``prompt_of``).

    Refusal ``input-rows`` names every row that cannot be used, ``input-empty`` a file without any.
    """
    asked: list[Asked] = []
    faults: list[str] = []
    if Path(path).suffix.lower() == ".txt":
        lines = enumerate(lines_of(read_text(path)), 1)
        asked = [Asked(f"{path}:{number}", {"prompt": line}, line) for number, line in lines if line.strip()]
    else:
        for found in read_source(path):
            prompt = None if isinstance(found, Fault) else prompt_of(found[1])
            if isinstance(found, Fault):
                faults.append(str(found))
            elif prompt is None:
                faults.append(f"{found[0]}: columns {', '.join(found[1])}")
            else:
                asked.append(Asked(found[0], found[1], prompt))
    if faults:
        raise Refusal(
            "input-rows",
            "these rows hold no prompt",
            offenders=faults,
            expected="prompt, messages, instruction (with input), question, or text",
        )
    if not asked:
        raise Refusal("input-empty", "there is no prompt in this file", where=path)
    return asked


def prompt_of(row: Mapping[str, Any]) -> Prompt | None:
    """What a row asks: ``messages`` up to the last one that is not the assistant's, ``prompt``, ``instruction`` with
    ``input`` (and ``system``), ``question`` or ``text``; None where it has none of them."""
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
    return next((row[key] for key in ("prompt", "question", "text") if isinstance(row.get(key), str)), None)
