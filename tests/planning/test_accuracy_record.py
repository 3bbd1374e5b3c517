"""The plan of today against the memory that processes took when it was measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "plan_accuracy.py"


@pytest.mark.nightly
def test_every_measured_cell_is_within_a_tenth() -> None:
    spec = importlib.util.spec_from_file_location("plan_accuracy", FILE)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    lines = script.record()
    assert len(lines) >= 16
    for line in lines:
        planned = script.predict(script.cells()[line["name"]], line["device"])["total"]
        assert line["measured"] > script.LEAST
        assert planned == pytest.approx(line["measured"], rel=0.1), line["name"]
