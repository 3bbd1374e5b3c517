"""Columns that public data sets have, and what a row of them asks and answers, all through the chat template.

Each layout is a small frozen callable from a row (column names in lower case, blanks as _) to what it means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from halter.data.meaning import Canonical, Format, Row
from halter.data.pictured import column_of
from halter.data.references import commonest, texts_of
from halter.data.turns import BadRow, no_value, optional

PAIRS: tuple[tuple[str, str], ...] = (
    ("instruction", "response"),
    ("question", "response"),
    ("query", "response"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "answer"),
    ("input", "output"),
    ("inputs", "targets"),
    ("problem", "solution"),
    ("problem", "answer"),
    ("instruction", "answer"),
    ("instruction", "completion"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("question", "output"),
    ("question", "solution"),
    ("query", "output"),
    ("user", "assistant"),
    ("human", "assistant"),
    ("input", "response"),
    ("input", "target"),
    ("source", "target"),
    ("question", "best_answer"),
    ("question", "long_answer"),
    ("instruction", "label"),
)
"""(what is asked, what is learned), the first of which a row has both columns is its reading."""
CONTEXT = ("context", "contexts", "passage", "input", "text", "hint")
SYSTEM = ("system", "system_prompt", "system_message")
LISTS = ("choices", "options", "endings")
"""Columns that hold the choices of a question."""
NUMBERED = re.compile(r"(choice|option|sol|ending|answer)_?([0-9]|[a-e])")
KEYS = ("answer_idx", "answer_index", "answerkey", "answer_key", "answer", "label", "target", "gold")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LONG = ("dialogue", "document", "article")
SHORT = ("summary", "highlights", "summary1")
CAPTIONS = ("captions", "caption", "references")
DESCRIBE = "Describe the picture."
VOTED = "multiple_choice_answer"
"""VQA's name of the answer that most people gave."""
ASKED = {"cause": "What was the cause?", "effect": "What happened as a result?"}
"""XCOPA's question in words."""


@dataclass(frozen=True)
class QuestionAnswer:
    """A question and its answer in two columns, with a text to it and a system's words where there are some; ``lead``
    is asked of a text that asks nothing itself."""

    ask: str
    answer: str
    context: str = ""
    system: str = ""
    lead: str = ""

    def __call__(self, row: Row) -> Canonical:
        user: dict[str, Any] = {"role": "user", "content": self.lead or words(row, self.ask)}
        beside = words(row, self.ask) if self.lead else words(row, self.context, may_lack=True) if self.context else ""
        if beside.strip():
            user["input"] = beside
        said = {"role": "assistant", "content": words(row, self.answer)}
        if not said["content"].strip():
            raise BadRow(f"empty {self.answer}")
        return Canonical([*_system(row, self.system), user, said])


@dataclass(frozen=True)
class Choices:
    """A question with its choices under letters; the right one's letter is learned."""

    ask: str
    choices: tuple[str, ...]
    key: str
    context: str = ""

    def __call__(self, row: Row) -> Canonical:
        names, texts = self.listed(row)
        question = words(row, self.ask, may_lack=bool(self.context))
        before = words(row, self.context, may_lack=True).strip() if self.context else ""
        parts = [before, ASKED.get(question.strip(), question), *(f"{a}. {b}" for a, b in zip(names, texts))]
        asked = "\n".join(part for part in parts if part)
        answer = {"role": "assistant", "content": self._letter(row, names, texts)}
        return Canonical([{"role": "user", "content": asked}, answer])

    def listed(self, row: Row) -> tuple[list[str], list[str]]:
        """(names, texts) of the choices. Raises BadRow."""
        if len(self.choices) > 1:
            return list(LETTERS[: len(self.choices)]), [words(row, column) for column in self.choices]
        held = row.get(self.choices[0])
        if isinstance(held, Mapping) and isinstance(held.get("text"), list):  # ARC, CommonsenseQA
            names = held.get("label")
            listed = held["text"]
            held = dict(zip(map(str, names), listed)) if isinstance(names, list) else listed
        if isinstance(held, Mapping):
            return [str(name) for name in held], [str(text) for text in held.values()]
        if not isinstance(held, list) or not held or len(held) > len(LETTERS):
            raise BadRow(f"wrong type of {self.choices[0]}: not a list of choices")
        return list(LETTERS[: len(held)]), [str(text) for text in held]

    def _letter(self, row: Row, names: list[str], texts: list[str]) -> str:
        value = row.get(self.key)
        told = words(row, self.key).strip()
        if told in names and not isinstance(value, int):
            return told
        if told in texts:
            return names[texts.index(told)]
        if told.isdecimal():
            place = int(told) - (self.choices[0].endswith(("1", "a")) and isinstance(value, str))
            if 0 <= place < len(names):
                return names[place]
        raise BadRow(f"{self.key} names none of the choices")


@dataclass(frozen=True)
class Captioned:
    """A picture with a caption, or with several of which the first is learned."""

    column: str

    def __call__(self, row: Row) -> Canonical:
        said = [*texts_of(row.get(self.column))] or [words(row, self.column)]
        if not said[0].strip():
            raise BadRow(f"empty {self.column}")
        return Canonical([{"role": "user", "content": DESCRIBE}, {"role": "assistant", "content": said[0]}])


