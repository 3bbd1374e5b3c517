"""Methods that see otherwise, or nothing, in one comparison: the same rows for all, as each of them sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import seeing
import sighted

from halter.adapters.adapter import adapt
from halter.comparison.scores import EvaluationSuite, evaluate_on
from halter.comparison.setup import ComparedMethod, most_seeing, set_up
from halter.evaluation.pictured import seen_as
from tests.comparison import small

pytestmark = pytest.mark.usefixtures("small_encoder")
SECTIONS: dict[str, Any] = {
    "blind": {"name": "lora", "r": 2},
    "everywhere": {"name": "llama_adapter", "encoder": sighted.NAMED},
    "tokens": {"name": "projector", "encoder": sighted.NAMED},
    "both": [{"name": "projector", "encoder": sighted.NAMED}, {"name": "lora", "r": 2}],
}
TOKENS = {"blind": 0, "everywhere": 0, "tokens": 4, "both": 4}


def pictured(path: Path, start: int, count: int) -> str:
    """Rows of a question each, all but every third with one of four pictures."""
    lines = []
    for n in range(start, start + count):
        (path.parent / f"{n % 4}.png").write_bytes(seeing.saved(seeing.pixels(n % 4, 20, 24)))
        row = {"prompt": f"{n} {small.WORDS[n % 6]}", "completion": f" {small.WORDS[n % 6]}"}
        lines.append(row if n % 3 == 0 else {**row, "image": f"{n % 4}.png"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("source")
    made = small.source(folder)
    pictured(folder / "test.jsonl", 200, 9)
    files = {"train": pictured(folder / "train.jsonl", 0, 30), "validation": pictured(folder / "val.jsonl", 100, 6)}
    made["data"] = files
    return made


@pytest.mark.parametrize("first", ["blind", "tokens"])
def test_all_train_and_are_scored_on_the_same_rows(source: dict[str, Any], first: str, tmp_path: Path) -> None:
    order = sorted(SECTIONS, key=lambda name: name != first)
    entered = [ComparedMethod(name, SECTIONS[name], "float32") for name in order]
    most = most_seeing(source, entered)
    assert most in (SECTIONS["tokens"], SECTIONS["both"])
    test = str(Path(source["data"]["train"]).parent / "test.jsonl")
    options = small.options(tmp_path, test=test)
    setup = set_up(source, most, options, tmp_path / "out", lambda _: None)
    model = setup.load_base("float32")
    suite = EvaluationSuite(setup.job.tokenizer, setup.test, (), 3, 2, 512)
    kept: dict[str, Any] = {}
    for entry in entered:
        job = setup.job_for(entry, None, 0, 600)
        sees = entry.name != "blind"
        for part in ("train", "validation"):
            rows = getattr(job.data, part)
            words = [row.seen_by(None) for row in rows]
            told = [(one.tokens.tolist(), one.supervised.tolist(), row.origin) for one, row in zip(words, rows)]
            pictures = [[one.digest for one in row.pictures] for row in rows]
            assert told == kept.setdefault(part, told)
            assert pictures == (kept.setdefault(f"{part} pictures", pictures) if sees else [[]] * len(rows))
            for row, one in zip(rows, words, strict=True):
                assert len(row.tokens) == len(one.tokens) + TOKENS[entry.name] * len(row.pictures)
        adapter = adapt(model, [choice.options for choice in job.recipe.methods])
        asked = seen_as(setup.test, model, adapter)
        words_of_test = [row.seen_by(None).tokens.tolist() for row in asked]
        assert words_of_test == kept.setdefault("test", words_of_test)
        assert [bool(row.pictures) and sees for row in setup.test] == [bool(row.pictures) for row in asked]
        found = evaluate_on(model, suite, adapter)
        assert found["test_loss"] > 0 and len(found["by_row"]) == 9
    assert sum(map(bool, kept["train pictures"])) == 20
    base = evaluate_on(model, suite, None)
    assert base["test_loss"] > 0
