"""Settings that cannot be meant are refused or told, by `halter train` and `halter doctor` in the same words."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from own_data import Own
from playground_run import recipe as made

import halter
from halter.cli import main
from halter.errors import HalterError, Refusal
from halter.files.tensors import read_tensors
from halter.files.writing import write_tensors
from halter.generation import belonging
from halter.playground import base_folder
from halter.recipe import dump, load
from halter.run.cautions import TOO_HIGH, VARIABLES, cautions, of_environment, strength, to_lower, usual_rate
from halter.run.ends import beyond_guessing, last_words, strange_share
from halter.run.preflight import ready
from halter.text.tokenizer import other_vocabulary
from halter.training.guards import Guards

PACKAGE = Path(halter.__file__).parent


def both(recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[int], list[str]]:
    """(exit codes, everything said) of doctor and of train."""
    file = tmp_path / f"recipe-{len(list(tmp_path.glob('recipe-*')))}.yaml"
    file.write_text(dump(load(recipe)), "utf-8")
    codes, said = [], []
    for verb in ("doctor", "train"):
        codes.append(main.run([verb, str(file)]))
        said.append("".join(capsys.readouterr()))
    return codes, said


def test_a_rate_that_cannot_be_right_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dim = 256
    for rate in (100.0, 1.01 * TOO_HIGH * usual_rate("lora", dim)):
        codes, said = both(made(tmp_path, learning_rate=rate), tmp_path, capsys)
        assert codes == [2, 2] and all("[learning-rate]" in text for text in said), said
        assert not (tmp_path / "run").exists()
    # The fix, typed as it is printed, trains.
    fix = re.search(r"(--learning-rate \S+?)[.]? To continue", said[1])
    assert fix is not None
    recipe = made(tmp_path, learning_rate=100.0)
    (tmp_path / "r.yaml").write_text(dump(load(recipe)), "utf-8")
    assert main.run(["train", str(tmp_path / "r.yaml"), *fix[1].split()]) == 0
    # The default is never far from what is allowed, for any method.
    from halter.contract.registry import names

    assert all(0 < usual_rate(name, 64) <= usual_rate(name, 16) for name in names())


def test_it_can_be_waived(tmp_path: Path) -> None:
    recipe = made(tmp_path, learning_rate=100.0, max_steps=1)
    run = halter.train(recipe | {"checks": {"allow": ["learning-rate"]}}, say=lambda _: None)
    assert run is not None and "learning-rate" in (run / "waived.json").read_text()


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"warmup_steps": 1000}, "train.warmup_steps is 1000 and the run has 2 steps"),
        ({"eval_steps": 10}, "train.eval_steps does nothing here"),
        ({"save_steps": 10}, "train.save_steps is 10 and the run has 2 steps"),
        ({"weight_decay": 50.0}, "train.weight_decay is 50: what is learned is shrunk away"),
        ({"learning_rate": 1e-9}, "train.learning_rate is 1e-09: nothing will be learned"),
    ],
)
def test_what_does_nothing_is_told(
    train: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, said = both(made(tmp_path, **train), tmp_path, capsys)
    assert codes == [0, 0] and all(f"warning: {told}" in text for text in said), said


def test_a_usual_run_is_not_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes, said = both(made(tmp_path), tmp_path, capsys)
    assert codes == [0, 0] and not any(
        "train." in line for text in said for line in text.splitlines() if "warning" in line
    )


def test_the_variables_are_those_that_are_read() -> None:
    read = set()
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text("utf-8")
        read |= set(re.findall(r"(?:environ(?:\.get)?[(\[]|getenv\(|MARK = |VARIABLE = )\"(HALTER_[A-Z0-9_]+)\"", text))
    assert read <= VARIABLES.keys() and VARIABLES.keys() <= read | {"HALTER_WAITING", "HALTER_SHARED"}, read


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("HALTER_CAHCE", "/tmp", "did you mean HALTER_CACHE?"),
        ("HALTER_CACHE_GB", "abc", "is no number of gigabytes; 20 is taken"),
        ("HALTER_CACHE_GB", "-1", "is no number of gigabytes; 20 is taken"),
        ("HALTER_CACHE", "/proc/nope", "cannot be written"),
        ("HALTER_CACHE", "{file}", "cannot be written"),
    ],
)
def test_variables_that_mean_nothing_are_told(
    name: str,
    value: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "a-file"
    file.write_text("")
    monkeypatch.setenv(name, value.format(file=file))
    codes, said = both(made(tmp_path, max_steps=1), tmp_path, capsys)
    assert codes == [0, 0] and all(told in text for text in said), said
    assert main.run(["doctor"]) == 0 and told in capsys.readouterr().out
    assert of_environment({"HALTER_CACHE_GB": "0", "HOME": "x"}) == []


def broken_base(folder: Path) -> Path:
    shutil.copytree(base_folder(), folder)
    file = folder / "model.safetensors"
    found = read_tensors(file)
    name = next(name for name in found if name.endswith("up_proj.weight"))
    found[name][0, 0] = float("nan")
    write_tensors(file, found, replace=True)
    return folder


def test_a_base_with_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = made(tmp_path)
    recipe["model"]["path"] = str(broken_base(tmp_path / "nan"))
    codes, said = both(recipe, tmp_path, capsys)
    assert codes == [2, 2] and all("[base-not-finite]" in t and "up_proj" in t for t in said), said


def test_a_large_base_with_nan_is_found_at_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from halter.run import checks_shapes

    monkeypatch.setattr(checks_shapes, "MOST_LOOKED_AT", 0)
    recipe = made(tmp_path)
    recipe["model"]["path"] = str(broken_base(tmp_path / "nan"))
    with pytest.raises(Refusal, match="base-not-finite"):
        halter.train(recipe)
    assert not (tmp_path / "run/adapter").exists()


def lost(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """The losses of these steps are not finite."""
    from halter.training import step

    gather = step.gather

    def without(model: Any, trainees: Any, micros: Any, checkpointing: bool = False) -> Any:
        gathered = gather(model, trainees, micros, checkpointing)
        if trainees[0].step + 1 in steps:
            gathered.losses.mul_(float("nan"))
        return gathered

    monkeypatch.setattr(step, "gather", without)


def test_a_run_whose_every_step_was_lost_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost(monkeypatch, {1, 2})
    with pytest.raises(HalterError, match="nothing was learned and nothing is saved"):
        halter.train(made(tmp_path), say=lambda _: None)
    assert not (tmp_path / "run/adapter").exists()


def test_a_run_whose_last_step_was_lost_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost(monkeypatch, {2})
    said: list[str] = []
    assert halter.train(made(tmp_path), say=said.append) is not None
    (line,) = [line for line in said if "not finite" in line and "of 2 steps" in line]
    assert "1 of 2 steps were skipped" in line and "the last 1 of them at the end" in line


def test_a_loss_that_ends_above_its_beginning_is_told() -> None:
    """What a stranger saw: 1.81 at the first step, 13.2, then 7.6 at the end."""
    for losses, told in (([1.81, 13.2, *[7.6] * 6], True), ([1.81, 1.9, *[2.0] * 6], False), ([7.9, 11.0, 7.6], False)):
        guards = Guards()
        for loss in losses:
            guards.judge(loss, 1.0)
        said = list(last_words(SimpleNamespace(guards=guards, step=len(losses))))  # type: ignore[arg-type]
        assert any("training made the model worse" in line for line in said) == told


def test_a_leap_is_seen_from_the_second_step_on() -> None:
    for losses, leap in (([1.81], 13.2), ([1.8, 1.7, 1.9], 13.2), ([0.05], 2.2), ([4.0, 3.0], 17.0)):
        guards = Guards()
        assert [guards.judge(loss, 1.0) for loss in losses] == [""] * len(losses)
        assert guards.judge(leap, 1.0) == "spike", (losses, leap)
    for quiet in ([7.9, 4.1, 2.0, 2.5], [0.05, 0.9, 1.5], [1.8, 3.5, 5.9]):
        guards = Guards()
        assert [guards.judge(loss, 1.0) for loss in quiet] == [""] * len(quiet)


def test_guards_of_earlier_checkpoints_are_read() -> None:
    guards = Guards()
    guards.restore({"losses": [1.0, 2.0], "skipped": 1})
    assert guards.first is None and guards.lost == 0 and guards.losses == [1.0, 2.0]
    again = Guards()
    guards.judge(3.0, 1.0)
    again.restore(guards.state())
    assert again.state() == guards.state() and torch.isfinite(torch.tensor(again.bound()))


def test_a_rank_above_the_width_is_told(tmp_path: Path) -> None:
    """At the playground's base, which is 256 wide."""
    for rank, told in ((256, False), (257, True)):
        job = ready(made(tmp_path) | {"method": {"name": "lora", "r": rank}}, say=lambda _: None)
        assert any("higher rank than that" in line for line in cautions(job)) is told


