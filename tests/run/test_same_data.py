"""A run that goes on has learned from rows, and rows that are others since are named before a step is taken."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from playground_run import recipe, write_rows

import halter
from halter.cli import main
from halter.errors import Refusal
from halter.files.runs import RunFolder
from halter.files.tensors import read_tensors


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with a file of rows for the held-out loss."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_rows(folder / "held.jsonl", 4, split="test")
        halter.train(begun(), say=lambda _: None)
    return folder


@pytest.fixture
def done(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made, tmp_path, dirs_exist_ok=True))


@pytest.fixture
def half(done: Path) -> Path:
    """The same, stopped after its first step."""
    shutil.rmtree(done / "run/adapter")
    shutil.rmtree(done / "run/checkpoints/step-0000002")
    return done


def begun(name: str = "run", **data: object) -> dict:
    given = recipe(Path(), name, save_steps=1)
    given["data"] |= {"validation": "held.jsonl", **data}
    return given


def go_on(*more: str) -> int:
    return main.run(["train", "--resume", "--output", "run", *more])


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def put(file: Path, rows: list[str]) -> None:
    file.write_text("".join(row + "\n" for row in rows))


def other(row: str) -> str:
    held = json.loads(row)
    held["messages"][-1]["content"] += "."
    return json.dumps(held)


CHANGES = {
    "a row changed": ("train.jsonl", lambda rows: [*rows[:2], other(rows[2]), *rows[3:]], "at train.jsonl:3"),
    "a row less": ("train.jsonl", lambda rows: rows[:-1], "train.jsonl: 11 rows, and the run began with 12"),
    "a row more": ("train.jsonl", lambda rows: [*rows, other(rows[0])], "13 rows, and the run began with 12"),
    "another order": ("train.jsonl", lambda rows: [rows[1], rows[0], *rows[2:]], "at train.jsonl:1"),
    "a held-out row": ("held.jsonl", lambda rows: [*rows[:3], other(rows[3])], "held out: held.jsonl: 4 rows"),
    "a held-out row less": ("held.jsonl", lambda rows: rows[:3], "held out: held.jsonl: 3 rows"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("state", ["half", "done"])
def test_rows_that_are_others_since_are_refused(
    name: str, state: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    half = request.getfixturevalue(state)
    file, change, told = CHANGES[name]
    put(half / file, change(lines(half / file)))
    capsys.readouterr()  # what was said where the run was made
    assert go_on("--max-steps", "3") == 2
    err = capsys.readouterr().err
    assert "[run-data-differs]" in err and told in err and len(err.splitlines()) <= 6, err


def test_rows_that_are_put_back_are_the_same(half: Path) -> None:
    before = lines(half / "train.jsonl")
    put(half / "train.jsonl", before[1:])
    assert go_on() == 2
    put(half / "train.jsonl", before)
    assert go_on() == 0


@pytest.mark.parametrize("state", ["half", "done"])
def test_the_way_out_that_is_printed_works(
    state: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    half = request.getfixturevalue(state)
    put(half / "train.jsonl", lines(half / "train.jsonl")[:-1])
    assert go_on("--max-steps", "3") == 2
    hint = re.search(r"in another run:((?: --init-from \S+)?) --output OTHER", capsys.readouterr().err)
    assert hint is not None and bool(hint[1]) == (state == "done")
    again = ["train", "--model", begun()["model"]["path"], "--data", "train.jsonl", *shlex.split(hint[1])]
    assert main.run([*again, "--output", "other", "--r", "2", "--max-steps", "1"]) == 0


def test_waived_it_goes_on_and_that_is_recorded(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(half / "train.jsonl", lines(half / "train.jsonl")[:-1])
    assert go_on("--allow", "run-data-differs") == 0
    assert "waived, run-data-differs" in capsys.readouterr().err
    facts = json.loads((half / "run/adapter/halter.json").read_text())
    assert [one["id"] for one in facts["waived"]] == ["run-data-differs"]
    kept = json.loads((half / "run/data.json").read_text())
    assert (kept["learned_from"]["train"]["rows"], kept["now"]["train"]["rows"]) == (12, 11)
    assert go_on("--max-steps", "3") == 0  # the recipe of the run says so now, and it is told and recorded again
    assert "waived, run-data-differs" in capsys.readouterr().err


def test_the_same_rows_elsewhere_are_the_same_rows(half: Path, made: Path) -> None:
    (half / "elsewhere").mkdir()
    for file in ("train.jsonl", "held.jsonl"):
        shutil.move(half / file, half / "elsewhere" / f"new-{file}")
    assert go_on("--data", "elsewhere/new-train.jsonl", "--validation", "elsewhere/new-held.jsonl") == 0
    ends = [read_tensors(run / "run/adapter/adapter_model.safetensors") for run in (made, half)]
    assert all((ends[0][name] == tensor).all() for name, tensor in ends[1].items())


def test_another_tokenizer_or_template_is_named(half: Path) -> None:
    kept = half / "run/data.json"
    facts = json.loads(kept.read_text())
    facts["learned_from"] |= {"tokenizer": "0" * 64, "template": "1" * 64}
    facts["learned_from"]["train"]["digest"] = "2" * 24
    RunFolder("run").put("data.json", facts)
    with pytest.raises(Refusal) as caught:
        halter.train(begun(), resume=True, say=lambda _: None)
    assert caught.value.found[:2] == ("the tokenizer is another one", "the template is another one")


def test_a_run_of_before_goes_on_with_one_note(half: Path) -> None:
    kept = half / "run/data.json"
    facts = json.loads(kept.read_text())
    del facts["learned_from"]
    RunFolder("run").put("data.json", facts)
    put(half / "train.jsonl", lines(half / "train.jsonl")[:-1])
    said: list[str] = []
    halter.train(begun(), resume=True, say=said.append)
    assert sum("before Halter kept digests" in line for line in said) == 1
    with pytest.raises(Refusal, match="run-differs"):  # without digests another file is another recipe
        del facts["rows"]
        RunFolder("run").put("data.json", facts)
        shutil.copy(half / "train.jsonl", half / "copy.jsonl")
        given = begun(train="copy.jsonl")
        given["train"]["max_steps"] = 3
        halter.train(given, resume=True, say=lambda _: None)


def test_a_run_without_checkpoints_begins_anew(half: Path) -> None:
    shutil.rmtree(half / "run/checkpoints")
    put(half / "train.jsonl", lines(half / "train.jsonl")[:-1])
    assert go_on() == 0
    assert json.loads((half / "run/data.json").read_text())["learned_from"]["train"]["rows"] == 11


def test_the_same_file_twice_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several files, the same of them twice, weights: what changed is named by its file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    for name in "ab":
        write_rows(tmp_path / "rows" / f"{name}.jsonl", 6)
    sources = [{"path": "rows"}, {"path": "rows/a.jsonl", "weight": 2.0}]
    given = recipe(tmp_path, "run", save_steps=1)
    given["data"]["train"] = sources
    halter.train(given, say=lambda _: None)
    given["train"]["max_steps"] = 3
    put(tmp_path / "rows/b.jsonl", [*lines(tmp_path / "rows/b.jsonl")[:5], other(lines(tmp_path / "rows/b.jsonl")[5])])
    write_rows(tmp_path / "rows/c.jsonl", 2)
    with pytest.raises(Refusal) as caught:
        halter.train(given, resume=True, say=lambda _: None)
    told = "\n".join(caught.value.found)
    assert "c.jsonl is new: 2 rows" in told and "b.jsonl:6" in told and "a.jsonl" not in told
    sources[1]["weight"] = 1.0
    (tmp_path / "rows/c.jsonl").unlink()
    write_rows(tmp_path / "rows/b.jsonl", 6)
    with pytest.raises(Refusal) as caught:
        halter.train(given, resume=True, say=lambda _: None)
    assert caught.value.id == "run-data-differs" and "a.jsonl" in caught.value.found[0]


def test_a_finished_run_without_changes_goes_on(done: Path) -> None:
    given = begun()
    given["train"]["max_steps"] = 3
    said: list[str] = []
    assert halter.train(given, resume=True, say=said.append) is not None
    assert not [line for line in said if "digest" in line or "waived" in line]