@dataclass(frozen=True)
class Voted:
    """A question about a picture that several people answered; learned is what most of them said, of equals the
    first."""

    def __call__(self, row: Row) -> Canonical:
        said = texts_of(row.get("answers"))
        if not said:
            raise BadRow("empty answers" if isinstance(row.get("answers"), list) else no_value(row, "answers"))
        answer = words(row, VOTED, may_lack=True).strip() or commonest(said)
        asked = {"role": "user", "content": words(row, "question")}
        return Canonical([asked, {"role": "assistant", "content": answer}])


@dataclass(frozen=True)
class Instances:
    """Self-instruct's seed tasks: an instruction and several inputs with their outputs, each a row."""

    def __call__(self, row: Row) -> list[Canonical]:
        cases = row.get("instances")
        if not isinstance(cases, list) or not cases:
            raise BadRow("empty instances")
        one = QuestionAnswer("instruction", "output", "input")
        return [one({"instruction": row.get("instruction"), **case}) for case in cases if isinstance(case, Mapping)]


def layouts(columns: set[str], row: Row) -> Iterator[tuple[str, Format]]:
    """(reading in words, format) of every layout that fits the columns of a row, the likeliest first."""
    yield from _multiple_choice(columns, row)
    if columns >= {"instruction", "instances"}:
        told = "each of instances is a row; asked: instruction, its input; learned: its output"
        yield told, Format(Instances(), frozenset({"instruction", "instances"}))
    if columns >= {"question", "final_decision"}:  # PubMedQA
        yield _pair("question", "final_decision", columns)
    for ask in LONG:
        for answer in SHORT:
            if {ask, answer} <= columns and isinstance(row.get(ask), str):
                lead = f"Summarise this {ask}."
                form = Format(QuestionAnswer(ask, answer, lead=lead), frozenset({ask, answer}))
                yield f'asked: "{lead}", {ask}; learned: {answer}', form
    for ask, answer in PAIRS:
        if {ask, answer} <= columns:
            yield _pair(ask, answer, columns)
    if column_of(row):
        yield from _of_pictures(columns, row)
    if columns >= {"prompt", "canonical_solution"}:  # HumanEval: code that goes on
        told = "asked: prompt; learned: canonical_solution; continued as plain text, no chat template"
        yield told, Format(_code, frozenset({"prompt", "canonical_solution"}))


def _of_pictures(columns: set[str], row: Row) -> Iterator[tuple[str, Format]]:
    if "question" in columns and texts_of(row.get("answers")):
        form = Format(Voted(), frozenset({"question", "answers"}), frozenset({VOTED}))
        learned = VOTED if VOTED in columns else "what most of answers say"
        yield f"asked: question; learned: {learned}", form
    for name in CAPTIONS:
        several = len(texts_of(row.get(name))) > 0
        if several or (isinstance(row.get(name), str) and row[name].strip()):
            told = f'asked: "{DESCRIBE}"; learned: {"the first of " if several else ""}{name}'
            yield told, Format(Captioned(name), frozenset({name}))


def _pair(ask: str, answer: str, columns: set[str]) -> tuple[str, Format]:
    context = next((name for name in CONTEXT if name in columns and name not in (ask, answer)), "")
    system = next((name for name in SYSTEM if name in columns), "")
    also = frozenset(name for name in (context, system) if name)
    told = f"asked: {', '.join(filter(None, [system, ask, context]))}; learned: {answer}"
    return told, Format(QuestionAnswer(ask, answer, context, system), frozenset({ask, answer}), also)


def _multiple_choice(columns: set[str], row: Row) -> Iterator[tuple[str, Format]]:
    held = next((name for name in LISTS if isinstance(row.get(name), list | Mapping)), "")
    numbered = sorted(name for name in columns if NUMBERED.fullmatch(name))
    choices = (held,) if held else tuple(numbered) if len(numbered) > 1 else ()
    key = next((name for name in KEYS if name in columns and name not in choices), "")
    ask = next((name for name in ("question", "question_stem", "goal", "sentence", "ctx") if name in columns), "")
    before = next((name for name in ("premise", "context", "passage", "hint") if name in columns), "")
    if not choices or not key or not (ask or before):
        return
    ask, before = (ask, before) if ask else (before, "")
    if held and any(isinstance(one, Mapping) for one in (row[held] if isinstance(row[held], list) else ())):
        return  # mt_bench's answers of several models
    shown = held or f"{choices[0]} to {choices[-1]}"
    told = f"asked: {', '.join(filter(None, [before, ask]))}, {shown} under letters; learned: the letter by {key}"
    form = Format(Choices(ask, choices, key, before), frozenset({ask, key, *choices}), frozenset({before} - {""}))
    yield told, form


def _code(row: Row) -> Canonical:
    return Canonical(prompt=words(row, "prompt"), completion=words(row, "canonical_solution"))


def _system(row: Row, column: str) -> list[dict[str, Any]]:
    told = words(row, column, may_lack=True) if column else ""
    return [{"role": "system", "content": told}] if told.strip() else []


def words(row: Row, key: str, may_lack: bool = False) -> str:
    """A value as text: numbers and truth values spelt out, texts of a list on lines of their own."""
    value = row.get(key)
    if isinstance(value, Mapping) and isinstance(value.get("contexts"), list):  # PubMedQA of the hub
        value = value["contexts"]
    if optional(row, key) is None:
        if may_lack:
            return ""
        raise BadRow(no_value(row, key))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "\n".join(value)
    if not isinstance(value, str | int | float):
        raise BadRow(f"wrong type of {key}: {type(value).__name__}")
    return str(value)