@pytest.mark.parametrize(
    ("method", "times"),
    [
        ({"name": "lora", "r": 2, "alpha": 400.0}, 100),
        ({"name": "lora", "r": 16, "alpha": 800.0, "rslora": True}, 100),
        ({"name": "loha", "r": 2, "alpha": 200.0}, 100),
        ({"name": "lora", "r": 2, "alpha": 100.0}, 0),
        ({"name": "lora", "r": 64, "alpha": 128.0, "rslora": True}, 0),
        ({"name": "lora", "r": 2}, 0),
    ],
)
def test_an_alpha_that_works_as_a_rate_far_too_high_is_told(method: dict[str, Any], times: int, tmp_path: Path) -> None:
    """s = alpha / r, or alpha / sqrt(r), beside what is default at the same r; Adam's steps are as much larger."""
    recipe = made(tmp_path) | {"method": method}
    del recipe["train"]["learning_rate"]
    job = ready(recipe)
    said = [line for line in cautions(job) if "method.alpha" in line]
    assert len(said) == (times > 0) and all(f"{times} times as much as the default" in line for line in said), said
    assert to_lower(job).startswith(f"method.alpha of {method['name']}") == (strength(job)[1] > 4)
    # A rate that is lowered as much makes up for it.
    recipe["train"]["learning_rate"] = usual_rate(method["name"], job.config.dim) / 100
    assert not any("method.alpha" in line for line in cautions(ready(recipe)))


