"""Model and data of the applications: the playground's, and rows made from real sets, in one folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from halter.playground import sights, write_papers

Row = dict[str, Any]
TRAIN_ROWS, TEST_ROWS, TALKS, READ = 3000, 150, 8000, 1000
"""Of each of the playground's tasks."""
PAPERS = ("fields-text", "fields-noisy", "fields", "closed")
"""Of its tasks about papers."""


def prepare(folder: Path, shared: Path | None) -> None:
    """Write the playground's tasks and base below ``folder`` and, with ``shared``, the real model and rows. What is
    there already is left."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "playground").exists():
        command = [sys.executable, "-m", "halter", "playground", "export", str(folder / "playground")]
        subprocess.run([*command, "--train", str(TRAIN_ROWS), "--test", str(TEST_ROWS)], check=True)
    if not (folder / "papers").exists():
        write_papers(folder / "papers", train=TRAIN_ROWS, test=TEST_ROWS, names=PAPERS)
        papers_read(folder / "papers")
    if not (folder / "drawings").exists():
        drawings(folder / "drawings")
    if shared is None:
        return
    data = shared / "data"
    if not (folder / "stories260K").exists():
        shutil.copytree(data / "models" / "stories260K", folder / "stories260K")
    for name, make in REAL.items():
        for part, rows in zip(("train", "test"), make(data), strict=True):
            file = folder / name / f"{part}.jsonl"
            file.parent.mkdir(exist_ok=True)
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def papers_read(folder: Path) -> None:
    """Rows to learn from with what a reader reads in pictures, and as many again of clean text, of other papers."""
    pictures, texts = (read(folder / name / "train.jsonl") for name in ("fields", "fields-text"))
    rows = [*pictures[:READ], *texts[READ : 2 * READ]]
    (folder / "read").mkdir()
    (folder / "read" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def drawings(folder: Path) -> None:
    """Talks and quizzes to learn from; captions, and questions of every type in turn, to be asked."""
    types = [sights.rows(name, 0, "test", TEST_ROWS // 3) for name in sights.QUESTIONS]
    rows = {
        "talk/train": sights.rows(sights.TALK, 0, "train", TALKS),
        "quiz/train": sights.rows(sights.QUIZ, 0, "train", TALKS),
        "caption/test": sights.rows("caption", 0, "test", TEST_ROWS),
        "questions/test": [row for several in zip(*types, strict=True) for row in several],
    }
    for name, made in rows.items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in made), "utf-8")


def read(file: Path) -> list[Row]:
    with file.open(encoding="utf-8") as lines:  # splitlines would also split at characters that may stand in a text
        return [json.loads(line) for line in lines]


def instruction(data: Path) -> tuple[list[Row], list[Row]]:
    """TinyStories instructions as they are."""
    train, test = (read(data / "instruct" / f"tinystories_instruct_{part}.jsonl") for part in ("train", "test"))
    return train, test


def medicine(data: Path) -> tuple[list[Row], list[Row]]:
    """PubMedQA's labelled set, its own test half; of a paper only its conclusion, which is the form that its authors
    call free of reasoning: the whole abstract is longer than the model's context."""
    rows = read(data / "eval" / "pubmedqa_pqal.jsonl")

    def part(split: str) -> list[Row]:
        kept = (row for row in rows if row["split"] == split)
        return [
            {"question": row["question"], "conclusion": row["long_answer"], "answer": row["final_decision"]}
            for row in kept
        ]

    return part("train"), part("test")


def mathematics(data: Path) -> tuple[list[Row], list[Row]]:
    """GSM8K as it is; the first 200 of the test."""
    return read(data / "eval" / "gsm8k_train_1000.jsonl"), read(data / "eval" / "gsm8k_test.jsonl")[:200]


def summarisation(data: Path) -> tuple[list[Row], list[Row]]:
    """DialogSum: the development half to learn from, of the test the first of three summaries of 300 conversations."""
    train = read(data / "eval" / "dialogsum_dev.jsonl")
    test = read(data / "eval" / "dialogsum_test.jsonl")[:300]
    return (
        [{"dialogue": row["dialogue"], "summary": row["summary"]} for row in train],
        [{"dialogue": row["dialogue"], "summary": row["summary1"]} for row in test],
    )


def dialogue(data: Path) -> tuple[list[Row], list[Row]]:
    """Vicuna's identity conversations; every fifth question about who it is comes in the test only."""
    rows = [row["conversations"] for row in read(data / "chat" / "sharegpt_vicuna_identity.jsonl")]

    def identity(said: list[Row]) -> str:
        asked = [turn["value"] for turn in said if turn["from"] == "human"]
        return asked[1] if len(asked) == 3 else asked[0]

    kept = set(sorted({identity(said) for said in rows})[::5])
    split: dict[bool, list[Row]] = {False: [], True: []}
    for said in rows:
        split[identity(said) in kept].append({"conversations": said})
    return split[False], split[True]


REAL = {
    "instruction": instruction,
    "medicine": medicine,
    "mathematics": mathematics,
    "summarisation": summarisation,
    "dialogue": dialogue,
}
"""{folder: what makes its (training rows, test rows)}."""


def words_used(answers: Iterable[str], test: Iterable[Row]) -> float:
    """Of the words that stories were to use, the share that stands in them (any ending counts)."""
    used = asked = 0
    for answer, row in zip(answers, test, strict=True):
        for word in (w.strip().lower() for w in row["input"].split(",")):
            used += re.search(rf"\b{re.escape(word)}", answer.lower()) is not None
            asked += 1
    return used / asked
