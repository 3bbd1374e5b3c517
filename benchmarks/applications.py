"""The applications of recipes/applications: train, evaluate, and write their scores beside chance.

    python benchmarks/applications.py --prepare FOLDER [--shared DIR]     model and data, as the recipes name them
    python benchmarks/applications.py [NAME ...] [--data FOLDER] [--max-steps N]
    python benchmarks/applications.py --table                             the pages again, from the record

DIR holds data/models/stories260K and the sets that docs/applications/README.md lists; without it only the playground's
applications can run. Each application is `halter train` and `halter evaluate` as anyone would call them; the figures of
a run take the place of the application's last ones in docs/applications/record.json. With --max-steps nothing is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

from application_data import prepare, read, words_used
from application_list import APPLICATIONS, PICTURES, PREPARED, ROOT, Application, recipe_of
from application_pages import write_pages

PAGES = ROOT / "docs" / "applications"
RECORD = PAGES / "record.json"
Record = dict[str, Any]


def run(name: str, data: Path, steps: int | None, work: Path) -> Record:
    """Train and evaluate one application in ``work``, where another one of its recipe may have trained; its figures."""
    one, recipe = APPLICATIONS[name], recipe_of(name)
    out, clock = work / recipe.stem, work / f"{recipe.stem}.seconds"
    test, scores = data / one.test / "test.jsonl", work / f"{name}-scores"
    halter = [sys.executable, "-m", "halter"]
    places = {
        "model.path": data / base_of(recipe),
        "data.train": data / one.learns / "train.jsonl",
        "data.validation": data / validation_of(recipe),
    }
    moved = [f"{key}={json.dumps(str(path))}" for key, path in places.items()]
    limits = [] if steps is None else ["--max-steps", str(steps)]
    if not clock.exists():
        began = time.perf_counter()
        subprocess.run([*halter, "train", str(recipe), *moved, *limits, "--output", str(out)], check=True)
        clock.write_text(str(time.perf_counter() - began), "utf-8")
    options = ["--questions", str(one.questions), "--max-new-tokens", str(one.new_tokens)]
    if "field_f1" in one.measures:
        options += ["--measures", "fields"]
    for choice in one.choices:
        options += ["--choices", choice]
    command = [*halter, "evaluate", str(out), "--data", str(test), "--output", str(scores), *options]
    subprocess.run(command, check=True)
    report = json.loads((scores / "report.json").read_text("utf-8"))
    figures = measured(one, report, scores / "predictions.jsonl", data / one.test)
    if one.blind:
        if one.blind == PICTURES:
            options += ["--pictures", "withheld"]
        else:
            rows = [json.dumps(withheld(row, one.blind)) + "\n" for row in read(test)]
            test = work / f"{name}-blind.jsonl"
            test.write_text("".join(rows), "utf-8")
        command = [*halter, "evaluate", str(out), "--data", str(test), "--output", f"{scores}-blind", *options]
        subprocess.run(command, check=True)
        side = json.loads((Path(f"{scores}-blind") / "report.json").read_text("utf-8"))["adapter"]
        for measure, figure in figures.items():
            figure["blind"] = side[measure]
    lines = read(out / "metrics.jsonl")
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores shared with other work, CPU only",
        "steps": sum("tokens_per_second" in line for line in lines),
        "seconds": round(float(clock.read_text("utf-8"))),
        "rows": report["rows"],
        "answers": report["answers"],
        "measures": figures,
    }


def withheld(row: Record, end: str) -> Record:
    """The row with the question alone, without all that stands ahead of it up to the last ``end``."""
    question, *rest = row["messages"]
    return {"messages": [question | {"content": question["content"].rpartition(end)[2]}, *rest]}


def base_of(recipe: Path) -> Path:
    """The recipe's model, below the prepared folder."""
    from halter.recipe import load

    return Path(load(str(recipe)).model.path).relative_to(PREPARED)


def validation_of(recipe: Path) -> Path:
    """Where the recipe's loss is watched, below the prepared folder."""
    from halter.recipe import load

    return Path(str(load(str(recipe)).data.validation)).relative_to(PREPARED)


