"""Ctrl-C at any moment of a command's start: exit code 130, one line, no traceback, nothing half-written."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playground_run import recipe

from halter.cli import interrupts
from halter.files.disk import TEMPORARY, UNFINISHED
from halter.files.writing import write_text
from halter.recipe import dump, load

START = (
    "import sys; sys.argv[0] = 'halter'; from halter.cli import entry, interrupts; interrupts.begin(); "
    "print('begun', flush=True); entry.entry()"
)
"""What the console script does. It tells when Ctrl-C is the command's: before, it is Python's own."""


def words_of(folder: Path) -> list[list[str]]:
    file = folder / "my-recipe.yaml"
    file.write_text(dump(load(recipe(folder, max_steps=500))), "utf-8")
    return [
        ["train", str(file)],
        ["doctor", str(file)],
        ["generate", "--model", load(str(file)).model.path, "--prompt", "hi"],
        ["compare", "--quick", "--output", str(folder / "compared")],
        ["inspect", str(file)],
        ["plan", "--model", "llama-3.2-1b"],
        ["adapters", "list", str(folder)],
    ]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_at_any_moment(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    codes = []
    for n in range(30):
        folder = tmp_path / f"{n}"
        folder.mkdir()
        command = dice.choice(words_of(folder))
        with subprocess.Popen(
            [sys.executable, "-c", START, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
            time.sleep(dice.uniform(0.004, 0.1) if n % 3 == 0 else dice.uniform(0, 2))
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        assert "Traceback" not in err and "Exception ignored" not in err and "Error" not in err, (command, err)
        # Its own end came first (0, or 2 of a refusal), or the signal met Python's end, where it is the system's (-2).
        assert process.returncode in (130, 0, 2, -signal.SIGINT), (command, process.returncode, err)
        assert process.returncode != 130 or "halter: interrupted" in err, (command, err)
        assert not [p for p in folder.rglob("*") if TEMPORARY in p.name or p.name == ".in-use"]
        codes.append(process.returncode)
    assert codes.count(130) > 5  # ten of them come in the first tenth of a second


class Ended(BaseException):
    pass


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(interrupts, "_started", True)
    monkeypatch.setattr(interrupts, "end", lambda: leave(130))


def pressed_in_an_import(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that presses Ctrl-C while it is imported."""
    (folder / f"{name}.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(0.1)\nwhole = True\n", "utf-8"
    )
    monkeypatch.syspath_prepend(str(folder))
    former = signal.signal(signal.SIGINT, interrupts.interrupted)
    try:
        module = __import__(name)
        assert module.whole
        time.sleep(0.5)
    finally:
        signal.signal(signal.SIGINT, former)


def test_an_import_is_never_left_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While something is written the interruption waits until the import is done; else the process ends at once."""
    with pytest.raises((Ended, KeyboardInterrupt)) as caught:
        pressed_in_an_import(tmp_path, "pressed_one", monkeypatch)
    assert caught.type is Ended
    monkeypatch.setattr(interrupts, "_at_work", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        pressed_in_an_import(tmp_path, "pressed_two", monkeypatch)


def test_what_is_being_written_is_known(tmp_path: Path) -> None:
    seen = []

    class Watching(type(__import__("halter.files.disk", fromlist=["Disk"]).DISK)):  # type: ignore[misc]
        def write(self, descriptor: int, data: memoryview) -> int:
            seen.append(interrupts._at_work())
            return os.write(descriptor, data)

    write_text(tmp_path / "f", "text", disk=Watching())
    assert seen == [True] and not UNFINISHED
