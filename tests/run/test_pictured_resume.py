"""A run over rows of which some have pictures, stopped anywhere and resumed, ends with the bits of one that was not."""

from __future__ import annotations

import json

import pytest
import seeing
import sighted
from test_exact_resume import POINTS, STEPS, check

from tests.comparison import small

pytestmark = pytest.mark.usefixtures("small_encoder")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("HALTER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "source"
    source = small.source(folder)
    for part, count in (("train", 24), ("val", 4)):
        rows = [json.loads(line) for line in (folder / f"{part}.jsonl").read_text().splitlines()][:count]
        for n, row in enumerate(rows):
            (folder / f"{n % 4}.png").write_bytes(seeing.saved(seeing.pixels(n % 4, 20, 24)))
            row |= {} if n % 3 == 0 else {"image": f"{n % 4}.png"}
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(case, output):
        train = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": STEPS}
        train |= {"learning_rate": 1e-3, "eval_steps": 3, "save_steps": 2, "early_stopping_patience": 50}
        method = {"name": sighted.name_of(case), **sighted.options_of(case)}
        return {**source, "method": method, "train": train, "output_dir": str(tmp_path / output)}

    return make


def test_a_resumed_run_ends_with_the_same_bits(recipe, monkeypatch):
    check(recipe, sighted.SEEING[0], POINTS[0], monkeypatch)
    check(lambda case, output: recipe(case, f"{output}-again"), sighted.SEEING[-1], POINTS[1], monkeypatch)


@pytest.mark.nightly
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("case", sighted.SEEING)
def test_every_case_at_every_point(recipe, case, point, monkeypatch):
    check(recipe, case, point, monkeypatch)
