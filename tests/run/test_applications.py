"""The applications' recipes, guides and record belong together, and one of them trains."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from halter import recipe as recipes

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import application_data  # noqa: E402
import application_pages  # noqa: E402
import applications  # noqa: E402

RECIPES = sorted((ROOT / "recipes" / "applications").glob("*.yaml"))
NAMES = sorted(applications.APPLICATIONS)
PAGES = ROOT / "docs" / "applications"
RECORD = json.loads((PAGES / "record.json").read_text("utf-8"))


def test_every_recipe_is_an_application_with_its_scores() -> None:
    assert len(RECIPES) >= 7 and {applications.recipe_of(name) for name in NAMES} == set(RECIPES)
    assert sorted(RECORD) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_read_and_names_its_guide(name: str) -> None:
    one, file = applications.APPLICATIONS[name], applications.recipe_of(name)
    recipe = recipes.load(str(file))
    assert recipe.train.max_steps and recipe.data.validation and recipe.output_dir == f"runs/{file.stem}"
    (named,) = re.findall(r"docs/applications/[\w-]+\.md", file.read_text("utf-8"))
    assert (ROOT / named).is_file() and Path(named).stem == one.guide
    assert recipe.data.train == f"{applications.PREPARED}/{one.learns}/train.jsonl"
    tests = {other.test for key, other in applications.APPLICATIONS.items() if applications.recipe_of(key) == file}
    assert recipe.data.validation in {f"{applications.PREPARED}/{test}/test.jsonl" for test in tests}


@pytest.mark.parametrize("name", NAMES)
def test_guide_and_overview_give_recipe_measures_and_scores(name: str) -> None:
    one, file, figures = applications.APPLICATIONS[name], applications.recipe_of(name), RECORD[name]
    guide = (PAGES / f"{one.guide}.md").read_text("utf-8")
    for page in (guide, (PAGES / "README.md").read_text("utf-8")):
        assert f"recipes/applications/{file.name}" in page and figures["date"] in page and figures["machine"] in page
        for measure, figure in figures["measures"].items():
            title, *scores = application_pages.scores(measure, figure)
            assert f"| {title} | {' | '.join(scores)} |" in page
    assert tuple(figures["measures"]) == one.measures
    assert figures["steps"] == recipes.load(str(file)).train.max_steps
    assert figures["seconds"] < 1500  # ten minutes on two quiet cores, told with the machine's other work


def test_chance_is_the_next_questions_answer() -> None:
    wanted = ["3 (clause 1).", "4 (clause 1).", "4 (clause 2)."]
    assert applications.by_chance("exact_match", wanted) == 0
    assert applications.by_chance("last_number", wanted) == pytest.approx(1 / 3)  # 1 for 1, 2 for 1, 1 for 2
    assert applications.by_chance("token_f1", wanted) == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3)
    wanted = ["kind: offer\nday: Monday", "kind: offer\nday: Friday"]
    assert applications.by_chance("field_f1", wanted) == 1 / 2


def test_the_blind_are_asked_without_the_paper() -> None:
    row = {
        "messages": [{"role": "user", "content": "OFFER\n\nSUM 3\n\nWhich?"}, {"role": "assistant", "content": "a: b"}]
    }
    asked = {"messages": [{"role": "user", "content": "Which?"}, row["messages"][1]]}
    assert applications.withheld(row, "\n\n") == asked and row["messages"][0]["content"].startswith("OFFER")


def test_words_that_a_story_was_to_use() -> None:
    rows = [{"input": "dog, rain"}, {"input": "cat"}]
    assert application_data.words_used(["Dogs like the train.", "A vacation with a cat."], rows) == pytest.approx(2 / 3)
    assert application_data.words_used(["The rain!", "A vacation."], rows) == pytest.approx(1 / 3)


def test_one_trains_and_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of the smallest on the playground, by the script that makes the table."""
    monkeypatch.setattr(application_data, "TRAIN_ROWS", 40)
    monkeypatch.setattr(application_data, "TEST_ROWS", 6)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    application_data.prepare(tmp_path / "data", None)
    figures = applications.run("language", tmp_path / "data", 2, tmp_path)
    assert figures["steps"] == 2 and figures["rows"] == figures["answers"] == 6
    loss = figures["measures"]["loss"]
    assert loss["adapted"] < loss["base"] and 0 <= figures["measures"]["chrf"]["adapted"] <= 100
