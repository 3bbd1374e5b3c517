"""No command replaces a file that it did not write itself: one law over every command that writes.

Each is told to write where something of the user's lies already, under the very names that it uses. Whether it then
refuses or keeps both is its own matter; every byte that was there stays.
"""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from playground_run import finished, recipe, write_rows

from halter.cli import main
from halter.files.runs import RunFolder
from halter.playground import base_folder
from halter.recipe import dump, load

BASE = str(base_folder())
MINE = "mine: [1, 2]  # and my comment\n"
NAMES = (
    "recipe.yaml",
    "data.json",
    "waived.json",
    "error.log",
    "metrics.jsonl",
    "train.jsonl",
    "report.json",
    "config.json",
    "report.md",
    "record.json",
    "model.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "halter.json",
    "predictions.jsonl",
    "base/config.json",
    "data/train.jsonl",
    "run/adapter/notes.txt",
    "merged/config.json",
    "playground/train.jsonl",
    "lookup/train.jsonl",
    "adapter/adapter_config.json",
    "checkpoints/step-0000001/state.json",
)
"""Everything that any command writes into a folder."""

WRITERS: dict[str, list[str]] = {
    "train --output": ["train", "{recipe}", "--output", "{there}"],
    "compare --output": ["compare", "--quick", "--tokens", "100", "--methods", "nonsense", "--output", "{there}"],
    "demo --output": ["demo", "--output", "{there}"],
    "merge --output": ["merge", "{run}", "--output", "{there}"],
    "evaluate --output": ["evaluate", "{run}", "--data", "{rows}", "--questions", "0", "--output", "{there}"],
    "generate --output": ["generate", "{run}", "--prompt", "Hi", "--max-new-tokens", "1", "--output", "{there}"],
    "inspect --html": ["inspect", "{recipe}", "--html", "{there}"],
    "init file": ["init", "lora", "{there}"],
    "playground folder": ["playground", "export", "{there}", "--train", "1", "--test", "1"],
    "adapters combine --output": ["adapters", "combine", "{run}", "--output", "{there}"],
    "adapters compress --output": ["adapters", "compress", "{run}", "--output", "{there}"],
    "adapters convert --output": ["adapters", "convert", "{run}", "--output", "{there}"],
    "keys new --file": ["keys", "new", "acme", "--file", "{there}"],
    "keys remove --file": ["keys", "remove", "acme-1", "--file", "{there}"],
}
WRITE_NOTHING = {"init --output", "doctor --output", "playground action"} | {
    "audit verify folder",
    "audit show folder",
    "keys list --file",
}
"""Options of the same names that only say where a run will write, or that are read."""

TAKEN = ("already-exists", "not-a-run", "run-finished", "not-a-comparison", "not-a-folder")
CHANGED = dict.fromkeys(("keys new --file", "keys remove --file"), ("file-not-json", "file-missing"))
"""{what changes a file of its own kind: what it says of another}."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("made")
    run = finished(folder)
    file = folder / "my-recipe.yaml"
    file.write_text(dump(load(recipe(folder, max_steps=1) | {"output_dir": None})), "utf-8")
    return {"run": str(run), "recipe": str(file), "rows": str(write_rows(folder / "test.jsonl", 2))}


def typed(words: list[str], made: dict[str, str], there: Path) -> int:
    return main.run([word.format(there=there, **made) for word in words])


def state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_law_knows_every_place_that_a_command_writes() -> None:
    found = set()
    for verb in main.VERBS:
        module = import_module(f"halter.cli.{verb}")
        for word, function in (vars(module).get("COMMANDS") or {"": module.command}).items():
            app = typer.Typer(add_completion=False)
            app.command()(function)
            for parameter in typer.main.get_command(app).params:  # type: ignore[attr-defined]
                name = parameter.name or ""
                if name in ("output", "html", "file", "folder", "out") and not (
                    verb == "adapters" and name == "folder"
                ):
                    flag = f"--{name}" if parameter.param_type_name == "option" else name
                    found.add(" ".join(filter(None, [verb, word, flag])))
    assert found - WRITE_NOTHING == WRITERS.keys()


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("what", ["file", "folder", "recipe alone", "finished run"])
def test_what_lies_there_stays(
    writer: str, what: str, made: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    if what == "file":
        there.write_text(MINE)
    elif what == "finished run":
        shutil.copytree(made["run"], there)
    else:
        for name in NAMES if what == "folder" else NAMES[:1]:
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            (there / name).write_text(MINE)
    before = state(tmp_path)
    code = typed(WRITERS[writer], made, there)
    after = state(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert code in (0, 2), "a failure, not an answer"
    if what != "recipe alone" or writer != "train --output":
        err = capsys.readouterr().err
        assert code == 2 and any(f"[{id}]" in err for id in TAKEN + CHANGED.get(writer, ())), err
    else:
        assert code == 0 and (there / "halter-recipe.yaml").is_file() and (there / "adapter").is_dir()


def test_a_users_recipe_in_the_run_folder(made: dict[str, str], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    text = "# my comments\n" + Path(made["recipe"]).read_text("utf-8").partition("\n")[2]
    for number, output in enumerate([".", "{here}"]):
        here = tmp_path / str(number)
        here.mkdir()
        monkeypatch.chdir(here)
        Path("recipe.yaml").write_text(text)
        assert main.run(["train", "recipe.yaml", "--output", output.format(here=here)]) == 0
        assert Path("recipe.yaml").read_text() == text
        assert "is yours and stays as it is" in capsys.readouterr().err
        run = RunFolder(here)
        assert run.begun and run.finished and load(run.recipe).train.max_steps == 1
        assert main.run(["generate", str(here), "--prompt", "Hi", "--max-new-tokens", "1"]) == 0


def test_a_copy_of_a_runs_recipe_that_was_changed_is_the_users(made: dict[str, str], tmp_path: Path) -> None:
    text = (Path(made["run"]) / "recipe.yaml").read_text("utf-8") + "# and I changed it\n"
    (tmp_path / "recipe.yaml").write_text(text)
    assert not RunFolder(tmp_path).begun
    assert main.run(["train", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path), "max_steps=1"]) == 0
    assert (tmp_path / "recipe.yaml").read_text() == text


def test_an_empty_output_is_no_folder(made: dict[str, str], capsys: Any) -> None:
    assert main.run(["train", made["recipe"], "--output", ""]) == 2
    assert "is empty" in capsys.readouterr().err


def test_a_try_that_stopped_early_is_begun_again_over_its_own_files(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.put("recipe.yaml", "one: 1\n")
    run.put("data.json", {"rows": 1})
    assert run.begun and run.put("recipe.yaml", "two: 2\n") == tmp_path / "recipe.yaml"
    (tmp_path / "data.json").write_text(MINE)
    assert run.put("data.json", {"rows": 2}).name == "halter-data.json"
    assert (tmp_path / "data.json").read_text() == MINE
    (tmp_path / "halter-data.json").write_text(MINE)
    run.put("data.json", {"rows": 3})
    assert [p.read_text() for p in tmp_path.glob("halter-data.json.aside-*")] == [MINE]


def test_a_run_of_before_the_digests_is_a_run(made: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(made["run"], folder)
    (folder / ".written.json").unlink()
    run = RunFolder(folder)
    assert run.begun and run.put("recipe.yaml", "x: 1\n").name == "recipe.yaml"


def test_inspect_replaces_its_own_page(made: dict[str, str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for _ in range(2):
        assert typed(["inspect", "{recipe}", "--html", "{there}"], made, page) == 0
