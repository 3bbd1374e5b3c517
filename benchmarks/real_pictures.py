"""Real photographs and diagrams through an adapter that sees: COCO's captions and ScienceQA, the few in shared data.

    python benchmarks/real_pictures.py --shared DIR --output build/real-pictures [--encoder FOLDER_OR_HUB_ID]

The playground's base and its encoder, which know drawings alone, so the scores stand beside chance and show that
pictures, captions and choices go through. Captions are scored by pycocoevalcap (extra ``captions``, Java).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from halter.files.writing import write_json, write_text
from halter.playground import base_folder
from halter.run.scoring import evaluate
from halter.run.session import train

Row = dict[str, Any]
SETS = {"coco_captions": ("captions.jsonl", "captions"), "scienceqa": ("questions.jsonl", "choices")}
"""{folder: (its rows, the measure)}."""
TEST = 3
"""Every so many-th row is for the test."""


def split(folder: Path, rows: str) -> tuple[list[Row], list[Row]]:
    """(rows to learn, rows for the test), with whole paths; each caption learned is a row of its own."""
    with (folder / rows).open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    for row in found:
        row["image"] = str((folder / row["image"]).resolve())
    learned = [row for number, row in enumerate(found) if number % TEST]
    single = [{**row, "captions": [text]} for row in learned for text in row.get("captions", [])]
    return single or learned, found[::TEST]


def run(name: str, shared: Path, output: Path, encoder: str, steps: int) -> Row:
    rows, measure = SETS[name]
    folder = output / name
    for part, made in zip(("train", "test"), split(shared / "data" / "multimodal" / name, rows), strict=True):
        write_text(folder / f"{part}.jsonl", "".join(json.dumps(row) + "\n" for row in made))
    recipe = {
        "model": {"path": str(base_folder()), "dtype": "float32"},
        "data": {"train": str(folder / "train.jsonl"), "max_length": 1024},
        "method": [{"name": "llama_adapter", "encoder": encoder}, {"name": "lora", "r": 16, "alpha": 32.0}],
        "train": {"learning_rate": 2e-3, "max_steps": steps, "per_device_train_batch_size": 8},
        "output_dir": str(folder / "run"),
    }
    made_run = train(recipe)
    assert made_run is not None
    found: Row = {}
    for how in ("shown", "withheld"):
        evaluate(
            made_run,
            data=folder / "test.jsonl",
            output=folder / how,
            pictures=how,
            measures=(measure,),
            questions=0 if measure == "choices" else 100,
        )
        found[how] = json.loads((folder / how / "report.json").read_text("utf-8"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=os.environ.get("HALTER_SHARED"))
    parser.add_argument("--output", type=Path, default=Path("build/real-pictures"))
    parser.add_argument("--encoder", default="playground")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("names", nargs="*", default=[*SETS])
    given = parser.parse_args()
    if given.shared is None:
        parser.error("where is the shared data? --shared DIR, or HALTER_SHARED")
    for name in given.names:
        found = run(name, Path(given.shared), given.output, given.encoder, given.steps)
        write_json(given.output / f"{name}.json", found, replace=True)
        print(json.dumps({name: found}, indent=1))


if __name__ == "__main__":
    main()
