"""A library lm_eval that knows one task, put where the real one would be imported from."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

QUESTIONS = (("Once upon a", " time", " spoon"), ("Lily went to the", " zyx", " park"))
"""(context, first choice, second choice); the first is wanted."""


class Manager:
    def __init__(self, include_path: str | None = None) -> None:
        self.all_tasks = ["little", "group"] + ([] if include_path is None else ["own"])


def simple_evaluate(model: Any, tasks: list[str], limit: int | None, **_: Any) -> dict[str, Any]:
    asked = QUESTIONS[:limit]
    pairs = [SimpleNamespace(args=(q[0], choice)) for q in asked for choice in q[1:]]
    sums = [one[0] for one in model.loglikelihood(pairs)]
    right = sum(sums[2 * n] > sums[2 * n + 1] for n in range(len(asked))) / len(asked)
    (text,) = model.generate_until([SimpleNamespace(args=("Once upon a", {"until": ["."], "max_gen_toks": 8}))])
    (rolling,) = model.loglikelihood_rolling([SimpleNamespace(args=("Once upon a time",))])
    measures = {
        "alias": "x",
        "acc,none": right,
        "acc_stderr,none": 0.5,
        "words,strip": len(text.split()),
        "nats,none": rolling,
    }
    return {
        "results": {task: dict(measures) for task in tasks},
        "n-samples": {task: {"original": 2, "effective": len(asked)} for task in tasks},
        "n-shot": dict.fromkeys(tasks, 0),
        "versions": dict.fromkeys(tasks, 1.0),
    }


def put(monkeypatch: pytest.MonkeyPatch) -> None:
    library, api, model, tasks = (
        ModuleType(n) for n in ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.tasks")
    )
    model.LM = type("LM", (), {})  # type: ignore[attr-defined]
    tasks.TaskManager = Manager  # type: ignore[attr-defined]
    library.api, library.tasks, library.simple_evaluate, api.model = api, tasks, simple_evaluate, model  # type: ignore[attr-defined]
    for module in (library, api, model, tasks):
        monkeypatch.setitem(sys.modules, module.__name__, module)
