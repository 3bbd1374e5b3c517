"""The command: exit codes, one paragraph for every mistake, tracebacks only when asked for, verbs that exist."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from halter.cli import main
from halter.cli.train import split
from halter.errors import HalterError, Refusal
from halter.files import yaml12
from halter.files.runs import RunFolder


def test_help_lists_every_verb_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == main.run([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and line in text for name, line in main.VERBS.items())
    files = {p.stem for p in Path(main.__file__).parent.glob("*.py") if not p.stem.startswith("_")} - {"main"}
    helpers = {name for name in files if "command" not in vars(import_module(f"halter.cli.{name}"))}
    assert files - helpers == set(main.VERBS)


@pytest.mark.parametrize("verb", main.VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([verb, "--help"]) == 0
    assert f"Usage: halter {verb}" in capsys.readouterr().out
    assert main.run([verb, "--no-such-flag-anywhere=1"]) == 2
    assert capsys.readouterr().err.startswith("halter: ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], "did you mean halter train?"),
        (["train"], "training needs a model and data"),
        (["train", "no-such.yaml"], "no-such.yaml: cannot be read"),
        (["train", "a.yaml", "b.yaml"], "two recipes"),
        (["train", "--model", "./x", "--data", "y", "--lerning-rate", "3"], "did you mean learning_rate?"),
        (["init", "loar"], "no method is called 'loar'"),
        (["init", "--model"], "--model"),
        (["train", "--output"], "--output"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err and err.count("\n") == 1 + err.count("\n- ")


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def verb(name: str, arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(main, "_verb", verb)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (Refusal("some-id", "will not do", fix="do this"), 2, "will not do. Fix: do this. [some-id]"),
        (HalterError("the disk is full."), 1, "halter: the disk is full. --debug shows the traceback.\n"),
        (ValueError("bug"), 1, "halter: ValueError: bug. --debug shows the traceback.\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, error)
    assert main.run(["train"]) == code
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err


def test_debug_shows_the_traceback_and_a_note_says_where_it_lies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ValueError("bug")
    error.add_note("The traceback is in runs/001/error.log.")
    failing(monkeypatch, error)
    assert main.run(["train"]) == 1
    assert capsys.readouterr().err == "halter: ValueError: bug. The traceback is in runs/001/error.log.\n"
    assert main.run(["train", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_many_findings_stand_on_lines_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, Refusal("x", "bad rows", found=[f"file.jsonl:{n}: no label in this row" for n in range(9)]))
    assert main.run(["train"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "halter: bad rows. Found:" and err[1] == "  file.jsonl:0: no label in this row"
    assert len(err) == 6 and err[4].startswith("  and 6 more; all of them are in ") and err[-1] == "[x]"


SLEEPER = """
import sys, types, time
verb = types.ModuleType('halter.cli.sleep')
def command() -> None:
    print('ready', flush=True)
    time.sleep(30)
verb.command = command
sys.modules['halter.cli.sleep'] = verb
from halter.cli import main
main.VERBS['sleep'] = 'sleep'
sys.argv = ['halter', 'sleep']
main.entry()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_have_their_exit_codes(number: signal.Signals, code: int) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert err.decode().strip() == {130: "halter: interrupted", 143: "halter: terminated"}[code]


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -m halter init lora - | head -c 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.stdout == "#" and "Traceback" not in done.stderr


def test_words_of_train_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "a=b.yaml"
    file.write_text("")
    words = [str(file), "--r", "8", "seed=3", "--deterministic", "--alpha=2", "--max-steps", "-1", "--rslora"]
    assert split(words) == (
        str(file),
        ["r=8", "seed=3", "deterministic=true", "alpha=2", "max-steps=-1", "rslora=true"],
    )


def test_flags_reach_the_recipe_as_words(monkeypatch: pytest.MonkeyPatch) -> None:
    import halter.run
    from halter.recipe import load

    seen = {}

    def train(source: object, overrides: list[str], **options: bool) -> None:
        seen.update(recipe=load(source, overrides), **options)  # type: ignore[arg-type]

    monkeypatch.setattr(halter.run, "train", train)
    flags = ["--model", "12", "--data", "null", "--method", "qlora", "--output", "a: b", "--r", "4", "--dry-run"]
    assert main.run(["train", *flags]) == 0
    recipe = seen["recipe"]
    assert (recipe.model.path, recipe.data.train, recipe.output_dir) == ("12", "null", "a: b")
    assert (recipe.model.quantize, recipe.method.options.r) == ("nf4", 4)
    assert seen["dry_run"] is True and seen["resume"] is False


def test_resume_finds_the_recipe_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import halter.run
    from halter.recipe import dump, load

    recipe = load({"model": "DIR", "data": "F.jsonl", "output_dir": str(tmp_path)}, ["r=3"])
    RunFolder(tmp_path).put("recipe.yaml", dump(recipe))
    seen = []
    monkeypatch.setattr(halter.run, "train", lambda source, overrides, **_: seen.append(load(source, overrides)))
    assert main.run(["train", "--resume", "--output", str(tmp_path)]) == 0
    assert seen == [recipe]


def test_init_writes_once_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    assert main.run(["init", "qlora", str(file), "--model", "DIR", "--data", "F.jsonl"]) == 0
    written = {"path": "DIR", "dtype": "auto", "quantize": "nf4", "offload": "none"}
    assert yaml12.read(file).data["model"] == written
    assert main.run(["init", "lora", str(file)]) == 2  # never over a file that is there
    capsys.readouterr()
    assert main.run(["init", "lora", "-"]) == 0
    assert capsys.readouterr().out.startswith("# Halter, a recipe for lora")
    assert main.run(["init", "--schema"]) == 0
    assert '"title": "Halter recipe"' in capsys.readouterr().out
