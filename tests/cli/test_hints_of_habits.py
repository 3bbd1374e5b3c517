"""What people bring along and mean otherwise: the hint names what is right here, and followed it works."""

from __future__ import annotations

import errno
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playground_run import finished, write_rows

from halter.cli import main
from halter.cli.no_memory import in_words
from halter.playground import base_folder

BASE = str(base_folder())
FEW = f"--model {BASE} --per-device-train-batch-size 2 --dry-run"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    finished(folder, "runs/a")
    write_rows(folder / "rows.jsonl", 8)
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield


def said(capsys: pytest.CaptureFixture[str], words: str) -> str:
    code = main.run(shlex.split(words))
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err, err
    err = err[err.index("halter: ") :]
    assert len(err.splitlines()) <= 6, err
    return " ".join(err.split())


HEADED = ["instruction{0}output", *(f"Say {n}.{{0}}It is {n}." for n in range(6))]


@pytest.mark.parametrize(
    ("name", "text", "suffix"),
    [
        ("a.jsonl", "\n".join(HEADED).format(",") + "\n", ".csv"),
        ("b.jsonl", "\n".join(HEADED).format(","), ".csv"),
        ("c.jsonl", "\n".join(f'"{one}"' for one in HEADED).format('","'), ".csv"),
        ("d.json", "\n".join(HEADED).format(";"), ".csv"),
        ("e.jsonl", "\n".join(HEADED).format("\t"), ".tsv"),
        ("f.ndjson", "Once there was a cat.\n\nIt sat, and sat.\n", ".txt"),
        ("g h.jsonl", "Once there was a cat", ".txt"),
    ],
)
def test_lines_that_are_no_json_are_told_as_what_they_are(
    name: str, text: str, suffix: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / name).write_text(text, "utf-8")
    err = said(capsys, f"train {FEW} --data '{name}'")
    assert "bad-rows" in err and "cut off" not in err, err
    _, old, new = shlex.split(err[err.index("mv ") : err.index(" [bad-rows]")].rstrip("."))
    assert new.endswith(suffix)
    Path(old).rename(new)
    assert main.run(shlex.split(f"train {FEW} --data '{new}'")) == 0


def test_rows_of_json_that_are_cut_off_are_told_so_still(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (place / "rows.jsonl").read_text("utf-8")
    (place / "cut.jsonl").write_text(whole[:-20], "utf-8")
    assert "cut off" in said(capsys, f"train {FEW} --data cut.jsonl")


def test_splits_in_one_file_go_into_files_of_their_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text("utf-8").splitlines()]
    (place / "splits.json").write_text(json.dumps({"train": rows[:6], "test": rows[6:]}), "utf-8")
    err = said(capsys, f"train {FEW} --data splits.json")
    assert "--data train.json --validation test.json" in err, err
    (place / "parts.json").write_text(json.dumps({"easy": rows[:6], "hard": rows[6:], "version": 1}), "utf-8")
    assert "--data easy.json --data hard.json" in said(capsys, f"train {FEW} --data parts.json")


@pytest.mark.parametrize("value", ["10", "3", "1.5", "1"])
def test_a_share_of_one_or_more_is_no_number_of_steps(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = said(capsys, f"train {FEW} --data rows.jsonl --warmup-ratio {value}")
    assert "a share of all steps, 10 % is 0.1; steps are train.warmup_steps" in err, err
    fix = err[err.index("Fix: ") + 5 : err.index(" [recipe]")].rstrip(".")
    for way in fix.split(", "):
        assert main.run(shlex.split(f"train {FEW} --data rows.jsonl {way.split(' for ')[0]}")) == 0, way


def test_a_share_below_one_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(shlex.split(f"train {FEW} --data rows.jsonl --warmup-ratio 0.1")) == 0


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("train: {max_steps: 2, output_dir: x}", "write output_dir at the left margin, beside the sections"),
        ("train: {max_steps: 2, output: x}", "write output_dir at the left margin"),
        ("train: {max_steps: 2, max_length: 64}", "write max_length under data, and not under train"),
        ("train: {r: 2}", "write r under method, and not under train"),
        ("train: {gpu: 0}", "--device cuda:0"),
    ],
)
def test_a_key_of_another_place_is_told_its_own(
    recipe: str, told: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "r.yaml").write_text(f"model: {BASE}\ndata: rows.jsonl\n{recipe}\n", "utf-8")
    assert told in said(capsys, "train r.yaml --dry-run")


