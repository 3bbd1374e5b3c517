"""`halter demo --pictures`: a LLaMA that has read nothing but text learns to answer about pictures it has not seen."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from halter.cli.demo_base import DemoRow, answers_of, mark_of, open_base, score_of, train_demo
from halter.files.extras import missing_extra

TASK, TRAIN_ROWS, QUESTIONS, SHOWN = "colour", 1600, 60, 3
RECIPE: dict[str, Any] = {
    "method": [
        {"name": "llama_adapter", "encoder": "playground"},
        {"name": "lora", "r": 16, "alpha": 32.0},
    ],
    "train": {
        "learning_rate": 4e-3,
        "num_train_epochs": 4,
        "per_device_train_batch_size": 16,
        "weight_decay": 0.0,
        "warmup_steps": 20,
        "logging_steps": 40,
    },
}


def show_pictures(out: Path, console: Console) -> None:
    """Train the adapter in the folder ``out`` and ask it about pictures, with them and without. Refusal
    ``extra-missing`` before anything is written."""
    from halter.adapters.loading import load_adapter

    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise missing_extra("vision", "pictures", "halter demo --pictures", error) from error
    rows = _write_rows(out)
    console.print("1. A tiny LLaMA that reads text alone, and questions about pictures.\n")
    base, tokenizer = open_base(console)
    console.print(f"2. An adapter learns from {TRAIN_ROWS} pictures with a question each; base and encoder stay.\n")
    run = train_demo(out, RECIPE)
    adapter = load_adapter(run / "adapter", base)
    seeing = answers_of(base, tokenizer, rows, adapter)
    blind = answers_of(base, tokenizer, [_without_picture(row) for row in rows], adapter)
    console.print(f"\n3. {len(rows)} pictures that it has not seen:\n")
    for number, (row, answer) in enumerate(list(zip(rows, seeing, strict=True))[:SHOWN], 1):
        console.print(f"   {out / 'pictures' / f'{number}.png'}: {row['about']}")
        console.print(f"   {_question(row)}")
        console.print(f"   base + adapter answers: {answer.strip()}   ({mark_of(answer, row)})\n")
    right, guessed = score_of(seeing, rows), score_of(blind, rows)
    console.print(f"   right answers: {right:.0%} with the pictures, {guessed:.0%} when they are withheld\n")
    console.print("Ask it yourself:\n")
    halter = Path(sys.executable).with_name("halter")
    asked = f'--image {out / "pictures" / "1.png"} --prompt "{_question(rows[0])}"'
    console.print(f"   {halter} generate {run} {asked}")
    console.print(f"   {halter} chat {run}    then /image PICTURE, and a question")


def _write_rows(out: Path) -> list[DemoRow]:
    """Training and test rows as files, and the first pictures of the test; returns the test rows."""
    from halter.files import folders, writing
    from halter.playground import sights
    from halter.playground.drawings import png

    folders.make(out / "data")
    folders.make(out / "pictures")
    made = {split: [*sights.asked(TASK, 0, split, n)] for split, n in (("train", TRAIN_ROWS), ("test", QUESTIONS))}
    for split, pairs in made.items():
        lines = (json.dumps(sights.row(seen, exchange)) + "\n" for seen, exchange in pairs)
        writing.write_text(out / "data" / f"{split}.jsonl", "".join(lines))
    for number, (seen, _) in enumerate(made["test"][:SHOWN], 1):
        writing.write_bytes(out / "pictures" / f"{number}.png", png(seen.draw()))
    return [_asked(seen, exchange) for seen, exchange in made["test"]]


def _asked(seen: Any, exchange: tuple[str, str]) -> DemoRow:
    from halter.playground import sights

    row: DemoRow = dict(sights.row(seen, exchange))
    picture = {"type": "image", "image": row["images"][0]}
    asked = {"role": "user", "content": [picture, {"type": "text", "text": exchange[0]}]}
    return {"messages": [asked, row["messages"][1]], "about": sights.described(seen)}


def _without_picture(row: DemoRow) -> DemoRow:
    return {"messages": [{"role": "user", "content": _question(row)}, row["messages"][1]]}


def _question(row: DemoRow) -> str:
    return str(row["messages"][0]["content"][1]["text"])