def measured(one: Application, report: Record, predictions: Path, folder: Path) -> dict[str, Record]:
    """{measure: base, adapted, chance} with chance as ``chance`` has it."""
    lines = read(predictions)
    sides = {"base": "base", "adapted": "adapter"}
    figures = {measure: {ours: report[side].get(measure) for ours, side in sides.items()} for measure in one.measures}
    said = {ours: [line[side]["answer"] for line in lines] for ours, side in sides.items()}
    wanted = [line["wanted"] for line in lines]
    for measure, figure in figures.items():
        if measure == "words_used":
            figure |= {who: of_words(texts, lines, folder) for who, texts in said.items()}
            figure["chance"] = of_words(turned(lines, wanted, folder), lines, folder)
        elif measure == "choice_accuracy":
            figure |= {"chance": report["choices"]["chance"], "majority": report["choices"]["majority"]}
        elif measure == "loss":
            figure["chance"] = math.log(vocabulary(report["model"]))
        else:
            figure["chance"] = by_chance(measure, wanted)
    return figures


def by_chance(measure: str, wanted: list[str]) -> float:
    """The score of giving each question the right answer of the next one."""
    from halter.evaluation import texts
    from halter.evaluation.measures.fields import field_scores

    given = wanted[1:] + wanted[:1]
    pairs = list(zip(given, wanted, strict=True))
    if measure in texts.TRANSLATION:
        return texts.translation(given, wanted)[measure]
    if measure == "field_f1":
        return field_scores(given, wanted)[measure]
    if measure in texts.ROUGE:
        return sum(score[measure] for score in texts.rouge(given, wanted)) / len(wanted)
    alone = {
        "exact_match": texts.exact_match,
        "token_f1": texts.token_f1,
        "last_number": lambda a, w: texts.last_number(a) == texts.last_number(w),
    }[measure]
    return sum(alone(answer, right) for answer, right in pairs) / len(pairs)


def to_order(lines: list[Record], folder: Path) -> list[tuple[int, Record]]:
    """(number of the line, its row) of the questions that name words to use."""
    rows = read(folder / "test.jsonl")
    found = [(number, rows[int(line["origin"].rsplit(":", 1)[1]) - 1]) for number, line in enumerate(lines)]
    return [(number, row) for number, row in found if row["kind"] == "words"]


def of_words(texts: list[str], lines: list[Record], folder: Path) -> float:
    chosen = to_order(lines, folder)
    return words_used([texts[number] for number, _ in chosen], [row for _, row in chosen])


def turned(lines: list[Record], wanted: list[str], folder: Path) -> list[str]:
    """The wanted texts, each story to order with the next one's."""
    numbers = [number for number, _ in to_order(lines, folder)]
    moved = list(wanted)
    for here, there in zip(numbers, numbers[1:] + numbers[:1], strict=True):
        moved[here] = wanted[there]
    return moved


def vocabulary(model: str) -> int:
    return int(json.loads((Path(model) / "config.json").read_text("utf-8"))["vocab_size"])


def main() -> None:
    """Prepare, or run the applications named (all where none is) and write record and pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(APPLICATIONS))
    parser.add_argument("--prepare", type=Path, metavar="FOLDER")
    parser.add_argument("--shared", type=Path, default=os.environ.get("HALTER_SHARED"))
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "applications")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where runs and scores stay")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    unknown = [name for name in asked.names if name not in APPLICATIONS]
    if unknown:
        parser.error(f"no such application: {', '.join(unknown)}")
    if asked.prepare:
        prepare(asked.prepare, None if asked.shared is None else Path(asked.shared))
        return
    record = json.loads(RECORD.read_text("utf-8")) if RECORD.is_file() else {}
    if not asked.table:
        prepare(asked.data, None if asked.shared is None else Path(asked.shared))
        with tempfile.TemporaryDirectory() if asked.keep is None else nullcontext(asked.keep.resolve()) as work:
            for name in asked.names or APPLICATIONS:
                figures = run(name, asked.data.resolve(), asked.max_steps, Path(work))
                print(json.dumps({name: figures}), flush=True)
                if asked.max_steps is None:
                    record[name] = figures
                    RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    if asked.max_steps is None:
        write_pages(PAGES, record, APPLICATIONS)


if __name__ == "__main__":
    main()
