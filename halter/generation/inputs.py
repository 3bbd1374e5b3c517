"""Prompts from a file: whatever rows people have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from halter.data.advice import roles_guessed, roles_option
from halter.data.columns import LEARNED, asked_row, refuse_absent
from halter.data.formats import TALKS, conversation, instructed, is_talk
from halter.data.json_text import loads, repeated
from halter.data.layouts import layouts
from halter.data.load import respelt_way
from halter.data.misnamed import headless
from halter.data.options import DataOptions
from halter.data.parts import has_pictures
from halter.data.row_files import as_utf8
from halter.data.sources import STANDARD_INPUT, Fault, read_source, refuse_several, standard_input
from halter.data.turns import ROLES, BadRow, is_transcript, listed, tools_of
from halter.errors import Refusal
from halter.files.reading import lines_of, read_text
from halter.generation.prompts import EncodedPrompt, Prompt
from halter.generation.seeing import of_row
from halter.telling import tell_once


@dataclass(frozen=True)
class PromptRow:
    """One row of an input file and the prompt it holds."""

    origin: str
    row: Mapping[str, Any]
    prompt: Prompt
    later: tuple[str, ...] = ()
    """What is asked after the answer, turn by turn, each with the answers before it (MT-Bench's ``turns``)."""
    tools: list[Any] | None = None
    """The row's tools, for the template; only a conversation has a place for them."""

    @property
    def pictured(self) -> bool:
        """Whether it asks about pictures."""
        turns = [] if isinstance(self.prompt, str | EncodedPrompt) else self.prompt
        return any(isinstance(turn, Mapping) and has_pictures(turn.get("content")) for turn in turns)


ASKING = ("prompt", "instruction", "question", "text")
"""Columns whose words ask."""
SPELT = 0.85
"""How near a column's name must be to one of them: quesiton and promts are, prompt_id is not."""
PICTURES_WAY = "write <image> in the text where each picture stands, and name pictures that are there"
REQUESTS = ("body", "params")
"""Where a line of a file of batches has its request: OpenAI's, Anthropic's."""
NAMED_TALKS = ("messages", "conversations")
"""Columns that hold a conversation also where it is written as text."""


def read_prompts(path: str, options: DataOptions | None = None, named: bool = False) -> list[PromptRow]:
    """The prompts of a file: lines of a .txt file, else rows (jsonl, json, csv, parquet; see ``prompt_of``).

    ``-`` is standard input, one prompt a line, which may be a row in JSON. ``options`` say by columns, roles and
    row_template how rows are read, as in training; columns that are ``named`` for these very rows must be there, but
    for those of answers. Refusals: ``data-columns``; ``input-rows`` names every row that cannot be used,
    ``input-empty`` a file without any.
    """
    refuse_several(path, "--input")
    options = options or DataOptions()
    try:
        found = _found(path)
    except Refusal as refusal:  # which takes rows for training's
        refusal.fix = refusal.fix.replace("--data ", "--input ")
        refusal.args = (refusal.paragraph(),)
        raise
    if named and (rows := [one[1] for one in found if not isinstance(one, Fault)]):
        asking = {ours: theirs for ours, theirs in options.columns.items() if ours not in LEARNED}
        refuse_absent([_envelope(row) for row in rows], replace(options, columns=asking), path)
    asked: list[PromptRow] = []
    faults: list[str] = []
    unread: list[Fault] = []
    unnamed = ""
    for one in found:
        if isinstance(one, Fault):
            unread.append(one)
            faults.append(str(one))
            continue
        origin, row = one
        inner = _envelope(row)
        try:
            prompt = prompt_of(inner, options)
            if prompt is not None:
                prompt = of_row(prompt, asked_row(inner, options)[0], origin, options)
        except BadRow as fault:
            faults.append(f"{origin}: {fault}")
            continue
        if prompt is None:
            faults.append(f"{origin}: columns {', '.join(row)}")
            unnamed = headless(list(row))
        else:
            asked.append(replace(_asked(origin, inner, prompt, options), row=row))
    if unread:
        what = "these lines cannot be read" + (", or hold no prompt" if len(faults) > len(unread) else "")
        raise Refusal("input-rows", what, found=faults, fix=_readable(unread, path))
    if faults:
        roles = roles_guessed(faults)
        way = f"say who speaks: {roles_option(roles)}" if roles else ""
        way = way or (PICTURES_WAY if all("picture" in fault for fault in faults) else "")
        raise Refusal(
            "input-rows",
            "these rows hold no prompt",
            found=faults,
            expected="prompt, messages, conversations, instruction (with input), question, turns, or text",
            fix=way or unnamed or "say where it is, e.g. --columns '{prompt: COLUMN}'",
        )
    if not asked:
        fix = "write prompts into it: text one a line (.txt), or rows with a prompt (.jsonl)"
        raise Refusal("input-empty", "there is no prompt in this file", where=path, fix=fix)
    for name, near in misspelt(asked[0].row).items():
        tell_once(f"note: {path}: column {name} is not asked; did you mean {near}? --columns '{{{near}: {name}}}'")
    return asked


def misspelt(row: Mapping[str, Any]) -> dict[str, str]:
    """{a column that nobody asks: the one that asks and is spelt nearly so, which the row has not}."""
    absent = [name for name in (*ASKING, *NAMED_TALKS) if name not in row]
    near = {name: get_close_matches(str(name).lower(), absent, 1, SPELT) for name in row if name not in ASKING}
    return {name: found[0] for name, found in near.items() if found and found[0] != name}


def _found(path: str) -> list[tuple[str, Mapping[str, Any]] | Fault]:
    """The rows of a file, and the faults in the place of others."""
    if path != STANDARD_INPUT and (Path(path).suffix.lower() != ".txt" or not Path(path).is_file()):
        return list(read_source(path))
    lines = lines_of(standard_input() if path == STANDARD_INPUT else read_text(path))
    name = "standard input" if path == STANDARD_INPUT else path
    return [_line(f"{name}:{number}", line, path) for number, line in enumerate(lines, 1) if line.strip()]


def _envelope(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is asked within a line of a file of batches as OpenAI and Anthropic have them; other rows as they are."""
    inner = [row[name] for name in REQUESTS if isinstance(row.get(name), Mapping)] if "custom_id" in row else []
    return inner[0] if len(inner) == 1 else row


def _readable(unread: Sequence[Fault], path: str) -> str:
    """What makes lines readable that are not."""
    if any(fault.kind.startswith("invalid UTF-8") for fault in unread) and (way := as_utf8(Path(path))):
        return way
    return respelt_way(unread) or "correct them: a line is one JSON object, with its words in double quotes"


def _line(origin: str, line: str, path: str) -> tuple[str, Mapping[str, Any]] | Fault:
    """A line as a row: its own where standard input has JSON, else the line is the prompt."""
    if path == STANDARD_INPUT and line.lstrip().startswith("{"):
        with suppress(ValueError):
            row, twice = loads(line)
            if isinstance(row, dict):
                return Fault(origin, repeated(row)) if twice else (origin, row)
    return origin, {"prompt": line}


def _asked(origin: str, row: Mapping[str, Any], prompt: Prompt, options: DataOptions) -> PromptRow:
    turns: Any = asked_row(row, options)[0].get("turns")
    first = [{"role": "user", "content": turns[0]}] if _questions(turns) else None
    later = tuple(turns[1:]) if first and prompt == first else ()
    return PromptRow(origin, row, prompt, later, None if isinstance(prompt, str) else tools_of(row))


def prompt_of(row: Mapping[str, Any], options: DataOptions | None = None) -> Prompt | None:
    """What a row asks, read as training reads it (columns, speakers, conversations): its conversation up to the last
    message that is not the assistant's, ``instruction`` with ``input`` (and ``system``, ``history``), ``prompt``,
    ``question`` with its context or choices, ``text``, or the first of several ``turns``; None where it has none of
    them. What ``options`` choose goes before. Raises BadRow."""
    named, chosen = asked_row(row, options or DataOptions())
    if chosen & {*TALKS, *ASKING}:
        named = {key: value for key, value in named.items() if key in chosen or key not in {*TALKS, *ASKING}}
    talk = _talk(named, ("prompt", *NAMED_TALKS))
    if talk is not None:
        return talk or None
    if isinstance(named.get("instruction"), str):
        return instructed(named)
    if isinstance(named.get("prompt"), str):
        return str(named["prompt"])
    talk = _talk(named, TALKS)
    if talk:
        return talk
    laid = _laid_out(named)
    if laid is not None:
        return laid
    found = next((named[key] for key in ("question", "text") if isinstance(named.get(key), str)), None)
    questions: Any = named.get("turns")
    if found is None and _questions(questions):
        return [{"role": "user", "content": questions[0]}]
    return found


def _laid_out(row: Mapping[str, Any]) -> Prompt | None:
    """What a row asks whose columns training knows by the answer beside them (a question with its context, with
    choices), which need not be there yet; None where it is no such row, or where something in it lacks."""
    for whole in (row, {**row, "answer": "-"}):
        _, form = next(layouts(set(whole), whole), ("", None))
        if form is None:
            continue
        with suppress(BadRow):
            meant = form.read(whole)
            messages = [] if isinstance(meant, list) else (meant.messages or [])[:-1]
            plain = len(messages) == 1 and messages[0].keys() == {"role", "content"}
            if messages:
                return str(messages[0]["content"]) if plain else messages
    return None


def _questions(turns: Any) -> bool:
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns)


def _talk(row: Mapping[str, Any], columns: Sequence[str]) -> list[dict[str, Any]] | None:
    """The first conversation in these columns without the answers at its end; None where none of them holds one."""
    column = next((name for name in columns if _holds_talk(row.get(name), name)), None)
    if column is None:
        return None
    turns = row[column]
    if isinstance(turns, str) and not is_transcript(turns):
        turns = listed(row, column)
    if isinstance(turns, list):  # an answer that is to come may stand there empty
        turns = turns[: next((n for n in range(len(turns), 0, -1) if not _answers(turns[n - 1])), 0)]
        if not turns:
            return []
    messages = conversation({**row, column: turns}, column)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return messages


def _holds_talk(value: Any, column: str) -> bool:
    if column in NAMED_TALKS and isinstance(value, str):
        return value.lstrip().startswith("[") or is_transcript(value)
    return is_talk(value, column) and (column != "prompt" or isinstance(value[0], Mapping))


def _answers(said: Any) -> bool:
    who = (said.get("role") or said.get("from")) if isinstance(said, Mapping) else None
    return isinstance(who, str) and ROLES.get(who.lower()) == "assistant"


def asks_nothing(prompt: Prompt) -> bool:
    """Whether a prompt has no words: an empty text, or messages that say nothing but the system's."""
    if isinstance(prompt, str):
        return not prompt.strip()
    turns = [turn for turn in prompt if isinstance(turn, Mapping)] if isinstance(prompt, Sequence) else []
    said = (turn.get(key) for turn in turns if turn.get("role") != "system" for key in ("content", "input"))
    return bool(turns) and not any(value.strip() if isinstance(value, str) else value for value in said)
