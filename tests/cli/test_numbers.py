"""Numbers that cannot be meant are refused wherever a number may be given, before anything that costs."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

import pytest
from playground_run import finished, write_rows
from test_given_twice import flags

from halter.cli import main
from halter.playground import base_folder
from halter.recipe import load_tolerant
from halter.recipe.fields import keys_of
from halter.recipe.sections import SECTIONS, method_class, method_names

ANY = {"seed"}
"""Options for which every whole number makes sense."""
SIGNED = {"alpha", "scale", "adam_epsilon", "presence_penalty", "frequency_penalty"}
"""Numbers that may be negative: those of methods turn the update round, those of sampling ask for repetition."""


def kinds(hint: Any) -> set[type]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set().union(*(kinds(arm) for arm in typing.get_args(hint)))
    return {hint} if hint in (int, float) else set()


KEYS = [
    *((section, "", key) for section in SECTIONS for key in keys_of(SECTIONS[section])),
    *(("method", name, key) for name in method_names() for key in keys_of(method_class(name))),
]


def test_every_number_of_a_recipe() -> None:
    tried = 0
    for section, method, key in KEYS:
        options = method_class(method) if method else SECTIONS[section]
        found = kinds(keys_of(options)[key].type)
        values = [".inf", "-.inf", ".nan"] * (float in found) + ["-2"] * (int in found)
        for value in values:
            given = [f"method={method}"] * bool(method) + [f"{section}.{key}={value}", "model=x", "data=y"]
            _, refusal = load_tolerant(None, given)
            assert refusal is not None and key in str(refusal), (method or section, key, value)
            tried += 1
    assert tried > 100


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("numbers"))


def test_every_number_among_the_flags(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl", 2))
    given = {
        "generate": [str(run), "--prompt", "Hi"],
        "chat": [str(run)],
        "evaluate": [str(run), "--data", rows],
        "compare": ["--model", str(base_folder()), "--train", rows, "--test", rows, "--output", str(tmp_path / "c")],
        "merge": [str(run), "--output", str(tmp_path / "merged")],
        "inspect": ["--model", str(base_folder()), "--data", rows],
        "playground": ["export", str(tmp_path / "world")],
        "serve": [str(base_folder())],
        "audit verify": [str(tmp_path / "log")],
        "audit show": [str(tmp_path / "log")],
        "keys new": ["acme", "--file", str(tmp_path / "keys.json")],
        "adapters combine": [str(run), "--output", str(tmp_path / "combined")],
        "adapters compress": [str(run), "--output", str(tmp_path / "compressed"), "--data", rows],
        "adapters convert": ["x.pth", "--output", str(tmp_path / "converted"), "--model", str(base_folder())],
    }
    tried = 0
    for words, _, option in flags():
        kind = option.type_descriptor.annotation
        if kind not in (int, float) or option.name in ANY:
            continue
        for value in ["-2"] if kind is int else ["-2", "inf", "nan"]:
            if value == "-2" and option.name in SIGNED:
                continue
            code = main.run([*words, *given[" ".join(words)], f"{option.opts[-1]}={value}"])
            err = capsys.readouterr().err
            assert code == 2 and "Traceback" not in err, (words, option.name, value, err)
            tried += 1
    assert tried > 40 and sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl"]


def test_ids_that_are_in_no_vocabulary(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for bad in ("99999", "-3"):
        assert main.run(["generate", str(run), "--prompt", "Hi", f"--stop-ids={bad}"]) == 2
        assert bad in capsys.readouterr().err
