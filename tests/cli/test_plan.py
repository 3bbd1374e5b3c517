"""halter plan: figures without weights, from flags and from a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import halter
from halter.cli import main
from halter.recipe import as_data
from halter.run import planned


def test_a_preset_is_planned_from_flags_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["plan", "--model", "llama-3.2-1b", "--method", "qlora", "--max-length", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trainable"]["total"] == 45_088_768 == sum(found["trainable"]["by_place"].values())
    assert found["model"]["quantize"] == "nf4" and found["pass"]["length"] == 64
    assert found["training_bytes"]["constants"] > 0
    parts = {key: value for key, value in found["training_bytes"].items() if key != "total"}
    assert found["training_bytes"]["total"] == sum(parts.values())


def test_a_folder_without_weights_and_a_recipe_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from halter.model.config import preset

    (tmp_path / "config.json").write_text(json.dumps(preset("llama-3.2-1b").to_hf()))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {tmp_path}\nmethod: {{name: lora, r: 4}}\ntrain: {{micro_tokens: 64}}\n")
    assert main.run(["plan", str(recipe), "--max-length", "32"]) == 0
    said = capsys.readouterr().out
    assert "trainable: 2,818,048 " in said and "rows of 32 tokens" in said


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--model", "llama-9"], "no-model"), ([], "recipe"), (["--model", "llama-3-8b", "--method", "x"], "recipe")],
)
def test_mistakes_are_told(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["plan", *words]) == 2
    assert f"[{named}]" in capsys.readouterr().err


def test_a_budget_gives_a_ranking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from halter.planning import fit
    from tests import tiny

    monkeypatch.setattr(fit, "names", lambda: ("excitor", "full", "lora"))
    (tmp_path / "config.json").write_text(json.dumps(tiny.config(layers=2).to_hf()))
    words = ["plan", "--model", str(tmp_path), "--max-length", "32", "--memory", "2MB", "--on", "rtx-4090"]
    assert main.run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["budget"]["bytes"] == 2_000_000 and found["budget"]["source"] == "given"
    assert {choice["method"] for choice in found["choices"]} == {"lora", "full", "excitor"}
    assert found["seconds_per_1000_tokens"]["training"] > 0
    assert main.run(words) == 0
    said = capsys.readouterr().out
    assert "choices within 2.00 MB" in said and "published" in said and "memory, 2.00 MB given: training" in said


@pytest.mark.parametrize("amount", ["400KB", "400MB"])
def test_a_plan_for_given_memory_is_the_same_on_every_machine(
    amount: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from halter.planning import fit
    from tests import tiny

    monkeypatch.setattr(fit, "names", lambda: ("lora",))
    (tmp_path / "config.json").write_text(json.dumps(tiny.config(layers=2).to_hf()))
    words = ["plan", "--model", str(tmp_path), "--max-length", "32", "--device", "cpu", "--memory", amount, "--json"]
    said = []
    for free in (1, 2**50):
        monkeypatch.setattr("halter.training.memory.available_bytes", lambda free=free: free)
        assert main.run(words) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]
    assert said[0]["pass"]["checkpointing"] is (amount == "400KB")


def test_the_survey_s_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from halter.model.families import published_names
    from halter.planning import survey

    assert main.run(["plan", "--table", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(survey, "table", lambda: found)  # it takes a third of a minute
    assert [row["true"] for row in found["rows"]] == [4_194_304, 159_907_840, 1_229_760, 2_764_800, 7_618_590]
    assert list(found["presets"]) == published_names() and "llama-3.1-405b" in found["presets"]
    assert main.run(["plan", "--table"]) == 0
    assert "about 2.5M, 0.036 %; true is 4,194,304 (0.0622%)" in capsys.readouterr().out


@pytest.mark.parametrize("on", ["rtx-4090", "h100-sxm", None])
@pytest.mark.parametrize("model", ["llama-3.2-1b", "llama-3.1-8b", "llama-2-13b"])
def test_the_command_and_halter_plan_ask_the_same_question(model, on, monkeypatch, capsys):
    """Both go through one function: the same recipe, budget and device reach it, with the same defaults."""
    asked = []
    answer = SimpleNamespace(as_dict=dict)
    monkeypatch.setattr(planned, "plan", lambda *given, tell: asked.append(given) or answer)
    for method, more in (("lora", []), ("qlora", ["method.r=8"]), ("full", ["data.max_length=512"])):
        where = ["--on", on] if on else ["--memory", "8GB"]
        assert main.run(["plan", "--model", model, "--method", method, "--json", *where, *more]) == 0
        named = {"on": on} if on else {"memory": "8GB"}
        halter.plan({"model": model, "method": method}, more, **named)
        halter.plan(overrides=[f"model.path={model}", f"method.name={method}", *more], **named)
    capsys.readouterr()
    for n in range(0, len(asked), 3):
        first, *others = ((as_data(recipe), *rest) for recipe, *rest in asked[n : n + 3])
        assert all(other == first for other in others)


@pytest.fixture
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, whose CPU has no bf16, and a ranking of one method."""
    from halter.planning import fit
    from halter.pretrained import device

    monkeypatch.setattr(device, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(fit, "names", lambda: ("lora",))


@pytest.mark.usefixtures("no_bf16")
@pytest.mark.parametrize(
    ("stored", "words", "dtype", "told"),
    [
        ("bfloat16", ["--on", "rtx-4090"], "bfloat16", ""),
        ("bfloat16", ["--on", "rtx-4090", "--device", "cpu"], "bfloat16", ""),
        ("bfloat16", ["--on", "t4"], "float16", "which this GPU has not: planned in float16"),
        ("float16", ["--on", "t4"], "float16", ""),
        ("bfloat16", ["--on", "rtx-4090", "--dtype", "float32"], "float32", ""),
        ("bfloat16", ["--memory", "24GB"], "bfloat16", "this CPU would take float32: --device cpu"),
        ("bfloat16", ["--memory", "24GB", "--device", "cuda"], "bfloat16", "--device cpu"),
        ("bfloat16", ["--memory", "24GB", "--device", "cpu"], "float32", "computing in float32"),
        ("bfloat16", [], "float32", "computing in float32"),
    ],
)
def test_a_plan_for_a_gpu_has_the_gpu_s_dtype_whatever_this_cpu_can(
    stored: str, words: list[str], dtype: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests import tiny

    (tmp_path / "config.json").write_text(json.dumps(tiny.config(layers=2, dtype=stored).to_hf()))
    assert main.run(["plan", "--model", str(tmp_path), "--max-length", "16", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["dtype"] == dtype
    assert told in found["note"] and bool(told) == bool(found["note"])


@pytest.mark.usefixtures("no_bf16")
def test_the_first_plan_of_the_readme_prints_its_ranked_table_on_every_machine(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "halter plan --model llama-3.1-8b --memory 8GB " in Path("README.md").read_text("utf-8")
    assert main.run("plan --model llama-3.1-8b --memory 8GB".split()) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "choices within 8.00 GB" in said and "lora nf4" in said
    assert "note: planned in bfloat16, for a GPU of that memory" in said
