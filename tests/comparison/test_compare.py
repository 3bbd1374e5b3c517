"""Whole comparisons of tiny runs: what is in the record, what is never run twice, what an interrupt leaves."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import halter
from halter.adapters.loading import load_adapter
from halter.adapters.saving import state_of
from halter.comparison import runner, search
from halter.comparison.report.facts import ReportFacts
from halter.comparison.report.writing import markdown
from halter.comparison.setup import ComparedMethod, set_up
from halter.comparison.training_runs import train_runs
from halter.data.load import load_examples
from halter.data.options import DataOptions
from halter.errors import Refusal
from halter.evaluation.choices import choice_report
from halter.pretrained.load import load_model
from tests.comparison import small
from tests.evaluation import fake_lm_eval


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small.source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, recipe: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """One comparison, with general text."""
    folder = tmp_path_factory.mktemp("done")
    general = folder / "general.jsonl"
    general.write_text("".join(json.dumps({"text": t}) + "\n" for t in small.tiny_tokenizers.SENTENCES[:4]))
    return folder, small.run(folder, recipe, general=str(general))[0]


def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs every call of the trainer gets from now on."""
    counts: list[int] = []

    def counted(model: Any, jobs: Any, looks: int) -> Any:
        counts.append(len(jobs))
        return train_runs(model, jobs, looks)

    monkeypatch.setattr(runner, "train_runs", counted)
    return counts


def test_the_record_holds_what_was_measured(done: tuple[Path, dict[str, Any]]) -> None:
    folder, record = done
    assert json.loads((folder / "out" / "record.json").read_text()) == json.loads(json.dumps(record))
    base, lora, adapter = record["rows"]
    assert [row["name"] for row in record["rows"]] == ["base", "lora", "llama_adapter"]
    assert base["seeds"] == [] and base["mean"]["test_loss"] > lora["mean"]["test_loss"]
    assert lora["status"] == adapter["status"] == "done" and lora["precision"] == "float32"
    assert (lora["mergeable"], adapter["mergeable"]) == (True, False) and adapter["merge_gap"] is None
    assert 0 <= lora["merge_gap"] < 1e-6
    assert lora["trainable"] == 16 * (4 * 32 + 3 * 40) * 2  # r (in + out) of q, k, v, o and gate, up, down, two layers
    for row in (lora, adapter):
        losses = [seed["test_loss"] for seed in row["seeds"]]
        assert [seed["seed"] for seed in row["seeds"]] == [0, 1] and losses[0] != losses[1]
        assert row["mean"]["test_loss"] == pytest.approx(np.mean(losses))
        assert row["spread"]["test_loss"] == pytest.approx(np.std(losses, ddof=1))
        low, high = row["interval"]["test_loss"]
        assert low <= row["mean"]["test_loss"] <= high
        assert row["seeds"][0]["curve"][0]["step"] == 0 and row["seeds"][0]["curve"][-1]["tokens"] > 400
        assert row["decode_tokens_per_second"] > 0 and row["compressed_loss"] == pytest.approx(losses[0], rel=0.1)
    assert 0 < lora["compressed_bytes"] < lora["adapter_bytes"] / 2
    assert len({trial["tokens"] for trial in lora["search"]}) == 1 and 2 <= len(lora["search"]) <= 2 + search.WIDER


