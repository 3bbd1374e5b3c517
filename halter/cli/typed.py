"""What can be said of a command's words before it runs: flags given twice that take one value, values left empty."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from halter.cli.strays import refuse_long_dash, refuse_opened
from halter.cli.texts import refuse_curly, tell_odd
from halter.errors import Refusal

NAMED = frozenset({"run", "source", "folders", "a", "b"})
"""Parameters that name something besides, of which none may be left empty as those may."""
QUOTED = re.compile(r"[\"'\u2018-\u201f\u00ab\u00bb`](.+)[\"'\u2018-\u201f\u00ab\u00bb`]")
PLACES = frozenset({"output", "html", "model", "adapter", "input", "file", "folder", "data"})
"""Parameters that name something; an empty word, as of a shell variable that is not set, names nothing."""


def refuse_misgiven(command: Any, arguments: list[str]) -> None:
    """Refusal ``usage`` for the words of one command, typer's; wrong flags are left to typer itself.

    A flag that takes several values adds up; one that takes a single value is refused when it comes again, since
    nobody can tell which one was meant.
    """
    refuse_opened(arguments)
    refuse_curly(arguments)
    try:
        context = command.make_context(command.name or "", [], resilient_parsing=True)
        values, _, order = command.make_parser(context).parse_args(list(arguments))
    except Exception:  # whatever typer says of the words, it says when it reads them
        return
    if not context.ignore_unknown_options:
        refuse_long_dash(arguments, [flag for one in command.params for flag in one.opts])
    single = [o.opts[-1] for o in order if o.param_type_name == "option" and not (o.multiple or o.is_flag)]
    again = [flag for flag, count in Counter(single).items() if count > 1]
    if again:
        raise Refusal(
            "usage", "this flag takes one value and is given more than once", found=again, fix="keep one of them"
        )
    empty = [name for name, value in values.items() if name in PLACES and "" in (value, *_listed(value))]
    if empty:
        raise Refusal("usage", "the value is empty", where=empty[0], fix="name a file or a folder; . is this folder")
    for name in values.keys() & {*PLACES, *NAMED}:
        for one in (values[name], *_listed(values[name])):
            quoted = QUOTED.fullmatch(one) if isinstance(one, str) else None
            if quoted and not Path(one).exists():
                flag = f"--{name} " if any(word.partition("=")[0] == f"--{name}" for word in arguments) else ""
                before = arguments[arguments.index(one) - 1] if one in arguments[1:] else ""
                flag = f"{before} " if before.startswith("--") and "=" not in before else flag
                raise Refusal(
                    "usage",
                    f"{one} holds quotes that the shell has left in it",
                    where=name,
                    fix=f"leave them out: {flag}{shlex.quote(quoted[1])}",
                )
    tell_odd(values, [flag for one in command.params for flag in one.opts])


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
