"""What people see on standard error: how loud, how wide, in what colour, and through Python's logging."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from halter import telling
from halter.cli import main


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logger() -> Iterator[logging.Logger]:
    """Halter's logger as nobody has used it; afterwards as it was.

    Something is told first, as files that run before this one do: from then on the logger does not propagate, and
    pytest puts handlers of its own on every such logger before a test is called. Halter would take them for a person's
    and leave its own away, so what is reset is ``propagate`` too.
    """
    one = logging.getLogger(telling.LOGGER)
    telling.tell("note: before")
    before = [h for h in one.handlers if isinstance(h, telling.Screen)], one.level, one.propagate
    one.handlers, one.propagate = [], True
    one.setLevel(logging.NOTSET)  # not by assigning: the logger keeps which levels it tells until it is set this way
    yield one
    one.handlers, one.propagate = before[0], before[2]
    one.setLevel(before[1])


@pytest.mark.parametrize(
    ("flags", "told"),
    [((), "warning: w|note: n|"), (("--quiet",), "warning: w|"), (("--verbose",), "warning: w|note: n|default: d|")],
)
def test_quiet_and_verbose(capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], told: str) -> None:
    main.run(["--version", *flags])
    for text in ("warning: w", "note: n", "default: d"):
        telling.tell(text)
    assert capsys.readouterr().err.replace("\n", "|") == told


def test_a_handler_of_the_users_takes_the_place_of_ours(
    capsys: pytest.CaptureFixture[str], logger: logging.Logger
) -> None:
    heard: list[tuple[str, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append((record.levelname, record.getMessage()))  # type: ignore[method-assign]
    logger.addHandler(handler)
    telling.tell("warning: 100 % of it")
    assert heard == [("WARNING", "warning: 100 % of it")] and capsys.readouterr().err == ""


def test_a_terminal_gets_whole_words_and_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    text = "warning: " + "a message that is longer than the terminal is wide [template-unknown] " * 2
    telling.tell(text)
    lines = screen.getvalue().rstrip("\n").split("\n")
    assert lines[0].startswith(f"{telling.YELLOW}warning:{telling.PLAIN} ")
    plain = [line.replace(telling.YELLOW, "").replace(telling.PLAIN, "") for line in lines]
    assert len(plain) > 3 and max(map(len, plain)) < 40 and " ".join(" ".join(plain).split()) == " ".join(text.split())
    monkeypatch.setenv("NO_COLOR", "1")
    assert telling.painted("warning: w", telling.YELLOW) == "warning: w"


def test_another_librarys_configuration_does_not_silence_halter(capsys: pytest.CaptureFixture[str]) -> None:
    telling.tell("note: one")
    logging.getLogger(telling.LOGGER).disabled = True  # as logging.config.dictConfig does to loggers that are there
    telling.tell("note: two")
    assert capsys.readouterr().err == "note: one\nnote: two\n"


def test_a_pipe_gets_whole_lines_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    telling.tell("warning: " + "word " * 60)
    assert capsys.readouterr().err.count("\n") == 1


def test_what_a_stream_cannot_spell_is_escaped() -> None:
    """In a process of its own, whose streams know ASCII alone."""
    code = "from halter.telling import tell; tell('caf\\u00e9 \\u2581')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONIOENCODING": "ascii"}, timeout=60
    )
    assert done.returncode == 0 and done.stderr == "caf\\xe9 \\u2581\n"