def test_forgetting_is_what_the_general_text_lost(done: tuple[Path, dict[str, Any]]) -> None:
    """The same by hand, over the files that it left."""
    folder, record = done
    out = folder / "out"
    path = record["base"]["name"]
    model, tokenizer = halter.load(path, "float32", device="cpu", say=lambda _: None)
    adapter = load_adapter(out / "adapters" / "lora", model)

    def loss(on: Any) -> float:
        total, count = 0.0, 0
        for line in (out / "data" / "general.jsonl").read_text().splitlines():
            ids = [tokenizer.bos_id, *tokenizer.encode(json.loads(line)["text"]), *tokenizer.stop_ids[:0]]
            tokens = torch.tensor([ids])
            logits = model(tokens, adapter=on)[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum").item()
            count += len(ids) - 1
        return total / count

    # Its rows end in an end of text, which these do not; what is lost is much the same.
    assert record["rows"][1]["seeds"][0]["forgetting"] == pytest.approx(loss(adapter) - loss(None), abs=0.2)


def test_the_same_again_runs_nothing(
    done: tuple[Path, dict[str, Any]], recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record = done
    counts = trained(monkeypatch)
    monkeypatch.setattr(runner.Bases, "get", None)  # nobody asks for the base either
    again, _ = small.run(folder, recipe, general=str(folder / "general.jsonl"))
    assert counts == [] and again["rows"] == record["rows"] and again["ties"] == record["ties"]


def test_costs_are_those_of_the_row_whatever_lies_there(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another comparison in the same folder has put its own adapter in the place; then the place is empty."""
    one, _ = small.run(tmp_path, recipe, methods=("lora",), seeds=1)
    (costs,) = (p for p in (tmp_path / "out" / "trials").iterdir() if '"kind": "costs"' in p.read_text())
    costs.unlink()
    small.run(tmp_path, recipe, methods=("lora",), seeds=1, tokens=300)
    for again in (1, 2):
        counts = trained(monkeypatch)
        found, _ = small.run(tmp_path, recipe, methods=("lora",), seeds=1)
        assert counts == [1] and found["rows"][1]["compressed_loss"] == one["rows"][1]["compressed_loss"], again
        costs.unlink()
        shutil.rmtree(tmp_path / "out" / "adapters")


def test_an_interrupt_loses_only_the_trial_under_way(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"methods": ("lora",), "search_trials": 3}
    calls: list[int] = []

    def interrupted(model: Any, jobs: Any, looks: int) -> Any:
        calls.append(1)
        if len(calls) == 7:  # three trials, two, the first seed, and here the second
            raise KeyboardInterrupt
        return train_runs(model, jobs, looks)

    monkeypatch.setattr(search, "WIDER", 0)  # as many trials wherever the best rate lies
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "train_runs", interrupted)
        small.run(tmp_path, recipe, **changes)
    partial = json.loads((tmp_path / "out" / "record.json").read_text())
    assert len(list((tmp_path / "out" / "trials").iterdir())) == 7  # the base's too
    counts = trained(monkeypatch)
    record, _ = small.run(tmp_path, recipe, **changes)
    assert counts == [1] and len(record["rows"][1]["seeds"]) == 2
    assert partial["rows"][0] == record["rows"][0]
    (tmp_path / "whole").mkdir()
    whole, _ = small.run(tmp_path / "whole", recipe, **changes)
    assert whole["rows"][1]["mean"] == record["rows"][1]["mean"]


def test_more_seeds_later_run_only_the_new_ones(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small.run(tmp_path, recipe, methods=("lora",))
    counts = trained(monkeypatch)
    record, _ = small.run(tmp_path, recipe, methods=("lora",), seeds=3)
    assert counts == [1] and [seed["seed"] for seed in record["rows"][1]["seeds"]] == [0, 1, 2]


def test_trials_at_once_are_the_trials_one_by_one(tmp_path: Path, recipe: dict[str, Any]) -> None:
    setup = set_up(recipe, {"name": "lora"}, small.options(tmp_path), tmp_path / "out", lambda _: None)
    model, who = setup.load_base("float32"), ComparedMethod("lora", {"name": "lora"}, "float32")
    rates = (1e-3, 1e-2, 1e-1)
    together = train_runs(model, [setup.job_for(who, rate, 0, 300, 3) for rate in rates], 1)
    alone = [train_runs(model, [setup.job_for(who, rate, 0, 300)], 1)[0] for rate in rates]
    assert [run.loss for run in together] == pytest.approx([run.loss for run in alone], rel=1e-5)
    assert len({run.loss for run in alone}) == 3


def test_a_recipe_of_a_row_runs_it_again(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """halter train with the row's recipe gives the row's adapter."""
    folder, record = done
    out = folder / "out"
    run = halter.train(str(out / record["rows"][1]["recipe"]), [f"output_dir={tmp_path / 'run'}"], say=lambda _: None)
    assert run is not None
    model = load_model(record["base"]["name"], "float32", None, "cpu", say=lambda _: None)
    one, other = (state_of(load_adapter(path, model)) for path in (out / "adapters" / "lora", run / "adapter"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_fails_harms_itself_alone(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate that overflows at once: its trials fail, the other methods go on."""
    broken = {"hot": {"name": "lora", "init_from": None, "alpha": 1e38}}
    record, _ = small.run(tmp_path, recipe, methods=("hot", "llama_adapter"), seeds=1, variants=broken)
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["hot"]["status"] == "failed" and rows["hot"]["why"]
    assert rows["llama_adapter"]["status"] == "done" and len(record["rows"]) == 3


def test_hybrids_variants_and_precisions(tmp_path: Path, recipe: dict[str, Any]) -> None:
    methods = ("lora+excitor", "tiny", "full")
    record, _ = small.run(
        tmp_path,
        recipe,
        methods=methods,
        precisions=("float32", "nf4"),
        seeds=1,
        search_trials=1,
        variants={"tiny": {"name": "lora", "r": 1, "alpha": 1}},
    )
    rows = {row["name"]: row for row in record["rows"]}
    assert " ".join(rows) == "base lora+excitor tiny full base-nf4 lora+excitor-nf4 tiny-nf4 full-nf4"
    assert [m["name"] for m in rows["lora+excitor"]["method"]] == ["lora", "excitor"]
    assert rows["tiny"]["trainable"] * 16 == (4 * 32 + 3 * 40) * 2 * 16 and rows["tiny-nf4"]["precision"] == "nf4"
    assert rows["full-nf4"]["status"] == "left out" and "nf4" in rows["full-nf4"]["why"]
    assert rows["full"]["share"] == 1.0 and rows["full"]["mergeable"]
    assert rows["tiny"]["method"] == rows["tiny-nf4"]["method"]


def test_8_bits_are_a_precision_of_their_own(tmp_path: Path, recipe: dict[str, Any]) -> None:
    record, _ = small.run(tmp_path, recipe, methods=("lora", "full"), precisions=("int8",), seeds=1, search_trials=1)
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["lora"]["status"] == "done" and rows["lora"]["precision"] == rows["base"]["precision"] == "int8"
    assert "int8 holds in 8 bits" in rows["full"]["why"]


def test_refusals_name_all_that_is_wrong(tmp_path: Path, recipe: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match="unknown-method") as caught:
        small.run(tmp_path, recipe, methods=("lora", "loar", "lora+exitor"))
    assert set(caught.value.found) == {"loar", "exitor"}
    with pytest.raises(Refusal, match="compare-options") as caught:
        small.options(tmp_path, seeds=0, precisions=("fp4",), tokens=-1)
    assert len(caught.value.found) == 3
    with pytest.raises(Refusal, match="compare-data") as caught:
        small.run(tmp_path, recipe, test=None)
    assert caught.value.found == () and "compare.test is not given" in str(caught.value)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(Refusal, match="compare-data") as caught:
        small.run(tmp_path, recipe, test=str(tmp_path / "empty.jsonl"), general=str(tmp_path / "empty.jsonl"))
    assert caught.value.found == ("test", "general")


def test_choice_accuracy_is_that_of_evaluate(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row's adapter, scored by `halter evaluate`'s own report; choices that do not fit are refused untrained."""
    record, _ = small.run(tmp_path, recipe, methods=("lora",), choices=small.WORDS, tokens=2400)
    base, lora = record["rows"]
    model, tokenizer = halter.load(record["base"]["name"], "float32", device="cpu", say=lambda _: None)
    rows = load_examples(DataOptions(train=str(tmp_path / "out" / "data" / "test.jsonl")), tokenizer, None, 0).train
    adapter = load_adapter(tmp_path / "out" / "adapters" / "lora", model)
    report = choice_report(model, tokenizer, rows, small.WORDS, adapter)
    assert record["choices"] == {key: report[key] for key in ("choices", "questions", "wanted", "chance", "majority")}
    assert base["mean"]["choice_accuracy"] == report["base"]["choice_accuracy"]
    assert lora["seeds"][0]["scores"]["choice_accuracy"] == report["adapter"]["choice_accuracy"]
    assert lora["mean"]["choice_accuracy"] > base["mean"]["choice_accuracy"]
    low, high = lora["interval"]["choice_accuracy"]
    assert low <= lora["mean"]["choice_accuracy"] <= high and "choice_accuracy" in record["ties_by"]
    assert any("Choice accuracy: " in verdict["figures"] for verdict in record["verdicts"]) is False  # lora alone
    counts = trained(monkeypatch)
    with pytest.raises(Refusal, match="not-a-choice"):
        small.run(tmp_path, recipe, methods=("lora",), choices=("park", "girl"))
    assert counts == []


def test_tasks_of_lm_eval_are_scored_beside_the_rest(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "lm_eval", None)
        counts = trained(without)
        with pytest.raises(Refusal, match="extra-missing"):
            small.run(tmp_path, recipe, methods=("lora",), tasks=("little",), seeds=2)
        assert counts == []
    fake_lm_eval.put(monkeypatch)
    record, _ = small.run(tmp_path, recipe, methods=("lora",), tasks=("little",), seeds=2, task_limit=1)
    base, lora = record["rows"]
    nats = [seed["scores"]["little/nats"] for seed in lora["seeds"]]
    assert (
        lora["mean"]["little/nats"] == pytest.approx(np.mean(nats)) and len({*nats, base["mean"]["little/nats"]}) == 3
    )
    assert record["tasks"] == {"little": {"rows": 1, "fewshot": 0, "version": 1.0}}
    assert "little/acc" in markdown(ReportFacts(record)) and "exact_match" in lora["mean"]


def test_a_rate_that_the_recipe_gives_is_where_the_search_begins(tmp_path: Path, recipe: dict[str, Any]) -> None:
    given = {**recipe, "train": {**recipe["train"], "learning_rate": 0.02}}
    record, _ = small.run(tmp_path, given, methods=("lora",), seeds=1)
    assert [trial["learning_rate"] for trial in record["rows"][1]["search"]][:2] == [0.02, 0.06]
