"""What adapters that see learn on the playground: captions and questions about drawings, by every method.

    python benchmarks/adapters_that_see.py --output build/seeing [--only projector+lora ...] [--steps 600]

Each method trains the playground's base of text on the same rows for the same number of steps, and is asked about
drawings that no training has shown: with them (``shown``), without them (``withheld``), with those of other rows
(``shuffled``). ``commonest`` is whoever always gives the answer that is most common in the test. Three ways of joint
training (``--joint``) learn captions from rows with pictures and polite letters from rows of text.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from halter.files.writing import write_json, write_text
from halter.playground import base_folder, sights, tasks
from halter.run.scoring import evaluate
from halter.run.session import train

ASKED = ("caption", "colour", "shape", "position", "count")
SEES = {"encoder": "playground"}
METHODS: dict[str, Any] = {
    "llama_adapter": {"name": "llama_adapter", **SEES},
    "llama_adapter_v2, early": {"name": "llama_adapter_v2", "adapter_len": 10, "v_depth": 2, **SEES},
    "llama_adapter_v2, late": {
        "name": "llama_adapter_v2",
        "adapter_len": 10,
        "query_len": 10,
        "fusion": "late",
        "v_depth": 2,
        **SEES,
    },
    "excitor": {"name": "excitor", **SEES},
    "projector": {"name": "projector"},
    "projector+lora": [{"name": "projector"}, {"name": "lora", "r": 16, "alpha": 32.0}],
    "llama_adapter+lora": [{"name": "llama_adapter", **SEES}, {"name": "lora", "r": 16, "alpha": 32.0}],
}
JOINT: dict[str, Mapping[str, Any]] = {
    "disjoint": {"phase": "disjoint"},
    "shared": {"phase": "all"},
    "two runs": {"phase": "pretrain"},
}
V2 = METHODS["llama_adapter_v2, late"]


def write_rows(folder: Path, rows: int, test: int) -> None:
    """caption/test.jsonl and so on, train.jsonl of all types, and the letters of joint training."""
    mixed: list[dict[str, object]] = []
    for name in ASKED:
        mixed += sights.rows(name, 0, "train", rows)
        _write(folder / name / "test.jsonl", sights.rows(name, 0, "test", test))
    _write(folder / "train.jsonl", mixed)
    captions = sights.rows("caption", 0, "train", rows)
    letters = list(tasks.rows("manners", 0, "train", 1200, (1, 2)))
    _write(folder / "captions.jsonl", captions)
    _write(folder / "letters.jsonl", letters)
    _write(folder / "joint.jsonl", captions + letters)
    _write(folder / "manners" / "test.jsonl", list(tasks.rows("manners", 0, "test", 48, (1, 2))))


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def run_of(folder: Path, name: str, method: Any, data: str, steps: int) -> tuple[Path, float]:
    """Train and say how long it took."""
    recipe = {
        "model": {"path": str(base_folder()), "dtype": "float32"},
        "data": {"train": str(folder / data)},
        "method": method,
        "train": {
            "learning_rate": 3e-3,
            "max_steps": steps,
            "per_device_train_batch_size": 32,
            "weight_decay": 0.0,
            "warmup_steps": 30,
            "threads": torch.get_num_threads(),
            "logging_steps": 50,
        },
        "output_dir": str(folder / "runs" / name.replace(" ", "-").replace(",", "")),
    }
    started = time.time()
    run = train(recipe)
    assert run is not None
    return run, time.time() - started


def asked(folder: Path, run: Path, task: str, pictures: str, place: str) -> dict[str, float]:
    data = folder / task / "test.jsonl"
    said = evaluate(run, data=data, pictures=pictures, output=folder / "asked" / place, max_new_tokens=60)  # type: ignore[call-arg]
    assert said.adapter is not None and said.adapter.exact_match is not None
    return {"adapter": said.adapter.exact_match, "base": said.base.exact_match or 0.0}


def methods(folder: Path, names: Sequence[str], steps: int, test: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        run, seconds = run_of(folder, name, METHODS[name], "train.jsonl", steps)
        scores: dict[str, Any] = {}
        for task in ASKED:
            scores[task] = {}
            for how in ("shown", "withheld", "shuffled"):
                both = asked(folder, run, task, how, f"{run.name}-{task}-{how}")
                scores[task] |= {how: both["adapter"], "base": both["base"]}
        found[name] = {"seconds": round(seconds), "steps": steps, "scores": scores}
        write_json(folder / "methods.json", found, replace=True)
    return found


def joint(folder: Path, steps: int) -> dict[str, Any]:
    """Captions and letters by one adapter: disjoint groups, shared ones, the released code's two runs."""
    found: dict[str, Any] = {}
    for name, phase in JOINT.items():
        method = {**V2, **phase}
        if name == "two runs":
            first, seconds = run_of(folder, "pretrain", method, "captions.jsonl", steps // 2)
            second = {**V2, "phase": "finetune", "init_from": str(first / "adapter")}
            run, more = run_of(folder, "finetune", second, "letters.jsonl", steps // 2)
            seconds += more
        else:
            run, seconds = run_of(folder, name, method, "joint.jsonl", steps)
        captions = asked(folder, run, "caption", "shown", f"{run.name}-caption")["adapter"]
        blind = asked(folder, run, "caption", "withheld", f"{run.name}-caption-withheld")["adapter"]
        letters = asked(folder, run, "manners", "shown", f"{run.name}-manners")["adapter"]
        found[name] = {"seconds": round(seconds), "captions": captions, "withheld": blind, "letters": letters}
        write_json(folder / "joint.json", found, replace=True)
    return found


def commonest(folder: Path) -> dict[str, float]:
    found = {}
    for task in ASKED:
        lines = (folder / task / "test.jsonl").read_text("utf-8").splitlines()
        answers = Counter(json.loads(line)["messages"][1]["content"] for line in lines)
        found[task] = max(answers.values()) / len(lines)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/seeing"))
    parser.add_argument("--only", nargs="*", default=[*METHODS])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--joint", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if not (given.output / "train.jsonl").exists():
        write_rows(given.output, given.rows, given.test)
    found: dict[str, Any] = {"commonest": commonest(given.output), "threads": given.threads}
    if given.joint:
        found["joint"] = joint(given.output, given.steps)
    else:
        found["methods"] = methods(given.output, given.only, given.steps, given.test)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
