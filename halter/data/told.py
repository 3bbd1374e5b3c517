"""What there is to say about rows that can be used: one sentence for each kind of thing, with how often it was met."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from halter.data.row_files import Fault
from halter.files.row_names import suffix_of

if TYPE_CHECKING:
    from halter.data.report import DataReport

PLACE = re.compile(r"(.*?)(?::(\d+)|\[(\d+)\])", re.DOTALL)
DIFFERS = re.compile(r" at (byte|character) \d+| in message \d+| \(picture \d+[^()]*\)$|(?<=duplicate id) .*")

NOTES: dict[str, str] = {
    "rejected_dropped": "{n} rows are left out because people marked their answers as bad (label: false and the like): "
    "data.on_rejected=learn learns them all the same",
    "rejected_learned": "{n} answers are learned although people marked them as bad (data.on_rejected: learn)",
    "repeated_ids": "{n} rows repeat the id of an earlier one and are kept: data.id_column=id would refuse them",
    "reasoning_restored": "{n} answers are learned with their reasoning, which the chat template leaves out: "
    "data.reasoning=drop learns them without",
    "reasoning_closed": "{n} answers have no reasoning and follow a prompt that opens one (<think>): it is closed at "
    "once, as </think> and the answer",
    "reasoning_dropped": "{n} answers are learned without their reasoning (data.reasoning: drop)",
    "own_rows": "{n} more rows than conversations: each answer is learned after the prompt that generation gives, in "
    "which earlier answers stand without their reasoning",
    "unreasoned": "{n} answers are learned without their reasoning: the chat template leaves it out and cannot be "
    "followed with it; give another template",
    "content_cut": "{n} messages are written in part only by the chat template: halter inspect shows what is left",
    "last_turn_unlearned": "{n} conversations do not end with the assistant: what stands after its last answer is "
    "not learned",
    "unknown": "{n} tokens of answers, in {unknown_rows} rows, are <unk>: the tokenizer has no token for what stands "
    "there, so the model can neither learn nor say it",
    "templated": "{n} rows hold the marks of a chat template already (### Instruction:, [INST], <|im_start|> and the "
    "like), and the template is put around them once more: give rows without them, or learn these as they stand "
    "(data.columns='{{prompt: ..., completion: ...}}')",
    "mojibake": "{n} rows hold letters that were read in a wrong encoding, such as Ã© for é: write the file again from "
    "where it came, in UTF-8; iconv -f UTF-8 -t WINDOWS-1252 FILE > NEW turns one back that is so throughout",
    "unreadable": "{n} rows hold � in the place of letters that could not be read: write the file again from where it "
    "came, in UTF-8",
    "ended": "{n} answers end in the name of an end (</s>, <|im_end|>, <|eot_id|> and the like), which is text there, "
    "letter by letter, before the end itself: take it out of the rows",
    "swapped_user": "in {n} conversations the assistant speaks first and the user last: are the roles swapped? "
    "data.roles='{{user: assistant, assistant: user}}' swaps them back",
    "swapped_human": "in {n} conversations the assistant speaks first and the user last: are the roles swapped? "
    "data.roles='{{human: assistant, gpt: user}}' swaps them back",
    "unprompted": "{n} conversations begin with the assistant: that turn is learned without a prompt",
    "spelt_out": "{n} rows hold new lines as a backslash and an n each, which are read as these two letters: {way}",
    "echoed": "in {n} rows the answer is the question word for word: is one column given for both?",
    "pictures_dropped": "{n} pictures are left out, as the model sees none (checks.allow: pictures-unseen)",
    "readings_cut": "{n} texts that were read in pictures are cut, as they have more characters than their reader may "
    "give: data.readers=[ocr:characters=8000] gives more",
    "first_frames": "{n} pictures move: the first frame of each is taken",
    "contradicting": "{n} rows ask what another row asks and want another answer ({contradicted} questions)",
}
"""{what was met: its sentence}; ``Rows.notes`` and ``DataReport.notes`` count by these names."""
ASIDE = frozenset({"reasoning_dropped", "own_rows", "repeated_ids", "contradicting", "unprompted", "first_frames"})
"""What the user asked for, or what costs nothing: told, and no warning."""
ENOUGH = {
    "templated": 0.05,
    "mojibake": 0.01,
    "unreadable": 0.01,
    "ended": 0.05,
    "swapped_user": 0.5,
    "swapped_human": 0.5,
    "echoed": 0.5,
    "contradicting": 0.01,
    "spelt_out": 0.05,
}
"""Share of the rows from which on it is no accident; what is not named here is told from the first on."""
SCORED = (
    "unknown",
    "templated",
    "mojibake",
    "unreadable",
    "spelt_out",
    "ended",
    "swapped_user",
    "swapped_human",
    "echoed",
)
"""What is told of rows that are scored, too."""
MANY_UNKNOWN = 0.001
"""Share of the learned tokens from which on <unk> is worth a word: a rare character stands in every large file."""


SHOWN, GROUPS = 3, 3
"""Examples of one kind of fault, and kinds, that a message shows."""


def grouped(faults: Sequence[Fault]) -> list[str]:
    """Faults of one kind in one line each: the kind, how many, the first places, the file."""
    alike: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        file, line = place(fault.origin)
        alike.setdefault((kind(fault.kind), file), []).append(line)
    order = sorted(alike.items(), key=lambda item: -len(item[1]))
    lines = []
    for (what, file), places in order[: GROUPS if len(order) <= GROUPS else GROUPS - 1]:
        shown = runs(places)
        rows = f"{len(places):,} {'row' if len(places) == 1 else 'rows'}"
        lines.append(f"{what}: {rows}, {file}{':' if shown else ''}{shown}")
    rest = order[len(lines) :]
    if rest:
        lines.append(f"{sum(len(places) for _, places in rest):,} rows more with {len(rest)} other faults or files")
    return lines


def place(origin: str) -> tuple[str, str]:
    """(file, line or number of the row) of an origin."""
    match = PLACE.fullmatch(origin)
    return (match[1], match[2] or match[3]) if match else (origin, "")


def kind(fault: str) -> str:
    """A fault without what differs from row to row."""
    text = " ".join(fault.split())
    return DIFFERS.sub("", text)[:120]


def runs(places: Sequence[str]) -> str:
    """Line numbers, neighbours as 21-40, the first few."""
    numbers = sorted({int(one) for one in places if one.isdecimal()})
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in spans[:SHOWN]]
    return ", ".join(shown) + (", ..." if len(spans) > SHOWN else "")


LEARNED = {"all": "every token, as data.train_on says", "last_response": "the last answer, as data.train_on says"}
"""{data.train_on: what is learned, whatever a file's columns are}."""


def as_learned(reading: str, train_on: str) -> str:
    """How a file is read, with what is learned of it."""
    return re.sub(r"learned: [^;]+", f"learned: {LEARNED[train_on]}", reading) if train_on in LEARNED else reading


def readings(readings: Mapping[str, str], ignored: Mapping[str, Sequence[str]]) -> list[str]:
    """How files are read and which of their columns are not, one sentence for all that are alike."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, reading in readings.items():
        alike.setdefault((reading, ", ".join(ignored.get(name, ()))), []).append(Path(name).name)
    told = []
    for (reading, columns), names in alike.items():
        more = f" and {len(names) - SHOWN} more files" if len(names) > SHOWN else ""
        told.append(f"{', '.join(names[:SHOWN])}{more}: {reading}" + (f"; not read: {columns}" if columns else ""))
    return told


def notes(report: DataReport, aside: bool) -> list[str]:
    """The sentences that are no warnings (``aside``), or those that are."""
    return [
        NOTES[name].format_map(_Counted(report, name))
        for name in NOTES
        if (name in ASIDE) == aside and _told_of(report, name)
    ]


def doubts(report: DataReport) -> list[str]:
    """The warnings that matter where rows are scored and nothing is learned."""
    return [NOTES[name].format_map(_Counted(report, name)) for name in SCORED if _told_of(report, name)]


def _to_new_lines(files: Iterable[str]) -> str:
    """The command that makes new lines of backslashes and ns in the first of these files."""
    file = next(iter(files), "FILE")
    suffix = suffix_of(Path(file))
    new = shlex.quote(Path(file).stem + ".lines" + Path(file).suffix)
    if suffix == ".csv":
        rows = "[c.replace(chr(92) + 'n', chr(10)) for c in r] for r in csv.reader(sys.stdin)"
        made = f"import csv, sys; csv.writer(sys.stdout).writerows({rows})"
        return f'python -c "{made}" < {shlex.quote(file)} > {new}, and give {new}'
    turn = r"s/\\\\n/\\n/g" if suffix in (".jsonl", ".json", ".ndjson") else r"s/\\n/\n/g" if suffix == ".txt" else ""
    if not turn or file.endswith(".gz"):
        return "write the file again with new lines in their place"
    return f"sed '{turn}' {shlex.quote(file)} > {new}, and give {new}"


def _told_of(report: DataReport, name: str) -> bool:
    count = report.notes[name]
    if name == "unknown":
        return count > MANY_UNKNOWN * (report.targets + report.validation_targets)
    return count > 0 and count >= ENOUGH.get(name, 0.0) * report.looked_at


class _Counted(dict[str, str]):
    """Counts as they are written, ``n`` the one that the sentence is about; ``way``: how new lines become such."""

    def __init__(self, report: DataReport, name: str) -> None:
        super().__init__({"n": f"{report.notes[name]:,}", "way": _to_new_lines(report.sources)})
        self._counts = report.notes

    def __missing__(self, key: str) -> str:
        return f"{self._counts[key]:,}"
