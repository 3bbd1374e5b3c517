"""Every method on the same task of the playground, at the same budget of tokens, with its default settings.

    python benchmarks/learning_curves.py [METHOD ...] [--task translate] [--json FILE] [--page]

Prints how much of the gap between the base and full fine-tuning each method closes on held-back rows. ``--page`` writes
docs/measured/learning-curves.md and .svg from the JSON file (extra ``report``); without METHOD it is all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

import halter
from halter.contract.registry import find, names
from halter.playground import base_folder
from halter.playground.tasks import rows

ROOT = Path(__file__).resolve().parent.parent
TRAIN_ROWS, TEST_ROWS, EPOCHS, ROWS_PER_STEP, LOOKS = 800, 100, 3, 16, 8
ENOUGH = 0.5
STYLES = ("-", "--", ":", "-.")
Record = dict[str, Any]


def data(task: str, folder: Path) -> dict[str, str]:
    """Training and held-back rows as files."""
    found = {}
    for part, count in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        path = folder / f"{part}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(task, 0, part, count)))
        found[part] = str(path)
    return found


def curve(method: str, files: dict[str, str], folder: Path, **changes: Any) -> Record:
    """One run; ``changes`` are keys of its train section."""
    recipe = {
        "model": {"path": str(base_folder()), "dtype": "float32"},
        "method": {"name": method},
        "data": {"train": files["train"], "validation": files["test"]},
        "train": {
            "num_train_epochs": EPOCHS,
            "per_device_train_batch_size": ROWS_PER_STEP,
            "eval_steps": 1 / LOOKS,
            "save_steps": 10**6,
            **changes,
        },
        "output_dir": str(folder),
    }
    began = time.perf_counter()
    run = halter.train(recipe, say=lambda _: None)
    assert run is not None
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tokens = {line["step"]: line["tokens"] for line in lines if "tokens_per_second" in line}
    seen = {step: sum(n for at, n in tokens.items() if at <= step) for step in (0, *tokens)}
    facts = json.loads((run / "adapter" / "halter.json").read_text())
    return {
        "trainable": sum(p.numel() for p in _parameters(run)),
        "learning_rate": facts["recipe"]["train"]["learning_rate"],
        "seconds": round(time.perf_counter() - began, 1),
        "curve": [[seen[line["step"]], line["eval_loss"]] for line in lines if "eval_loss" in line],
    }


def _parameters(run: Path) -> list[torch.Tensor]:
    model, _ = halter.load(str(base_folder()), "float32")
    return list(halter.load_adapter(run / "adapter", model).trainable().values())


def closed(record: Record) -> dict[str, float]:
    """{method: share of the gap between the base and full fine-tuning}."""
    runs = record["runs"]
    base, full = runs["full"]["curve"][0][1], runs["full"]["curve"][-1][1]
    return {name: (base - run["curve"][-1][1]) / (base - full) for name, run in runs.items()}


def page(record: Record) -> str:
    """docs/measured/learning-curves.md."""
    shares = closed(record)
    order = sorted(shares, key=lambda name: -shares[name])
    lines = [
        "# Learning curves",
        "",
        f"Every method with its default settings on the playground's task `{record['task']}`: {TRAIN_ROWS} rows, "
        f"{EPOCHS} epochs, {ROWS_PER_STEP} rows a step, held-out loss on {TEST_ROWS} rows that were held back. "
        f"{record['date']}, {record['machine']}, torch {record['torch']}, one seed. Made by "
        "`python benchmarks/learning_curves.py --json FILE --page`.",
        "",
        "![held-out loss against tokens](learning-curves.svg)",
        "",
        "| method | trained numbers | learning rate | held-out loss, start | end | of the gap to full | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in order:
        run = record["runs"][name]
        first, last = run["curve"][0][1], run["curve"][-1][1]
        lines.append(
            f"| {name} | {run['trainable']:,} | {run['learning_rate']:g} | {first:.4f} | {last:.4f} "
            f"| {shares[name]:.0%} | {run['seconds']:.0f} |"
        )
    behind = [f"{name} ({shares[name]:.0%})" for name in order if shares[name] < ENOUGH]
    said = "Below half of the gap: " + (", ".join(behind) + "." if behind else "none.")
    return "\n".join([*lines, "", said, ""])


def draw(record: Record, path: Path) -> None:
    """The curves, readable in black and white: each method has its own dash and ends in its name."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "halter"
    figure, axes = plt.subplots(figsize=(9, 6))
    shares = closed(record)
    for number, name in enumerate(sorted(shares, key=lambda name: -shares[name])):
        tokens, losses = zip(*record["runs"][name]["curve"], strict=True)
        style, colour = STYLES[number % len(STYLES)], plt.get_cmap("viridis")(number / len(shares))
        axes.plot(tokens, losses, style, color=colour, label=f"{name} ({shares[name]:.0%})")
    axes.set_xlabel("tokens")
    axes.set_ylabel("held-out loss, nats per token")
    axes.set_yscale("log")
    axes.set_yticks([1, 2, 3, 4, 5, 6], labels=["1", "2", "3", "4", "5", "6"], minor=False)
    axes.minorticks_off()
    axes.legend(title="of the gap to full", loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--task", default="translate")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rate", type=float, help="a factor on every default learning rate")
    parser.add_argument("--page", action="store_true")
    asked = parser.parse_args()
    runs: dict[str, Record] = {}
    record: Record = {
        "task": asked.task,
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "runs": runs,
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    }
    if asked.json and asked.json.is_file():
        record = json.loads(asked.json.read_text())
        runs = record["runs"]
    with tempfile.TemporaryDirectory() as folder:
        files = data(asked.task, Path(folder))
        text = [name for name in names() if not find(name)().equipped().picture_tokens]
        for name in asked.methods or ("full", *(n for n in text if n != "full")):
            if name in runs and not asked.methods:
                continue
            changes = {}
            if asked.rate is not None:
                probe = curve(name, files, Path(folder) / f"{name}-probe", max_steps=1)
                changes["learning_rate"] = asked.rate * probe["learning_rate"]
            runs[name] = curve(name, files, Path(folder) / f"{name}{time.time()}", **changes)
            ends = f"{runs[name]['curve'][0][1]:.4f} to {runs[name]['curve'][-1][1]:.4f}"
            share = f"{closed(record)[name]:.0%}" if "full" in runs else ""
            print(f"{name}: rate {runs[name]['learning_rate']:g}, loss {ends} {share}", file=sys.stderr, flush=True)
            if asked.json:
                asked.json.write_text(json.dumps(record, indent=1) + "\n")
    if asked.page:
        (ROOT / "docs" / "measured" / "learning-curves.md").write_text(page(record))
        draw(record, ROOT / "docs" / "measured" / "learning-curves.svg")


if __name__ == "__main__":
    main()
