"""What is wrong is named, and what to type instead is right: each hint with a command in it is followed as printed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playground_run import finished, write_rows

import halter
from halter.adapters.loading import load_adapter
from halter.cli import main
from halter.files.locks import held
from halter.files.runs import RunFolder
from halter.files.tensors import read_tensors
from halter.model.families import ANNOUNCED, published_names
from halter.playground import base_folder
from halter.pretrained.load import load_model

BASE = str(base_folder())
FEW = ["--max-steps", "1", "--per-device-train-batch-size", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which somebody works: runs/mine (finished), runs/half (not), models/, rows."""
    folder = tmp_path_factory.mktemp("place")
    finished(folder, "runs/mine")
    finished(folder, "runs/half", save_steps=1)
    shutil.rmtree(folder / "runs/half/adapter")
    for name in ("small", "other"):
        shutil.copytree(base_folder(), folder / "models" / name)
    write_rows(folder / "rows.jsonl", 4)
    (folder / "models/bare").mkdir()
    shutil.copy(base_folder() / "config.json", folder / "models/bare")
    shutil.copytree(base_folder(), folder / "models/headless")
    (folder / "models/headless/config.json").unlink()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 6000000\n"
    for name, file in (("lfs", "model.safetensors"), ("lfs2", "tokenizer.json")):
        shutil.copytree(base_folder(), folder / "models" / name)
        (folder / "models" / name / file).write_text(pointer)
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = main.run(list(words))
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err and len(err.splitlines()) <= 6, err
    return err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train --resume --output runs/nope", "there is no such folder"),
        ("train --resume --output runs/haf", "did you mean runs/half?"),
        ("train --resume", "halter train --resume --output runs/half"),
        ("train --model runs/mine --data rows.jsonl", f"--model {BASE} --init-from runs/mine"),
        ("train --model runs/mine/adapter --data rows.jsonl", f"--model {BASE} --init-from runs/mine/adapter"),
        ("train --model models --data rows.jsonl", "name one of these: models/"),
        ("train --model runs --data rows.jsonl", "name one of these: runs/half, runs/mine"),
        ("train --model models/smal --data rows.jsonl", "did you mean models/small?"),
        ("train --model models/bare --data rows.jsonl", "the weights are missing"),
        ("train --model models/lfs --data rows.jsonl", "cd models/lfs && git lfs pull"),
        ("train --model models/lfs2 --data rows.jsonl", "cd models/lfs2 && git lfs pull"),
        ("train --model llama-3.1-8b --data rows.jsonl", "--model meta-llama/Llama-3.1-8B"),
        ("train --model models/small --data rows.jsonl --init-from runs/mien", "did you mean runs/mine?"),
        ("train --model models/small --data rows.jsonl --output runs/mine", "this folder holds a finished run"),
        ("train --model models/small --data rows.jsonl --output runs/half", "this folder holds an unfinished run"),
        ("generate --model models/small --adapter runs/mien --prompt hi", "did you mean runs/mine?"),
        ("generate --model models/small --adapter models/small --prompt hi", "a model, not an adapter"),
        ("generate --model models/small --adapter runs --prompt hi", "runs/half, runs/mine"),
        ("generate runs --prompt hi", "name one of these: runs/half, runs/mine"),
        ("generate runs/mien --prompt hi", "did you mean runs/mine?"),
        ("generate runs/half --prompt hi", "halter train --resume --output runs/half"),
        ("generate models --prompt hi", "models/"),
        ("generate llama-3.2-1b --prompt hi", "meta-llama/Llama-3.2-1B"),
        ("chat runs", "name one of these: runs/half, runs/mine"),
        ("evaluate runs --data rows.jsonl", "name one of these"),
        ("merge runs --output merged", "name one of these"),
        ("train --model models/headless --data rows.jsonl", "model.safetensors is there and config.json is missing"),
        ("chat runs/half/chekpoints", "did you mean runs/half?"),
        ("chat runs/mine/chekpoints", "did you mean runs/mine?"),
        ("train --model models/small --data rows.jsonl --output models/small", "Found: README.md"),
        ("adapters show runs/mien", "did you mean runs/mine?"),
        ("doctor --model models/lfs --data rows.jsonl", "git lfs pull"),
        ("doctor --model models/bare --data rows.jsonl", "the weights are missing"),
    ],
)
def test_it_is_named(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = said(capsys, *words.split())
    assert told in err, err


def test_no_name_of_a_shape_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from halter.files import hub

    monkeypatch.setattr(hub, "_fetch", lambda *_: pytest.fail("the hub was asked"))
    for name in (*published_names(), *ANNOUNCED):
        assert main.run(["generate", name, "--prompt", "hi"]) == 2


def test_going_on_from_a_run_as_the_hint_says(capsys: pytest.CaptureFixture[str]) -> None:
    err = said(capsys, "train", "--model", "runs/mine", "--data", "rows.jsonl")
    hint = re.search(r"(--model \S+ --init-from \S+?)\. \[", err)
    assert hint is not None
    assert (
        main.run(["train", *shlex.split(hint[1]), "--data", "rows.jsonl", "--r", "2", "--output", "runs/on", *FEW]) == 0
    )
    assert "starts from" in capsys.readouterr().err or RunFolder("runs/on").finished


def test_the_unfinished_run_is_resumed_as_the_hint_says(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "runs/half", tmp_path / "runs/half")
    monkeypatch.chdir(tmp_path)
    err = said(capsys, "train", "--resume")
    command = re.search(r"Fix: halter (train --resume --output \S+?)\. \[", err)
    assert command is not None and main.run(shlex.split(command[1])) == 0
    assert RunFolder("runs/half").finished


def test_a_run_stands_for_its_adapter_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(BASE, "float32", device="cpu")
    assert load_adapter("runs/mine", model).num_trainable == load_adapter("runs/mine/adapter", model).num_trainable
    assert halter.load_adapter("runs/mine", model) is not None
    for words in (
        "generate --model models/small --adapter runs/mine --prompt hi --max-new-tokens 1",
        "adapters show runs/mine",
        "adapters diff runs/mine runs/mine",
        "train --model models/small --data rows.jsonl --r 2 --init-from runs/mine --output runs/again " + " ".join(FEW),
    ):
        assert main.run(words.split()) == 0, capsys.readouterr().err


def test_a_run_at_work_is_named_before_anything_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command a second time, while the first one runs: there are checkpoints already."""
    shutil.copytree("runs/half", tmp_path / "half")
    holder = (
        "import sys, time\nfrom halter.files.locks import held\n"
        "with held(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", holder, str(tmp_path / "half")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        for more in ([], ["--resume"]):
            words = ["train", "--model", BASE, "--data", "rows.jsonl", "--output", str(tmp_path / "half"), *more]
            err = said(capsys, *words)
            assert "[run-in-use]" in err and f"process {process.pid}" in err
        process.kill()
    with held(tmp_path / "half"):  # the lock went with the process
        pass


def tensors(run: Path) -> dict[str, object]:
    return {name: tensor.tolist() for name, tensor in read_tensors(run / "adapter/adapter_model.safetensors").items()}


def train(place: Path, name: str, *more: str) -> int:
    fixed = ["--r", "2", "--learning-rate", "1e-3", "--lr-scheduler-type", "constant", "--warmup-steps", "0"]
    rows = ["--per-device-train-batch-size", "2", "--dtype", "float32"]
    return main.run(["train", "--model", BASE, "--data", "rows.jsonl", "--output", name, *fixed, *rows, *more])


def test_a_finished_run_is_carried_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two epochs and then two more are four epochs, to the bit where the rate does not depend on how many steps."""
    assert train(place, "whole", "--num-train-epochs", "4") == 0
    assert train(place, "part", "--num-train-epochs", "2") == 0
    first = tensors(place / "part")
    capsys.readouterr()
    assert main.run(["train", "--resume", "--output", "part", "--num-train-epochs", "4"]) == 0
    err = capsys.readouterr().err
    assert "this run was finished at 4 steps and goes on to 8" in err and "1.00e-03 at step 5" in err
    assert tensors(place / "part") == tensors(place / "whole") != first
    aside = place / "part/adapter-of-step-0000004/adapter_model.safetensors"
    assert {name: tensor.tolist() for name, tensor in read_tensors(aside).items()} == first
    # The same again: nothing is left to do, and the hint says how to have more, which works.
    err = said(capsys, "train", "--resume", "--output", "part", "--num-train-epochs", "4")
    assert "all of its 8 steps are done" in err
    command = re.search(r"for more of them: halter (train [^\[]+?)\. \[", err)
    assert command is not None and main.run(shlex.split(command[1])) == 0
    assert RunFolder("part").planned_steps() == 10
    # Whoever begins the same run again is told the same way, by steps.
    capsys.readouterr()
    assert train(place, "part", "--num-train-epochs", "2") == 2
    command = re.search(r"for more steps: halter (train [^\[]+?)\. \[", capsys.readouterr().err)
    assert command is not None and main.run([*shlex.split(command[1]), "--dry-run"]) == 0


def test_a_run_that_is_stopped_while_it_is_carried_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(place, "long", "--num-train-epochs", "3", "--save-steps", "1") == 0
    assert train(place, "short", "--num-train-epochs", "1", "--save-steps", "1") == 0
    log = RunFolder.log

    def dying(self: RunFolder, record: dict[str, object]) -> None:
        log(self, record)
        if record["step"] == 4 and "loss" in record:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "log", dying)
    more = ["train", "--resume", "--output", "short", "--num-train-epochs", "3"]
    assert main.run(more) == 130
    monkeypatch.setattr(RunFolder, "log", log)
    assert main.run(more) == 0
    assert tensors(place / "short") == tensors(place / "long")


