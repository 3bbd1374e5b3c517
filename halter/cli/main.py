"""The command `halter`: finds the command, runs it, and turns what went wrong into one paragraph and an exit code.

A command is a file in this folder with a function ``command`` whose arguments typer turns into flags, and a line in
VERBS. A file may also have SETTINGS, typer's context settings, or COMMANDS, {word: function} of a command that is
followed by a second word; ``command`` then only says what the command is about.
Nothing heavy is imported before it is known.
"""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from typing import Any, NoReturn

from halter.cli.interrupts import INTERRUPTED, begin, started
from halter.errors import HalterError, Refusal
from halter.telling import RED, loudness, painted, spelt, wrapped
from halter.version import __version__

VERBS = {
    "demo": "see a LLaMA adapted in a minute, without model or data of your own",
    "init": "write a recipe with every key explained",
    "inspect": "see what a recipe would train on, token by token, before a model is loaded",
    "train": "train an adapter, from a recipe or from flags alone",
    "doctor": "find everything that would keep a recipe from training; without one, what this machine has",
    "plan": "see what training and asking will take: parameters, memory, disk, time; no weights are read",
    "generate": "answer prompts with a run, an adapter or a model",
    "chat": "talk to a run, an adapter or a model",
    "serve": "answer requests over HTTP, with one base and any number of its adapters",
    "evaluate": "score a run on held-out rows, base beside adapter",
    "compare": "train several methods side by side on your data: quality, memory, speed, forgetting",
    "merge": "fold an adapter into its base: a model folder, proven equal",
    "adapters": "list, show, diff, combine, compress and convert adapter folders",
    "keys": "make, list and remove the keys with which people ask a server",
    "audit": "verify and show the audit log of a server",
    "playground": "the embedded little world: its tasks as files, and its base",
    "completion": "a script with which your shell completes commands, flags and methods",
}
"""{command: one line of help}, in the order of --help. The file of the same name holds it."""

ALWAYS = ("--debug", "--quiet", "--verbose")
SHORT = {"-q": "--quiet", "-v": "--verbose", "-h": "--help"}
TERMINATED = 143


def entry() -> NoReturn:
    """The command, from its words to its exit code."""
    begin()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a pipe that knows no UTF-8 must not end the work
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code: 0, 1 failure, 2 the user's mistake, 130 and 143 signals."""
    arguments = [SHORT.get(word, word) for word in arguments]
    debug, quiet, verbose = (flag in arguments for flag in ALWAYS)
    arguments = [a for a in arguments if a not in ALWAYS]
    loudness(quiet, verbose)
    try:
        if not arguments or arguments[0] in ("--help", "help"):
            print(overview())
            return 0
        if arguments[0] in ("--version", "-V"):
            print(f"halter {__version__}")
            return 0
        code = _verb(arguments[0], arguments[1:])
        sys.stdout.flush()  # here and not at the interpreter's end, so that a full disk is told as one
        return code
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as `halter ... | head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _report(error, debug, verbose)


def overview() -> str:
    """What `halter --help` prints."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {name:<{width}}{line}" for name, line in VERBS.items()]
    return "\n".join(
        [
            "Usage: halter COMMAND [ARGUMENTS]",
            "",
            "Adapt LLaMA models with small adapters beside a frozen base.",
            "",
            *lines,
            "",
            "halter COMMAND --help says more. Every command takes --quiet (warnings and results only), --verbose",
            "(where each default comes from, every mistake in full) and --debug (the traceback of a failure).",
            "--version shows the version.",
        ]
    )


def _verb(name: str, arguments: list[str]) -> int:
    if name not in VERBS:
        from halter.cli.otherwise import COMMANDS, in_place_of

        fix = in_place_of(name, list(VERBS), COMMANDS, "halter", arguments)
        what = f"there is no command {name!r}"
        raise Refusal("unknown-command", what, expected=f"one of {', '.join(VERBS)}", fix=fix)
    import signal

    import typer

    from halter.cli.typed import refuse_misgiven
    from halter.cli.usage import output_as_ours, refuse_others
    from halter.files.dtype_names import with_long_names

    signal.signal(signal.SIGTERM, _terminated)
    usage: Any = typer.BadParameter.__bases__[0]  # every mistake in flags and arguments
    arguments = with_long_names(arguments)
    whole = built(name)
    seconds = vars(whole).get("commands", {})
    chosen = seconds.get(arguments[0]) if seconds and arguments else whole
    if chosen is not None:
        refuse_misgiven(chosen, arguments[1:] if seconds else arguments)
        if chosen.context_settings.get("ignore_unknown_options"):
            arguments = output_as_ours(chosen, arguments)
            refuse_others(chosen, name, arguments)
    started()
    try:
        result = whole.main(args=arguments, prog_name=f"halter {name}", standalone_mode=False)
    except typer.Abort as error:  # typer's name for Ctrl-C and for the end of input
        raise KeyboardInterrupt from error
    except usage as error:
        from halter.cli.usage import refused

        raise refused(error, name, arguments, built) from error
    if result == INTERRUPTED:  # what typer makes of Ctrl-C while a command runs
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def built(name: str) -> Any:
    """The command of one file, as typer makes it: with ``commands`` where it is followed by a second word."""
    import typer

    module = import_module(f"halter.cli.{name}")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    seconds = vars(module).get("COMMANDS")
    if seconds:
        app.callback()(module.command)
    for word, function in (seconds or {None: module.command}).items():
        app.command(word, context_settings=vars(module).get("SETTINGS"))(function)
    return typer.main.get_command(app)  # type: ignore[attr-defined]


def _terminated(signum: int, frame: Any) -> NoReturn:
    _say("terminated")
    raise SystemExit(TERMINATED)


def _report(error: Exception, debug: bool, verbose: bool = False) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    from halter.cli.no_memory import in_words
    from halter.files.unwritten import Unwritten, of_system

    if told := in_words(error):
        _say(" ".join([told, *getattr(error, "__notes__", [])]))
        return 1
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # what ~name of nobody is to Python
        what = "a path begins with ~ and the name of a user who is not here"
        error = Refusal("no-home", what, fix="write the path out; ~/ alone is your own folder")
    if isinstance(error, OSError):
        error = of_system(error) or error
    if isinstance(error, Unwritten):
        _say(str(error))
        return error.exit_code
    if isinstance(error, Refusal):
        from halter.cli.brief import message
        from halter.files.found_list import keep_found

        kept = keep_found(error)
        _say(message(error, None if kept is None else str(kept), verbose))
        return Refusal.exit_code
    what = str(error) if isinstance(error, HalterError) else f"{type(error).__name__}: {error}"
    # Whoever has a run folder writes the traceback there and says so in a note.
    notes = getattr(error, "__notes__", [])
    hint = [] if debug or notes else ["--debug shows the traceback"]
    _say(". ".join(part.rstrip(". ") for part in [what, *notes, *hint]) + ".")
    return 1


def _say(text: str) -> None:
    print(painted(wrapped(spelt(f"halter: {text}", sys.stderr)), RED), file=sys.stderr, flush=True)
