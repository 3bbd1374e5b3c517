"""What the base that sees is worth: a question type left out of its pre-training, learned by an adapter, seeing and
blind.

Both adapters are `halter train` with the same recipe on the same questions; the rows of the blind one have no picture.
What is told is the share of right answers about pictures that neither training has shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halter.files.folders import make, new_folder
from halter.files.writing import write_json, write_text
from halter.playground import sights
from halter.playground.base import SEED
from halter.playground.drawings import Things
from halter.playground.tasks import Exchange
from halter.run.scoring import evaluate
from halter.run.session import train
from halter.telling import Say, tell

TARGET = 0.40
"""So much more of the answers must be right seeing than blind."""
GREY = (235, 235, 235)


@dataclass(frozen=True)
class SightCheck:
    """What is trained and asked."""

    question: str = sights.LEFT_OUT
    rows: int = 12_000
    test: int = 300
    seed: int = SEED
    method: Mapping[str, Any] = field(default_factory=lambda: {"name": "lora", "r": 16})
    train: Mapping[str, Any] = field(
        default_factory=lambda: {"num_train_epochs": 5, "per_device_train_batch_size": 32, "learning_rate": 3e-3}
    )


def check_sight(
    base: str | Path, folder: str | Path, check: SightCheck | None = None, say: Say = tell
) -> dict[str, Any]:
    """Train both adapters on the base in ``base`` and ask them; returns, and keeps in a new ``folder``, what came out.

    ``seeing`` and ``blind``: shares of right answers; ``blank``: of the seeing adapter where the picture is empty;
    ``untrained``: of the base itself, seeing; ``commonest``: of whoever always gives the answer that is most common in
    the test; ``above_blind``: seeing less the best of blind, blank and commonest.
    """
    check = check or SightCheck()
    with new_folder(folder) as inside:
        _write_rows(inside, check)
        figures: dict[str, Any] = {"question": check.question, "rows": check.rows, "test": check.test}
        for name in ("seeing", "blind"):
            started = time.time()
            recipe = {
                "model": {"path": str(base)},
                "data": {"train": str(inside / name / "train.jsonl")},
                "method": dict(check.method),
                "train": {"seed": check.seed, **check.train},
                "output_dir": str(inside / name / "run"),
            }
            run = train(recipe, say=say)
            figures[f"{name}_seconds"] = round(time.time() - started)
            for asked in ("seeing", "blank") if name == "seeing" else ("blind",):
                found = evaluate(run, data=inside / asked / "test.jsonl", output=inside / f"asked-{asked}", say=say)
                assert found.adapter is not None and found.answers == check.test
                figures[asked] = found.adapter.exact_match
                if asked == "seeing":
                    figures["untrained"] = found.base.exact_match
        answers = [answer for _, (_, answer) in _asked(check, "test")]
        figures["commonest"] = max(map(answers.count, answers)) / len(answers)
        blind = max(figures["blind"], figures["blank"], figures["commonest"])
        figures["above_blind"] = round(figures["seeing"] - blind, 4)
        write_json(inside / "sight.json", figures)
    return figures


def _asked(check: SightCheck, split: str) -> list[tuple[Any, Exchange]]:
    return list(sights.asked(check.question, check.seed, split, check.rows if split == "train" else check.test))


def _write_rows(inside: Path, check: SightCheck) -> None:
    empty = Things((), GREY)
    for split in ("train", "test"):
        pairs = _asked(check, split)
        kinds: dict[str, Sequence[Mapping[str, object]]] = {
            "seeing": [sights.row(seen, exchange) for seen, exchange in pairs],
            "blank": [sights.row(empty, exchange) for _, exchange in pairs],
            "blind": [sights.row(None, exchange) for _, exchange in pairs],
        }
        for name, rows in kinds.items():
            if split == "test" or name != "blank":
                make(inside / name)
                write_text(inside / name / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