def test_the_advice_at_the_end_names_what_is_too_high() -> None:
    guards = Guards()
    for loss in (2.5, *[9.3] * 8):
        guards.judge(loss, 1.0)
    trainee: Any = SimpleNamespace(guards=guards, step=9)
    (line,) = last_words(trainee, "method.alpha of lora, whose scale is 3,125 times the default")
    assert line.endswith("lower method.alpha of lora, whose scale is 3,125 times the default")
    assert [line.endswith("lower train.learning_rate") for line in last_words(trainee)] == [True]


def test_a_share_that_holds_most_rows_out_is_told(tmp_path: Path) -> None:
    for share, told in ((0.75, True), (0.25, False)):
        recipe = made(tmp_path)
        recipe["data"]["validation"] = share
        said = [line for line in cautions(ready(recipe)) if "are held out and only" in line]
        assert bool(said) == told
        assert not told or "data.validation is 0.75: 9 rows are held out and only 3 are trained on" in said[0]


def test_a_tokenizer_of_another_model_is_told(
    own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letters' tokenizer over the story model's embedding, as copied into the wrong folder."""
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for folder, names in ((own.base, ("config.json", "model.safetensors")), (own.letters, ("tokenizer*",))):
        for name in names:
            for file in folder.glob(name):
                shutil.copy(file, swapped)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "tell me", "output": "once there was a cat"}\n' * 4, "utf-8")
    monkeypatch.setattr("halter.run.ends.BEYOND", 1.2)
    args = ["--model", str(swapped), "--data", str(rows), "--data.template", "alpaca"]
    for verb in ("train", "doctor", "inspect"):
        more = ["--max-steps", "1", "--method", "lora", "--output", str(tmp_path / "run")] * (verb == "train")
        assert main.run([verb, *args, *more]) == 0
        told = " ".join("".join(capsys.readouterr()).split())
        assert "tokens and the model has" in told and "they hardly belong together" in told, verb
        assert verb != "train" or "warning: the first loss is" in told
    for whole in (own.base, own.letters):
        model, tokenizer = halter.load(str(whole))
        assert not other_vocabulary(tokenizer.vocab_size, model.config.vocab_size)
    # From Python, where the two are given one by one.
    said: list[str] = []
    monkeypatch.setattr("halter.generation.belonging.tell", said.append)
    model, tokenizer = halter.load(str(own.base))
    halter.generate(model, tokenizer, ["once"], max_new_tokens=1)
    assert said == []
    other = halter.load(str(own.letters))[1]
    belonging.told_once.cache_clear()
    for _ in range(2):
        halter.generate(model, other, ["once"], max_new_tokens=1)
    assert len(said) == 1 and "they hardly belong together; answers may be nonsense" in said[0]
    adapter = halter.adapt(model, "lora", r=2)
    adapter.facts["tokenizer"] = {"digest": "0" * 64}
    halter.generate(model, tokenizer, ["once"], adapter, max_new_tokens=1)
    assert len(said) == 2 and "an adapter was trained with another tokenizer (0000000000000000...)" in said[1]


@pytest.mark.parametrize(
    ("loss", "share", "told"),
    [(24.6, 0.9, True), (9.4, 0.71, True), (9.4, 0.7, False), (10.8, 0.3, False), (9.3, 1.0, False), (2.0, 1.0, False)],
)
def test_a_first_loss_beyond_guessing(loss: float, share: float, told: bool) -> None:
    """1.5 ln(512) = 9.357; of the whole rows more than 70 % of the tokens."""
    line = beyond_guessing(loss, 512, lambda: share)
    assert bool(line) == told and (not told or f"the first loss is {loss}" in line and "gives 6.2" in line)


def test_answers_that_a_base_never_saw_are_no_wrong_tokenizer(own: Own) -> None:
    """Of a row in a prompt's own language most tokens are likelier than guessed; of another vocabulary's hardly any."""
    model, tokenizer = halter.load(str(own.base))
    texts = own.stories.read_text("utf-8")[:600]
    rows = [np.array([tokenizer.bos_id, *tokenizer.encode(texts[n : n + 150])]) for n in (0, 150, 300, 450)]
    other = np.random.default_rng(0).permutation(model.config.vocab_size)
    assert strange_share(model, rows) < 0.5 < 0.7 < strange_share(model, [other[row] for row in rows])
    assert strange_share(model, [other[rows[0][:20]]]) == 0.0  # too few to tell


@pytest.mark.parametrize(
    ("tokens", "plan", "told"),
    [
        (4, "steps of 1 row (tokens_per_step is 4, and every row has more tokens)", "--per-device-train-batch-size 4"),
        (1, "steps of 1 row (", "for 1 rows a step"),
        (4000, "steps of at most 4000 tokens", ""),
    ],
)
def test_a_step_of_fewer_tokens_than_a_row_has(
    tokens: int, plan: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed of the steps is so, and of `inspect` and `doctor` too."""
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Say it.", "output": "It is said."}\n' * 6, "utf-8")
    words = ["--model", str(base_folder()), "--data", str(tmp_path / "rows.jsonl")]
    words += ["--tokens-per-step", str(tokens), "--max-steps", "2", "--output", str(tmp_path / "run")]
    for verb in ("inspect", "doctor", "train"):
        assert main.run([verb, *words]) == 0
        said = "".join(capsys.readouterr())
        assert verb != "train" or plan in said, said
        assert ("less than one row" in said) == bool(told) and told in said, said


@pytest.mark.parametrize(("rows", "said"), [(8, True), (7, False)])
def test_answers_that_are_all_the_same_are_told(
    rows: int, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"instruction": f"Say {n}.", "output": "It is said."}) + "\n" for n in range(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(lines), "utf-8")
    words = ["--model", str(base_folder()), "--data", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "run")]
    for verb in ("inspect", "doctor"):
        assert main.run([verb, *words]) == 0
        told = " ".join("".join(capsys.readouterr()).split())
        assert (f"all {rows} rows learn the same answer, 'It is said.'" in told) == said, told