def test_a_key_at_the_place_that_was_told_is_taken(place: Path) -> None:
    text = f"model: {BASE}\ndata: {{train: rows.jsonl, max_length: 256}}\ntrain: {{max_steps: 2}}\noutput_dir: x\n"
    (place / "r.yaml").write_text(text, "utf-8")
    assert main.run(["train", "r.yaml", "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (f"train {FEW} --data rows.jsonl --gpu 0", "--device cuda:0"),
        (f"train {FEW} --data rows.jsonl --gpus 1", "--device cuda:1"),
        (f"train {FEW} --data rows.jsonl --cuda", "--device cuda:0"),
        (f"train {FEW} --data rows.jsonl --use-gpu false", "--device cpu"),
        ("generate runs/a --prompt hi --gpu 0", "--device cuda:0"),
        ("chat --run runs/a", "Fix: halter chat runs/a."),
        ("chat --run=runs/a --temperature 0", "Fix: halter chat runs/a --temperature 0."),
        ("generate --checkpoint runs/a --prompt 'Say it'", "Fix: halter generate runs/a --prompt 'Say it'."),
        ("evaluate --run runs/a --data rows.jsonl", "Fix: halter evaluate runs/a --data rows.jsonl."),
        ("merge --output m --run runs/a", "Fix: halter merge runs/a --output m."),
    ],
)
def test_a_flag_of_others_is_told_as_ours(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in said(capsys, words)


@pytest.mark.parametrize("key", ["model", "data"])
@pytest.mark.parametrize("name", ["$MINE", "${MINE}"])
def test_what_only_a_shell_writes_out_is_told(
    key: str, name: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {"model": BASE, "data": str(place / "rows.jsonl")}
    whole = Path(paths[key])
    monkeypatch.setenv("MINE", str(whole.parent))
    paths[key] = f"{name}/{whole.name}"
    (place / "v.yaml").write_text("".join(f"{one}: {path}\n" for one, path in paths.items()), "utf-8")
    err = said(capsys, "train v.yaml --dry-run")
    assert f"{name} is not expanded here" in err and f"write the path out: {whole}" in err, err


@pytest.mark.parametrize("words", ["train --model ~noone/m --data rows.jsonl", "generate ~noone/m --prompt hi"])
def test_a_home_of_nobody_is_told(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "write the path out; ~/ alone is your own folder. [no-home]" in said(capsys, words)


def test_a_folder_that_is_called_as_a_variable_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(shlex.split(f"train {FEW} --data rows.jsonl --output '$SCRATCH/x'")) == 0
    assert "$SCRATCH is not expanded here" in capsys.readouterr().err


def test_an_axolotl_recipe_says_what_may_be_left_to_the_defaults(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"base_model: {BASE}\nadapter: lora\nlora_r: 2\ndatasets: [{{path: rows.jsonl, type: alpaca}}]\n"
    (place / "ax.yaml").write_text(text + "micro_batch_size: 2\nnum_epochs: 1\n", "utf-8")
    err = said(capsys, "train ax.yaml")
    assert "Halter's defaults are taken unless you give them (3): method.target_modules" in err, err
    assert "must give" not in err and "fill in" not in err, err
    for command in err[err.index("Fix: ") + 5 : err.index(". [foreign")].split(" && "):
        extra = ["--dry-run", "--allow", "template-differs"] if command.split()[1] == "train" else []
        assert main.run([*shlex.split(command)[1:], *extra]) == 0
    assert "unless you give them" in (place / "halter-recipe.yaml").read_text("utf-8")


def test_init_says_that_a_base_without_a_template_needs_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["init", "lora", "with.yaml", "--model", BASE]) == 0
    assert "data.template" not in capsys.readouterr().out
    shutil.copytree(BASE, place / "plain")
    for file in ("chat_template.jinja", "chat_template.json"):
        (place / "plain" / file).unlink(missing_ok=True)
    settings = place / "plain/tokenizer_config.json"
    settings.write_text(json.dumps({k: v for k, v in json.loads(settings.read_text()).items() if "template" not in k}))
    assert main.run(["init", "lora", "without.yaml", "--model", "plain"]) == 0
    assert "data.template: alpaca" in capsys.readouterr().out
    assert main.run(["train", "with.yaml", "--data", "rows.jsonl", "--model", "plain", "--dry-run"]) == 2
    capsys.readouterr()
    words = ["train", "without.yaml", "data.template=alpaca", "data.train=rows.jsonl", "--dry-run"]
    assert main.run(words) == 0


def test_doctor_tells_a_warning_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALTER_CACHE_GB", "lots")
    assert main.run(["doctor"]) == 0
    assert capsys.readouterr().out.count("is no number of gigabytes") == 1


def test_a_checkpoint_that_lost_a_file_is_refused_before_anything_is_read(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(tmp_path, save_steps=1, max_steps=3)
    shutil.rmtree(run / "adapter")
    (run / "checkpoints/step-0000003/adapter-0.safetensors").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("halter.run.preflight.read_base", lambda *_: pytest.fail("the base was read"))
        assert main.run(["train", "--resume", "--output", str(run)]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert err.startswith("halter: ") and "adapter-0.safetensors is missing" in err, err
    fix = err[err.index("the one before: ") + 16 : err.index(". [damaged")]
    command = fix.replace("halter train", f"{sys.executable} -m halter train")
    assert subprocess.run(command, shell=True, cwd=place, capture_output=True).returncode == 0
    assert (run / "adapter").is_dir() and (run / "step-0000003.damaged").is_dir()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes."),
    ],
)
def test_memory_that_ran_out_is_told(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> int:
        raise error

    monkeypatch.setattr(main, "_verb", fails)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (700 << 20, 700 << 20))
    assert main.run(["train"]) == 1
    err = capsys.readouterr().err
    assert "memory ran out" in err and "700 MiB (ulimit -v)" in err and "ulimit -v unlimited" in err, err
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert main.run(["train"]) == 1
    err = capsys.readouterr().err
    assert "are free" in err and "ulimit" not in err and err.endswith("[no-memory]\n"), err


def test_other_failures_are_no_lack_of_memory() -> None:
    assert (
        not in_words(ValueError("x")) and not in_words(OSError(errno.ENOSPC, "full")) and not in_words(RuntimeError())
    )


def test_compare_tells_once_that_there_will_be_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from halter.comparison import loop

    monkeypatch.setattr(loop, "find_spec", lambda _: None)
    told: list[str] = []
    loop.tell_unwritable(tmp_path, told.append)
    assert loop.write_report({}, tmp_path, told.append) == ()
    assert len(told) == 1 and f"halter.comparison.report {tmp_path / 'record.json'} {tmp_path}" in told[0]
