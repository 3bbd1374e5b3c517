"""A flag that is given again adds up or is refused, alike in every command: no value is dropped without a word."""

from __future__ import annotations

import re
import shlex
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from playground_run import write_rows

import halter.run
from halter.cli import main
from halter.cli.train import split
from halter.cli.typed import refuse_misgiven
from halter.errors import Refusal
from halter.files.yaml12 import YamlDocument
from halter.playground import base_folder
from halter.recipe import load
from halter.recipe.fields import keys_of, takes_several
from halter.recipe.sections import SECTIONS, method_class, method_names
from halter.recipe.sorting import sort_keys


def flags() -> list[tuple[list[str], Any, Any]]:
    """(the command's words, the command, one of its options) of every option of every command."""
    found = []
    for verb in main.VERBS:
        module = import_module(f"halter.cli.{verb}")
        for word, function in (vars(module).get("COMMANDS") or {"": module.command}).items():
            app = typer.Typer(add_completion=False)
            app.command(context_settings=vars(module).get("SETTINGS"))(function)
            command = typer.main.get_command(app)  # type: ignore[attr-defined]
            for option in command.params:
                if option.param_type_name == "option" and not option.is_flag:
                    found.append(([w for w in (verb, word) if w], command, option))
    return found


def test_every_flag_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(flags()) > 60
    for words, command, option in flags():
        flag = option.opts[-1]
        twice = [flag, "1", f"{flag}=2"]
        if option.multiple:
            refuse_misgiven(command, twice)
            parser = command.make_parser(command.make_context("x", [], resilient_parsing=True))
            assert parser.parse_args(twice)[0][option.name] == ["1", "2"]
        else:
            assert main.run([*words, *twice]) == 2
            err = capsys.readouterr().err
            assert "more than once" in err and flag in err and "[usage]" in err, (words, flag, err)


KEYS = [
    *((section, "", key) for section in SECTIONS for key in keys_of(SECTIONS[section])),
    *(("method", name, key) for name in method_names() for key in keys_of(method_class(name))),
    ("", "", "output_dir"),
]


def test_every_key_of_a_recipe_on_the_command_line() -> None:
    several = 0
    for section, method, key in KEYS:
        name = ".".join(filter(None, (section, key)))
        given = [f"method.name={method}"] * bool(method) + [f"{name}=one", f"--{name}=two"]
        gathered = sort_keys(YamlDocument({}), given)
        options = method_class(method) if method else SECTIONS.get(section)
        declared = keys_of(options)[key].type if options else None
        told = [p for p in gathered.problems if "given twice" in p]
        if takes_several(declared):
            several += 1
            place = gathered.methods[0] if section == "method" else gathered.sections[section]
            value = place[key].value
            assert not told and [v["path"] if isinstance(v, dict) else v for v in value] == ["one", "two"], name
        else:
            assert len(told) == 1 and "one" in told[0] and "two" in told[0], name
    assert several > 10
    listed = {"train", "sample_prompts", "report_to", "allow", "target_modules", "exclude_modules", "layers", "tokens"}
    assert listed <= {key for _, _, key in KEYS}


def test_parts_of_a_mapping_are_joined_and_the_same_part_is_not() -> None:
    whole = sort_keys(YamlDocument({}), ["data.columns={prompt: a}", "data.columns.completion=b"])
    assert whole.sections["data"]["columns"].value == {"prompt": "a", "completion": "b"} and not whole.problems
    for second in ("data.columns={prompt: b}", "data.columns.prompt=b"):
        for first in ("data.columns={prompt: a}", "data.columns.prompt=a"):
            assert "given twice" in sort_keys(YamlDocument({}), [first, second]).problems[0]


def test_a_recipe_is_still_overridden() -> None:
    loaded = load({"model": "x", "data": "a", "train": {"sample_prompts": ["p"]}}, ["sample_prompts=q", "data.train=b"])
    assert loaded.train.sample_prompts == ("q",) and loaded.data.train == "b"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}
    monkeypatch.setattr(
        halter.run, "train", lambda source, overrides, **_: found.update(recipe=load(source, overrides))
    )
    return found


@pytest.mark.parametrize("methods", [["--method", "lora", "--method", "excitor"], ["--method", "lora,excitor"]])
@pytest.mark.parametrize(
    "data", [["--data", "a", "--data", "b"], ["--data", "[a, b]"], ["--data", "a", "data.train=b"]]
)
def test_train_takes_all_of_them(methods: list[str], data: list[str], seen: dict[str, Any]) -> None:
    more = ["--sample-prompts", "a, and b", "--sample-prompts", "c", "--allow", "disk-space,row-memory"]
    assert main.run(["train", "--model", "x", *data, *methods, *more]) == 0
    recipe = seen["recipe"]
    assert [source.path for source in recipe.data.train] == ["a", "b"]
    assert [choice.name for choice in recipe.methods] == ["lora", "excitor"]
    assert recipe.train.sample_prompts == ("a, and b", "c") and recipe.checks.allow == ("disk-space", "row-memory")


def test_words_that_were_meant_for_the_flag_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each hint, followed as it is printed, does what was meant."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        write_rows(Path(name), 3)
    base = ["train", "--model", str(base_folder())]
    for words, what in (
        (["--data", "a.jsonl", "b.jsonl"], "data"),
        (["--data", "a.jsonl", "--target-modules", "q_proj", "v_proj"], "targets"),
    ):
        assert main.run([*base, *words]) == 2
        hint = re.search(r"((--[\w-]+ [\w.]+ ?)+)\. \[usage\]", capsys.readouterr().err)
        assert hint is not None
        assert main.run([*base, *(words[:2] if what == "targets" else []), *shlex.split(hint[1])]) == 0
        recipe = seen["recipe"]
        if what == "data":
            assert [source.path for source in recipe.data.train] == ["a.jsonl", "b.jsonl"]
        else:
            assert recipe.method.options.target_modules == ("q_proj", "v_proj")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main.run([*base, "--data", "a.jsonl,b.jsonl", "--max-steps", "1", "--dry-run"]) == 2
    hint = re.search(r"((--data [\w.]+ ?)+)\. \[data-missing\]", capsys.readouterr().err)
    assert hint is not None
    assert main.run([*base, *shlex.split(hint[1]), "--max-steps", "1", "--dry-run"]) == 0
    assert "6 rows" in capsys.readouterr().err


def test_a_recipe_may_still_come_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "recipe"
    file.write_text("")
    assert split(["--r", "8", str(file)])[0] == str(file)
    assert split(["--r", "8", "no-such.yaml"])[0] == "no-such.yaml"
    with pytest.raises(Refusal, match="two recipes"):
        split(["a.yaml", "b.yaml"])


def test_the_types_that_take_several() -> None:
    assert takes_several(str | tuple[str, ...] | None) and takes_several(list[int])
    assert not takes_several(tuple[int, int]) and not takes_several(str) and not takes_several(typing.Literal["a"])
