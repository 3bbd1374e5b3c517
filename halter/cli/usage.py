"""What is said of flags and values that typer refuses: all that are unknown at once, a number as it was meant."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from halter.cli.otherwise import ADAPTERS, in_place_of
from halter.cli.strays import NAMES, is_key
from halter.elsewhere import meant_of, ours_for
from halter.errors import Refusal
from halter.files.nearby import base_beside
from halter.files.row_names import called_rows

WAYS = {
    "do_sample": ("temperature", "--temperature 0.7 samples, 0 takes the likeliest words"),
    "num_beams": ("temperature", "there is no search with beams"),
    "load_in_4bit": ("quantize", "--quantize nf4"),
    "load_in_8bit": ("quantize", "--quantize int8"),
    "metrics": ("questions", "every measure is taken, none is chosen"),
    "metric": ("questions", "every measure is taken, none is chosen"),
    "batch_size": ("max_new_tokens", "rows are put together without being told how many"),
    "stream": ("max_new_tokens", "a single answer is printed as it comes"),
    "cpu": ("device", "--device cpu"),
    **dict.fromkeys(("gpu", "gpus", "gpu_id", "cuda"), ("device", "--device cuda:0")),
    "fp16": ("dtype", "--dtype float16"),
    "bf16": ("dtype", "--dtype bfloat16"),
    "trust_remote_code": ("model", "code that comes with a model is never run"),
}
"""{another program's flag: (a flag that the command has where this holds, what is so here)}."""
SHORT = {"p": "prompt", "m": "model", "i": "input", "o": "output", "t": "temperature", "d": "data", "s": "system"}
"""{a flag of one letter, which there is not here: the word for it}."""
STANDS = ("--run", "--run-dir", "--run_dir", "--checkpoint", "--ckpt", "--adapter-path", "--adapter_path")
"""Flags by which other programs name what is asked, and which stands by itself here."""
ASKING = ("generate", "evaluate", "chat")
"""Commands whose flags are looked for where another one of them has not got it."""
NEAR = 0.75
ALONE = {
    "demo": "the demo brings its own model and rows; yours: halter train --model DIR --data FILE",
    "init": "the method is the first word: halter init METHOD FILE",
}
"""{a command: what is said of anything that it does not take}."""
NUMBER = re.compile(r"'(--[\w-]+)': Input should be a valid (number|integer)")
CHOICE = re.compile(r"'(--[\w-]+)': (?:Value error, )?'([^']*)' is not one of (.*)")
NO_COMMAND = re.compile(r"No such command '([^']*)'")


def refused(error: Any, verb: str, arguments: Sequence[str], built: Callable[[str], Any]) -> Refusal:
    """Refusal ``usage`` for a mistake of typer's in the words of ``halter verb``. ``built`` makes any command."""
    context = getattr(error, "ctx", None)
    command = f"halter {verb}" if context is None else context.command_path
    lists = "; ".join(filter(None, [ALONE.get(verb, ""), f"{command} --help lists flags and arguments"]))
    if "possibilities" in vars(error) and context is not None:
        found = list(_unknown(context.command, verb, arguments, built)) or [error.option_name]
        if all("(" not in flag and is_key(flag.strip("-")) for flag in found):
            lists = _keys_elsewhere([_with_value(flag, arguments) for flag in found], context.command)
        if told := _by_itself(context.command, command, arguments):
            found, lists = [told[0]] if len(found) == 1 else found, told[1]
        return Refusal("usage", f"{command} has no such flag", found=found, fix=lists)
    what = error.format_message().replace("Value error, ", "")  # pydantic's own words before ours
    if number := NUMBER.search(what):
        return _no_number(number[1], number[2] == "integer", error.param, arguments, lists)
    if choice := CHOICE.search(what):
        meant = meant_of(choice[2], re.findall(r"'([^']*)'", choice[3]))
        lists = f"did you mean {choice[1]} {meant}? {lists}" if meant else lists
        if choice[2].lower() == "gguf":
            lists = "halter merge RUN --output DIR, and llama.cpp's convert_hf_to_gguf.py makes GGUF of DIR"
    if context is not None and (second := NO_COMMAND.search(what)):
        known = list(vars(context.command).get("commands", {}))
        fix = in_place_of(second[1], known, ADAPTERS, command, arguments[1:])
        return Refusal(
            "unknown-command", f"{command} has no {second[1]!r}", expected=f"one of {', '.join(known)}", fix=fix
        )
    if "unexpected extra argument" in what:
        loose = _loose(arguments)[len(command.split()) - 2 :]  # without a second word
        if both := base_beside(loose):
            return Refusal("usage", "more than one run, adapter or model", found=loose, fix=both)
        *named, last = loose or [""]
        free = context is not None and "--output" in _flags(context.command) and "--output" not in arguments
        if free and named and not Path(last).exists():
            fix = f"{command} {' '.join(named)} --output {last}"
            return Refusal("usage", f"{last} stands without a flag", fix=fix)
        if file := next((w for w in arguments if called_rows(Path(w))), ""):
            other = next((word for word in arguments if word != file and not word.startswith("-")), "RUN")
            lists = f"rows are asked with halter generate {other} --input {file}; {lists}"
    if context is None or getattr(getattr(error, "param", None), "param_type_name", "") != "argument":
        return Refusal("usage", what, fix=lists)
    words = [one.metavar or one.name.upper() for one in context.command.params if one.param_type_name == "argument"]
    return Refusal("usage", what, fix=f"it is typed {' '.join([command, *words])}; {lists}")


def _by_itself(command: Any, name: str, words: Sequence[str]) -> tuple[str, str] | None:
    """(the flag, the whole line) where the run was named by a flag, and stands by itself here."""
    words = words[len(name.split()) - 2 :]  # without a second word
    takes = any(one.param_type_name == "argument" and "RUN" in (one.metavar or "") for one in command.params)
    typed = next((word for word in words if word.partition("=")[0] in STANDS), "")
    if not takes or not typed or _loose(words):
        return None
    given = _with_value(typed.partition("=")[0], words)
    value = re.split("[= ]", given, maxsplit=1)[1:] or ["RUN"]
    at = words.index(typed)
    rest = [*words[:at], *words[at + (1 if "=" in typed else 2) :]]
    return typed.partition("=")[0], " ".join([name, value[0], *map(shlex.quote, rest)])


def _keys_elsewhere(typed: Sequence[str], command: Any) -> str:
    """Where a recipe's keys go that a command has no flags for, each with its value as it was typed."""
    from halter.data.options import DataOptions

    names = [re.split("[= ]", one)[0].strip("-").replace("-", "_") for one in typed]
    takes = any("data.KEY=VALUE" in (one.metavar or "") for one in command.params)
    if takes and all(name in DataOptions.__dataclass_fields__ for name in names):
        values = [re.split("[= ]", one, maxsplit=1)[1:] or ["true"] for one in typed]
        return "here " + " ".join(f"data.{name}={value[0]}" for name, value in zip(names, values))
    train = f"halter train recipe.yaml {' '.join(typed)}"
    return f"a recipe's keys are changed in its file, or where it is trained: {train}"


def _loose(arguments: Sequence[str]) -> list[str]:
    """The words that are neither flags nor stand after one."""
    pairs = zip(["", *arguments], arguments)
    return [word for before, word in pairs if not word.startswith("-") and not re.match("--[^=]+$", before)]


def refuse_others(command: Any, verb: str, words: Sequence[str]) -> None:
    """Refusal ``usage`` of flags by which other programs call what a command that takes any flag as a recipe's key has
    a flag of its own for, where no key is called so."""
    own = {flag.removeprefix("--").replace("-", "_") for flag in _flags(command)}
    found = []
    for word in words:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_").lower()
        ours = next((one for one in ours_for(name) if one in own), "")
        if word.startswith("--") and ours and name not in NAMES and not is_key(name):
            found.append(f"{word.partition('=')[0]} (here --{ours.replace('_', '-')})")
    if found:
        fix = f"halter {verb} --help lists flags and arguments"
        raise Refusal("usage", f"halter {verb} has no such flag", found=found, fix=fix)


def output_as_ours(command: Any, words: Sequence[str]) -> list[str]:
    """The words of a command that has --output for what recipes call output_dir, with that flag for either."""
    if "--output" not in _flags(command):
        return list(words)
    return [re.sub("^--output[-_]dir(?==|$)", "--output", word) for word in words]


def _unknown(command: Any, verb: str, arguments: Sequence[str], built: Callable[[str], Any]) -> Iterator[str]:
    """Every flag that the command has not, each with what may have been meant."""
    known = _flags(command)
    value = False
    for word in arguments:
        flag = word.partition("=")[0]
        if value or not re.match("--|-[A-Za-z]", flag) or flag == "--help":
            value = False
        elif flag in known:
            value = known[flag] and "=" not in word
        elif flag == "--":
            return
        else:
            name = flag.lstrip("-").replace("-", "_").lower()
            meant = _meant(SHORT.get(name, name), verb, known, built)
            yield f"{flag} ({meant})" if meant else flag


def _flags(command: Any) -> dict[str, bool]:
    """{flag: whether a value follows it}."""
    options = [one for one in command.params if one.param_type_name == "option"]
    return {flag: not one.is_flag for one in options for flag in (*one.opts, *one.secondary_opts)}


def _meant(name: str, verb: str, known: dict[str, bool], built: Callable[[str], Any]) -> str:
    """What a flag that is unknown may have been meant as; '' where nobody knows."""

    def has(ours: str) -> bool:
        return f"--{ours.replace('_', '-')}" in known

    if name in WAYS and has(WAYS[name][0]):
        return WAYS[name][1]
    meant = [name, *ours_for(name)]
    if ours := next((one for one in meant if has(one)), ""):
        return f"here --{ours.replace('_', '-')}"
    plain = f"--{name.replace('_', '-')}"
    for other in ASKING if verb in ASKING else ():
        if other != verb and plain in _flags(built(other)):
            return f"a flag of halter {other}"
    near = [] if is_key(name) else get_close_matches(plain, known, 1, cutoff=NEAR)
    return f"did you mean {near[0]}?" if near else ""


def _no_number(flag: str, whole: bool, param: Any, arguments: Sequence[str], lists: str) -> Refusal:
    """Refusal ``usage`` of a value that is no number, with the number that it may have been meant as."""
    value = _value(flag, arguments)
    kind = "a whole number" if whole else "a number"
    meant, remark = _as_number(value, whole)
    several = [part.strip() for part in value.split(",")] if param.multiple else []
    if several and all(_as_number(part, whole)[0] == part for part in several):
        fix = f"give it again for each: {' '.join(f'{flag} {part}' for part in several)}"
    elif meant:
        fix = f"{flag} {meant}{remark}"
    else:
        usual = param.default if isinstance(param.default, int | float) and param.default else 100 if whole else 0.5
        fix = f"such as {flag} {usual}; {lists}"
    return Refusal("usage", f"{flag} {value}: {kind} is needed", fix=fix)


def _value(flag: str, arguments: Sequence[str]) -> str:
    """What stands after a flag; of several the last that is no number."""
    after = [next_ for word, next_ in zip(arguments, arguments[1:]) if word == flag]
    values = [*after, *(word.partition("=")[2] for word in arguments if word.startswith(f"{flag}="))]
    return next((one for one in values if not re.fullmatch(r"-?\d+", one)), "")


def _with_value(flag: str, arguments: Sequence[str]) -> str:
    """A flag as it was typed, with its value."""
    for place, word in enumerate(arguments):
        if word.partition("=")[0] == flag:
            after = arguments[place + 1 : place + 2] if "=" not in word else []
            return shlex.join([word, *(one for one in after if not one.startswith("--"))])
    return flag


def _as_number(value: str, whole: bool) -> tuple[str, str]:
    """(the number that a value was meant as, a remark), '' where it is none of that kind."""
    from halter.recipe.unknown import number_in

    with suppress(ValueError, OverflowError):
        number = float(value)
        return ("" if whole and number != int(number) else str(int(number)) if whole else value), ""
    meant, remark = number_in(value)
    return ("", "") if whole and not meant.isdigit() else (meant, remark)
