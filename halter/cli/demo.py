"""`halter demo`: a LLaMA adapted before your eyes, in under a minute, without a checkpoint or data of your own."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from halter.cli.demo_base import DemoRow, answers_of, mark_of, open_base, score_of, train_demo
from halter.errors import HalterError

TASK, LEVELS = "manners", (1, 2)
TRAIN_ROWS, QUESTIONS, SHOWN = 600, 48, 3
RECIPE: dict[str, Any] = {
    "method": {"name": "lora", "r": 16, "alpha": 32.0},
    "train": {
        "learning_rate": 4e-3,
        "num_train_epochs": 5,
        "per_device_train_batch_size": 16,
        "weight_decay": 0.0,
        "warmup_steps": 10,
        "logging_steps": 15,
    },
}


def command(
    output: Annotated[Path | None, typer.Option(help="New folder for all files; not given: runs/NNN-demo.")] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Instead, a text LLaMA that learns to answer about pictures.")
    ] = False,
) -> None:
    """Show everything once: a base that fails at a task, LoRA, success on unseen questions, save, merge, proof."""
    from halter.files.folders import refuse_unwritable
    from halter.files.runs import RunFolder

    out = Path(output) if output is not None else RunFolder.next("runs", "demo").path
    refuse_unwritable(out, folder=True)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    began = time.monotonic()
    if pictures:
        from halter.cli.demo_pictures import show_pictures

        show_pictures(out, console)
        console.print(f"\nDone in {time.monotonic() - began:.0f} s.")
        return
    rows = _write_rows(out)
    console.print(f"1. A tiny LLaMA that has read much about a little world, and a task it was never shown: {TASK}.\n")
    base, tokenizer = open_base(console)
    before = answers_of(base, tokenizer, rows, None)
    _show(console, rows, before, "the base answers")
    wrong = score_of(before, rows)
    console.print(f"   exact match of the base on {len(rows)} unseen requests: {wrong:.0%}\n")
    console.print(f"2. LoRA learns from {TRAIN_ROWS} other requests; the base stays as it is.\n")
    run = train_demo(out, RECIPE)
    adapter, after = _adapted(base, tokenizer, rows, run)
    console.print("\n3. The same requests again, base and adapter:\n")
    _show(console, rows, after, "base + adapter answers")
    right = score_of(after, rows)
    console.print(f"   exact match on the {len(rows)} unseen requests: {wrong:.0%} before, {right:.0%} after\n")
    _prove(console, base, adapter, tokenizer, rows, after, out)
    console.print(f"\nDone in {time.monotonic() - began:.0f} s. Next:\n")
    for line in _next(out, run):
        console.print(f"   {line}")


def _write_rows(out: Path) -> list[DemoRow]:
    """Training and test rows as files, as anyone's data would come; returns the test rows."""
    from halter.files import folders, writing
    from halter.playground.tasks import rows

    test = rows(TASK, 0, "test", QUESTIONS, LEVELS)
    folders.make(out / "data")
    for name, lines in (("train", rows(TASK, 0, "train", TRAIN_ROWS, LEVELS)), ("test", test)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        writing.write_text(out / "data" / f"{name}.jsonl", text)
    return test


def _show(console: Console, rows: Sequence[DemoRow], answers: Sequence[str], who: str) -> None:
    for row, answer in list(zip(rows, answers, strict=True))[:SHOWN]:
        console.print(f"   request: {row['messages'][0]['content']}")
        console.print(f"   {who}: {answer.strip()}   ({mark_of(answer, row)})\n")


def _adapted(base: Any, tokenizer: Any, rows: Sequence[DemoRow], run: Path) -> tuple[Any, list[str]]:
    """The adapter as it was saved, read back, and its answers."""
    from halter.adapters.loading import load_adapter

    adapter = load_adapter(run / "adapter", base)
    return adapter, answers_of(base, tokenizer, rows, adapter)


def _prove(
    console: Console, base: Any, adapter: Any, tokenizer: Any, rows: Sequence[DemoRow], answers: list[str], out: Path
) -> None:
    from halter.export.merge import merge
    from halter.playground import base_folder
    from halter.pretrained.load import load

    size = sum(f.stat().st_size for f in (out / "run" / "adapter").iterdir())
    console.print(f"4. The adapter is saved: {out / 'run' / 'adapter'} ({size / 1e6:.1f} MB). Merging it ...\n")
    report = merge(base, adapter, out / "merged", source=base_folder())
    merged, _ = load(str(out / "merged"), say=lambda _: None)
    same = sum(a == b for a, b in zip(answers_of(merged, tokenizer, rows, None), answers, strict=True))
    console.print(f"   {report}")
    console.print(f"   merged model and base + adapter give the same answer to {same} of {len(rows)} requests")
    if same < len(rows):
        raise HalterError(f"the merged model answers {len(rows) - same} requests otherwise than base + adapter")


def _next(out: Path, run: Path) -> list[str]:
    active = shutil.which("halter") is not None
    return [
        *([] if active else [f". {Path(sys.executable).parent / 'activate'}    so that the shell finds halter"]),
        f"halter chat {run}                                   ask it for such letters; it learned nothing else",
        f"halter evaluate {run} --data {out}/data/test.jsonl  its scores in full",
        "halter playground list                              the other tasks of the little world",
        "halter playground export FOLDER                     their files, and the base",
        "halter train --model DIR_OR_HUB_ID --data FILE --method lora --output OUT    your own",
    ]