def test_a_result_without_checkpoints_is_carried_on_from_itself(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(place, "gone", "--num-train-epochs", "1") == 0
    shutil.rmtree(place / "gone/checkpoints")
    capsys.readouterr()
    err = said(capsys, "train", "--resume", "--output", "gone", "--num-train-epochs", "2")
    hint = re.search(r"(--init-from \S+?)\. \[", err)
    assert hint is not None and train(place, "gone2", *shlex.split(hint[1]), *FEW[:2]) == 0


def test_a_file_is_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a file" in said(capsys, "train", "--model", "rows.jsonl", "--data", "rows.jsonl")
    assert os.path.exists("rows.jsonl")


@pytest.mark.parametrize(
    ("words", "near", "told"),
    [
        ("train --model stories260K --data rows.jsonl", "stories/a.jsonl", ""),
        ("train --model mod3l --data rows.jsonl", "model/config.json", "did you mean model?"),
        ("train --model mod3l --data rows.jsonl", "model.jsonl", ""),
        ("generate mod3l --prompt hi", "model/notes.txt", ""),
        ("train --model BASE --data stories.jsonl", "storie/config.json", ""),
        ("train --model BASE --data stories.jsonl", "storie/notes.md", ""),
        ("train --model BASE --data stories.jsonl", "storie/a.jsonl", "did you mean storie?"),
        ("train --model BASE --data rows.jsonl --init-from min", "mine.jsonl", ""),
        ("train recip.yaml", "recipe.txt", ""),
        ("train recip.yaml", "recipe.yml", "did you mean recipe.yml?"),
        ("train --model BASE --data rows.jsonl --template tempel.jinja", "temple.jsonl", ""),
        ("adapters convert them.bin --model BASE --output x", "then.jsonl", ""),
        ("adapters convert them.bin --model BASE --output x", "then.bin", "did you mean then.bin?"),
    ],
)
def test_what_is_near_is_of_the_kind_that_is_wanted(
    words: str,
    near: str,
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder of rows is no model, however alike its name is, and so on for all that is looked for by its name."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", 4)
    (tmp_path / near).parent.mkdir(exist_ok=True)
    (tmp_path / near).write_text("{}\n")
    err = said(capsys, *words.replace("BASE", BASE).split())
    assert told in err and ("did you mean" in err) == bool(told) and "name one of these" not in err, err


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("both/*.jsonl", "give the folder, --data both, or each by itself: --data both/a.jsonl --data both/b.jsonl"),
        ("both/a*.jsonl", "give each by itself: --data both/a.jsonl"),
        ("bo*/nothing-*.jsonl", "no file of rows fits: name one, or its folder"),
    ],
)
def test_wildcards_that_no_shell_has_expanded(
    typed: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "both").mkdir()
    for name in "ab":
        write_rows(tmp_path / "both" / f"{name}.jsonl", 4)
    err = said(capsys, "train", "--model", BASE, "--data", typed)
    assert f"wildcards in quotes are not expanded; {told}" in err
