"""What can be typed in `halter chat` beside what is asked, and what is said of words that are near to it."""

from __future__ import annotations

import re
from difflib import get_close_matches

from halter.errors import Refusal

HELP = """\
/adapter NAME   answer with another adapter: a run or adapter folder, or its name beside this one
/adapter        the adapters loaded so far
/base           answer with the base alone
/system TEXT    another system message, none without TEXT; the conversation goes on
/image PATH     a picture that goes ahead of what is asked next
/temperature X  how wild the answers are: 0 takes the likeliest words
/retry          answer the last question again
/save FILE      write the conversation to a new jsonl file, which halter train reads
/reset          forget the conversation
\"\"\"             begins and ends a text of several lines, or one that looks like a command
/help           this
/quit           leave (so does Ctrl-D); Ctrl-C stops an answer"""
COMMANDS = tuple(dict.fromkeys(re.findall(r"(?m)^/\w+", HELP)))
LEAVING = ("/quit", "/exit", "/bye", "quit", "exit", "quit()", "exit()", ":q")
"""Lines that leave; those without a slash do in other programs, and nobody asks them of a model."""
ELSEWHERE = {
    "/clear": "/reset",
    "/new": "/reset",
    "/regenerate": "/retry",
    "/load": "/adapter",
    "/picture": "/image",
    "/?": "/help",
    "/set": "/temperature X or /system TEXT",
    "/parameter": "/temperature X",
}
"""{a command of other programs: ours}."""


def leaves(line: str) -> bool:
    """Whether a line ends the chat."""
    return line.lower() in LEAVING or line.startswith("/") and line.split()[0].lower() in LEAVING


def meant_by(word: str) -> str:
    """Our command that a word was meant as, with or without its slash; '' for one that is near to none."""
    begun = [one for one in COMMANDS if len(word) > 2 and one.startswith(word)]
    return ELSEWHERE.get(word) or next(iter(begun or get_close_matches(word, COMMANDS, 1)), "")


def unknown(word: str) -> str:
    """What is said of a command that there is not."""
    near = meant_by(word.lower())
    meant = f"; did you mean {near}?" if near else '; a text that begins with a slash stands between """ and """.'
    return f"There is no command {word}{meant} /help lists them.\n"


def without_slash(line: str) -> str:
    """What is said of a line that is a command's name alone and is asked of the model all the same; else ''."""
    word = f"/{line.lower()}"
    return f"(this is asked of the model; {word} is the command)\n" if word in COMMANDS else ""


def number(text: str) -> float:
    """The number after /temperature. Refusal ``usage``."""
    try:
        return float(text)
    except ValueError:
        from halter.recipe.unknown import number_in

        meant, remark = number_in(text.strip())
        what = f"{text.strip()!r} is no number" if text.strip() else "/temperature needs a number"
        fix = f"/temperature {meant}{remark}" if meant else ""
        raise Refusal("usage", what, expected="" if fix else "/temperature 0.8", fix=fix) from None
