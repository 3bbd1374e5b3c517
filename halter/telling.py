"""How Halter speaks to a person: through Python's logger "halter", which whoever imports Halter may turn down or away.

Warnings and notes have the levels that their first word says; where every default comes from is told at DEBUG. Until
somebody gives the logger a handler of their own, lines go to standard error, wrapped to a terminal's width, warnings in
colour. ``logging.getLogger("halter").setLevel(logging.WARNING)`` is the command line's --quiet.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from functools import cache

LOGGER = "halter"
LEVELS = {"default:": logging.DEBUG, "warning:": logging.WARNING}
"""{a line's first word: its level}; every other line is INFO."""
Say = Callable[[str], None]
"""Who is told of what happens, a line at a time."""
YELLOW, RED, PLAIN = "\x1b[33m", "\x1b[31m", "\x1b[0m"


def tell(text: str) -> None:
    """Tell one thing. Never raises: a line that the stream cannot spell is spelt with escapes."""
    logger = logging.getLogger(LOGGER)
    if not logger.handlers:
        logger.addHandler(Screen())
        logger.propagate = False
    logger.disabled = False  # which a library's logging.config does to every logger that is there before it
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    logger.log(LEVELS.get(text.partition(" ")[0], logging.INFO), "%s", text)


@cache
def tell_once(text: str) -> None:
    """Tell what is the same for every call of a process."""
    tell(text)


def loudness(less: bool, more: bool) -> None:
    """Tell warnings only, or everything; neither leaves the level as it is."""
    if less or more:
        logging.getLogger(LOGGER).setLevel(logging.WARNING if less else logging.DEBUG)


def quiet() -> bool:
    """Whether only warnings are told."""
    return logging.getLogger(LOGGER).level > logging.INFO


def painted(text: str, colour: str) -> str:
    """``text``, its first word in colour where standard error is a terminal that shows one."""
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    word, space, rest = text.partition(" ")
    return f"{colour}{word}{PLAIN}{space}{rest}"


def columns() -> int:
    """The width of the terminal, where standard error is one."""
    return max(20, shutil.get_terminal_size((100, 24)).columns - 1)


def wrapped(text: str) -> str:
    """Each line folded between words to a terminal's width; as it is elsewhere, so that programs read whole lines."""
    return folded(text, columns()) if sys.stderr.isatty() else text


def folded(text: str, width: int) -> str:
    """Each line folded between words to this width."""
    folds = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}
    return "\n".join(textwrap.fill(line, width, subsequent_indent="  ", **folds) for line in text.split("\n"))  # type: ignore[arg-type]


class Screen(logging.Handler):
    """Standard error as it is when a line is told."""

    def emit(self, record: logging.LogRecord) -> None:
        text = wrapped(record.getMessage())
        if record.levelno >= logging.WARNING:
            text = painted(text, YELLOW)
        print(spelt(text, sys.stderr), file=sys.stderr, flush=True)


def spelt(text: str, stream: object) -> str:
    """``text`` with escapes for what the stream's encoding does not have."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
