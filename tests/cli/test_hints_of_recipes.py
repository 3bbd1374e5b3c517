"""Recipes, flags and data as people type them wrongly: what is said says what works, and it does."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playground_run import finished

from halter.cli import main
from halter.comparison.entries import sections
from halter.comparison.options import CompareOptions
from halter.playground import base_folder
from halter.recipe import load

BASE = str(base_folder())
GOOD = f"train --model {BASE} --data rows.jsonl"
FEW = "--per-device-train-batch-size 2 --dry-run"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    finished(folder, "runs/mine")
    rows = ({"q": f"Say {n}.", "a": f"The word is {n}.", "instruction": "Say it.", "output": "It."} for n in range(4))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    shutil.copy(folder / "runs/mine/recipe.yaml", folder / "halter-recipe.yaml")  # a run of the folder itself
    shutil.copytree(base_folder(), folder / "cache/models--a--b/snapshots/1")
    assert main.run(["init", "lora", str(folder / "r.yaml"), "--model", BASE]) == 0
    (folder / "alpaca-lora.json").write_text('{"prompt_input": "### Input: {input}", "prompt_no_input": "a"}')
    (folder / "wide.yaml").write_text("model: a\ndata: b\n", "utf-16")
    (folder / "sub/deep").mkdir(parents=True)
    shutil.copytree(base_folder(), folder / "sub/mybase")
    shutil.copy(folder / "rows.jsonl", folder / "sub/s.jsonl")
    (folder / "sub/r.yaml").write_text("model: mybase\ndata: s.jsonl\n")
    (folder / "llama.gguf").write_bytes(b"GGUF")
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield


def said(capsys: pytest.CaptureFixture[str], words: str) -> str:
    code = main.run(shlex.split(words))
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err and len(err.splitlines()) <= 6, err
    return err


def followed(err: str, base: str, lead: str = "") -> int:
    """The exit code of the command with what the hint says after ``lead``."""
    hint = re.search(rf"Fix: {lead}(.*?)(?:, quoted)?\. \[", err, re.DOTALL)
    assert hint is not None, err
    return main.run(shlex.split(f"{base} {hint[1]} {FEW}"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (f"{GOOD} --resume --output runs/mien", "did you mean runs/mine? To begin a run leave --resume out"),
        (f"{GOOD} --resume --output runs/other", "to begin a run leave --resume out"),
        (f"doctor --model {BASE} --data rows.jsonl --resume --output runs/mien", "did you mean runs/mine?"),
        ("train --model llama.gguf --data rows.jsonl", "GGUF is an export format"),
        ("generate llama.gguf --prompt hi", "GGUF is an export format"),
        ("train --model rows.jsonl --data rows.jsonl", "is a file, and a folder is needed"),
        ("init my.yaml", "halter init lora my.yaml"),
        ("train r.yaml", "data.train is still FILE.jsonl"),
        ("inspect r.yaml", "data.train is still FILE.jsonl"),
        ("train --model cache --data rows.jsonl", "did you mean cache/models--a--b/snapshots/1?"),
        ("train --model cache/models--a--b --data rows.jsonl", "did you mean cache/models--a--b/snapshots/1?"),
        (f"{GOOD} --output \"'runs/q'\"", "leave them out: --output runs/q"),
        (f"train --model {BASE} --data=\"'rows.jsonl'\"", "leave them out: --data rows.jsonl"),
        ("merge \"'runs/mine'\" --output m", "leave them out: runs/mine"),
        ("init lora x.yaml --lr 1e-4", "halter train recipe.yaml --lr 1e-4"),
        ("evaluate runs/mine --on-bad skip --id-column=x", "Fix: here data.on_bad=skip data.id_column=x. ["),
        ("train --model llama3:8b --data rows.jsonl", "--model meta-llama/Meta-Llama-3-8B-Instruct, which"),
        ("train --model llama3:8b-text --data rows.jsonl", "--model meta-llama/Meta-Llama-3-8B, which"),
        ("train --model llama3.2:1b --data rows.jsonl", "--model meta-llama/Llama-3.2-1B-Instruct, which"),
        ("train --model llama2:7b --data rows.jsonl", "--model meta-llama/Llama-2-7b-chat-hf, which"),
        ("train --model llama3.3:70b --data rows.jsonl", "--model meta-llama/Llama-3.3-70B-Instruct, which"),
        ("train --model Llama-3.1-8B --data rows.jsonl", "--model meta-llama/Llama-3.1-8B"),
        ("train --model llama3.1:70b-instruct-q4_0 --data rows.jsonl", "--model meta-llama/Llama-3.1-70B-Instruct"),
        (f"train --model {BASE} --data x.jsonl", "there is no such data. Expected: a file, a folder, or a hub id. ["),
        (f"{GOOD} --template alpaca-lora.json", "is JSON, and a chat template is Jinja. Fix: the built-in one"),
        (f"compare --model {BASE} --train rows.jsonl --test rows.jsonl --tokens 300k", "--tokens 300000"),
        ("train wide.yaml", "iconv -f UTF-16 -t UTF-8 wide.yaml > wide.utf8.yaml"),
        (f"{GOOD} --method lora,exitor+LoRA", "did you mean exci"),
        (f"{GOOD} --method adalora", "--method lora, or dora"),
        ("init adalora", "adalora is not here; the nearest are lora, dora"),
        ("init lora+", "lora with method.loraplus_lr_ratio=16"),
        (f"{GOOD} --target-modules q_proj,v_proj --method vblora", "the nearest are lora, dora"),
    ],
)
def test_what_was_meant_is_named(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = said(capsys, words)
    assert told in err and "lies in: ." not in err, err
    assert not Path("runs/mien").exists() and not Path("runs/other").exists()


@pytest.mark.parametrize("spelling", ["LoRA", "llama-adapter-v2", "PiSSA", "QLoRA", "Prompt Tuning"])
def test_a_method_is_found_as_people_spell_it(spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = spelling.lower().replace("-", "_").replace(" ", "_")
    recipe = load({"model": BASE, "data": "rows.jsonl", "method": spelling}, [])
    assert recipe.methods[0].name == name.removeprefix("q")  # the preset is LoRA
    assert main.run(["init", spelling, "-"]) == 0 and f"name: {name}" in capsys.readouterr().out
    assert sections(CompareOptions(methods=(spelling,)), {}) == {name: {"name": name}}


def test_of_a_method_that_there_is_not_no_option_is_called_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    err = said(capsys, f"{GOOD} --method lroa --r 4 --rr 5")
    assert "did you mean lora?" in err and "'r'" not in err and "'rr'" in err, err


@pytest.mark.parametrize(
    ("given", "lead"),
    [
        ("--method lora+excitor", ""),
        ("--method lora+", ""),
        ("--method LoRA-Plus", ""),
        ("--method rs-lora", ""),
        ("--max-steps 1e3", "such as "),
        ("--layers 1", "such as "),
        ("lora.r=8", ""),
        ("columns={instruction: q, output: a}", "put it into quotes: "),
        ("--columns {instruction: q, output: a}", "put it into quotes: "),
        ("data.columns=instruction:q data.columns=output:a", "such as "),
        ("target_modules=[q_proj, v_proj]", "put it into quotes: "),
    ],
)
def test_what_the_hint_says_works(given: str, lead: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = said(capsys, f"{GOOD} {given}")
    assert followed(err, GOOD, lead) == 0, err


def test_a_list_of_layers_is_read_as_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(shlex.split(f"{GOOD} {FEW} --layers 0,1")) == 0
    assert "layers: [0, 1]" in capsys.readouterr().err


def test_what_differs_from_the_run_is_told_with_both_values(capsys: pytest.CaptureFixture[str]) -> None:
    err = said(capsys, f"{GOOD} --resume --output runs/mine --r 8 --layers 1,2 --max-steps 9")
    assert "method.r: 2 there, 8 here" in err and "method.layers: null there, [1, 2] here" in err, err


@pytest.mark.parametrize("address", ["https://huggingface.co/datasets/a/b", "hf.co/datasets/a/b/viewer/default?row=1"])
def test_the_page_of_a_data_set_is_named_as_one(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Fix: --data a/b, its name there" in said(capsys, f"train --model {BASE} --data '{address}'")


def test_the_page_of_a_file_is_fetched_as_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    page = "https://huggingface.co/datasets/a/b/blob/main/x.jsonl"
    assert "datasets/a/b/resolve/main/x.jsonl, then" in said(capsys, f"train --model {BASE} --data {page}")
    assert "--model a/b, its name there" in said(capsys, "train --model hf.co/a/b --data rows.jsonl")


def test_a_method_named_twice_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for named in ("--method lora,lora", "--method lora --method lora"):
        assert main.run(shlex.split(f"{GOOD} {FEW} {named}")) == 0
        assert "lora is named 2 times with the same options" in capsys.readouterr().err
    assert main.run(shlex.split(f"{GOOD} {FEW} --method lora,lora method.1.r=4")) == 0
    assert "named 2 times" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "doctor", "inspect", "plan", "compare --test ../s.jsonl --output c"])
def test_names_that_are_there_beside_the_recipe_are_named(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir("sub/deep")
    err = said(capsys, f"{verb} ../r.yaml")
    assert "did you mean ../mybase?" in err or verb[:7] == "compare" and "did you mean ../s.jsonl?" in err, err
    if verb in ("train", "doctor"):
        assert "did you mean ../s.jsonl?" in err, err
        right = f"train ../r.yaml --model ../mybase --data ../s.jsonl {FEW}"
        assert main.run(shlex.split(right)) == 0


def test_rows_are_learned_without_a_template_as_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("raw", "none"):
        err = said(capsys, f"{GOOD} --template {name}")
        assert "template-differs" not in err, err
        given = re.search(r"as in (data.columns='.*?')", err)
        assert given is not None, err
        assert main.run(shlex.split(f"{GOOD} {given[1]} {FEW}")) == 0
        assert "continued as plain text, no chat template" in capsys.readouterr().err


def test_a_template_in_a_tokenizer_s_settings_is_taken_out_as_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = (base_folder() / "tokenizer_config.json").read_text("utf-8")
    Path("tokenizer_config.json").write_text(source, "utf-8")
    Path("rows.jsonl").write_text(json.dumps({"instruction": "Say it.", "output": "It."}) + "\n", "utf-8")
    err = said(capsys, f"{GOOD} --template tokenizer_config.json")
    command = re.search(r"python (-c '.*' > template\.jinja), and give that", err)
    assert command is not None, err
    subprocess.run(f"{sys.executable} {command[1]}", shell=True, check=True)
    assert main.run(shlex.split(f"{GOOD} --template template.jinja {FEW}")) == 0
