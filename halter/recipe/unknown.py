"""What is said of a key that is unknown or missing: where it belongs, which methods have it, or which key was meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from halter.elsewhere import SHORTEST, meant_of
from halter.recipe.aliases import ALIASES
from halter.recipe.sections import DEFAULT_METHOD, SECTIONS, method_class, method_names

NOT_LOOSE = frozenset({"name", "path"})
"""Keys too general to be understood outside their section."""
MOST_LISTED = 12
"""Keys of a section that are listed to somebody whose own is near to none of them."""

DEVICES = frozenset("gpu gpus gpu_id gpu_ids gpu_device cuda cuda_device cuda_visible_devices use_gpu".split())
"""Keys by which other programs choose a device."""

Keys = Callable[[str, type[Any] | None], list[str]]


def unknown(section: str, key: str, method: str, keys: Keys, inner: Sequence[str | int] = ()) -> str:
    """``key`` of ``section`` ('' for a loose one), which ``method`` does not take ('' where no such method is known).

    ``keys`` lists those of a section; ``inner`` follows the key. What is named as meant is always one that could stand
    there.
    """
    options = method_class(method) if method else None
    if not section and key in method_names():
        meant = f"; did you mean method.{inner[0]}?" if inner and inner[0] in keys("method", options) else ""
        return f"unknown key {key!r}: the options of a method stand under method, beside its name{meant}"
    here = keys(section, options) if section else ["output_dir", *SECTIONS, "method"]
    alias = ALIASES.get(key)
    for home in (*SECTIONS, "method"):
        known = alias.section == home and alias.key in keys(home, options) if alias else key in keys(home, options)
        if home != section and known and key not in NOT_LOOSE:
            return f"unknown key {key!r} in {section or 'the recipe'}; it belongs in {home}"
    what = f"unknown key {key!r}" + (f" in {section}" if section else "")
    if section and (key in keys("", None) or (alias and not alias.section)):
        return f"{what}; it belongs at the top, as {alias.key if alias else key}"
    if key.lower() in DEVICES:
        return f"{what}; a device is named by model.device, such as cuda:0"
    if section and key in (*SECTIONS, "method"):
        return f"{what}; it is a section of its own: its name begins at the left margin"
    others = methods_with(alias.key if alias and alias.section == "method" else key)
    if method and others and section in ("", "method"):
        own = ", ".join(keys("method", options)[2:])
        return f"{what}: {method} has no such option ({_some(others)} have it); it has {own or 'none'}"
    near = _near(section, key, here, options, keys)
    few = f"; there are: {', '.join(here)}" if len(here) <= MOST_LISTED else ""
    return what + (f"; did you mean {near}?" if near else few)


def _near(section: str, key: str, here: Sequence[str], options: type[Any] | None, keys: Keys) -> str:
    """The nearest key that could stand where this one does, under our own name for it; '' where none is near."""
    if len(key) < SHORTEST:
        return ""
    usable = {name: name for name in here}
    if not section:
        usable |= {name: name for home in (*SECTIONS, "method") for name in keys(home, options)}
    for name, alias in ALIASES.items():
        if section in ("", alias.section) and alias.key in keys(alias.section, options):
            usable.setdefault(name, alias.key)
    close = [usable[name] for name in get_close_matches(key, usable, 3, cutoff=0.6) if usable[name] != key]
    return close[0] if close else ""


def methods_with(key: str) -> list[str]:
    """The methods that have this option."""
    return [name for name in method_names() if key in method_class(name).__dataclass_fields__]


def _some(names: Sequence[str]) -> str:
    """lora, dora and 5 others."""
    first = [name for name in (DEFAULT_METHOD, *names) if name in names]
    shown = list(dict.fromkeys(first))[:3]
    rest = len(names) - len(shown)
    if rest:
        return f"{', '.join(shown)} and {rest} more"
    return " and ".join(shown) if len(shown) < 3 else f"{', '.join(shown[:-1])} and {shown[-1]}"


EXAMPLES = {
    "learning_rate": "2e-4",
    "validation": "0.1",
    "r": "16",
    "alpha": "32",
    "dropout": "0.05",
    "max_steps": "100",
    "num_train_epochs": "3",
    "max_length": "512",
    "limit": "1000",
    "per_device_train_batch_size": "8",
    "weight_decay": "0.01",
    "max_grad_norm": "1.0",
    "micro_tokens": "4096",
    "eval_steps": "0.1",
    "save_steps": "0.1",
    "logging_steps": "10",
    "warmup_steps": "0.03",
}
"""Values that keys can have, shown where one was given that cannot be."""


def way_out(problems: Sequence[str], typed: bool) -> str:
    """What to do where these keep a recipe from being one; ``typed``: there is no file, only flags."""
    fix = "halter init METHOD writes a recipe with every key explained"
    lacking = {"--model DIR": "model.path is needed", "--data FILE": "data.train is needed"}
    flags = [flag for flag, start in lacking.items() if any(problem.startswith(start) for problem in problems)]
    if typed and len(flags) == len(problems):
        return f"add {' '.join(flags)}; {fix}"
    ways = [way for problem in problems if (way := _value_way(problem))]
    return "; ".join(dict.fromkeys(ways)) if ways and len(ways) == len(problems) else fix


OUT_OF_RANGE = re.compile(
    r"(?:^|: )(\w+)\.(?:\d+\.)?(\w+): .*(?:must |lies between|expected a (?:finite |whole )?number)"
)
MOVED = re.compile(r"^command line, [\w.-]+=(.*): unknown key .*; did you mean (method\.\w+)\?$", re.DOTALL)
OTHERWISE = re.compile(
    r"no method is called .*; here: (?:(\w+)(?: with (\S+))?|.* nearest are (\w+), (\w+))\. There are"
)
METHODS = re.compile(r"no method is called .*; did you mean ([\w,]+)\?")
A_LIST = re.compile(r"(?:^|: )((?:\w+\.)+\w+): expected a list of .*, found (?:the word '([^']*)'|(\S+))$")
A_MAPPING = re.compile(r"(?:^|: )((?:\w+\.)+\w+): expected a mapping .*, found the word '([^']*)'$")
ONE_OF = {"data.columns": "prompt: {}", "data.roles": "{}: user"}
"""Mappings of which a single word is the part that people have."""
PAIR = re.compile(r"\s*([\w-]+)\s*[:=]\s*([^:=,]+?)\s*")
WORD = re.compile(r"found the word '([^']*)'$")
LISTED = re.compile(r"(?:^|: )((?:\w+\.)+\w+): expected one of (.*?)(?: or null)?, found (?:the word '([^']*)'|(\d+))$")
ALONE = re.compile(r"^command line, ([\w.-]+)=true: .*, found true$")
SCALES = {"k": 10**3, "m": 10**6, "%": 0.01}
ELSEWHERE = re.compile(r"unknown key '([^']+)' in ([\w ]+); it belongs (?:in (\w+)|at the top, as (\w+))$")
DEVICE = re.compile(r"^(?:command line, [\w.-]+=(\S*): )?.*; a device is named by model\.device")
RATIO = re.compile(r"warmup[_-]ratio: .*; found (\d+(?:\.\d+)?)$")
GOES_ON = re.compile(r"halter train --resume --output \S+")
TWICE = re.compile(r"(\w+\.\w+) is given twice and takes one value")


def _value_way(problem: str) -> str:
    """What to do about a value that a key cannot have, with one that it can; '' of another kind of mistake."""
    if way := GOES_ON.search(problem):
        return way[0]
    if told := _elsewhere_way(problem):
        return told
    if twice := TWICE.search(problem):
        return f"give {twice[1]} once"
    if listed := LISTED.search(problem):
        meant = meant_of(listed[3] or listed[4] or "", listed[2].split(", "))
        return f"did you mean {listed[1]}={meant}?" if meant else ""
    found = OUT_OF_RANGE.search(problem)
    example = EXAMPLES.get(found[2]) if found else None
    if moved := MOVED.search(problem):
        return f"{moved[2]}={moved[1]}"
    if otherwise := _several_way(problem):
        return otherwise
    if alone := ALONE.search(problem):
        told = f"a flag without a value is true: --{alone[1]} has no value"
        return f"{told}; --{alone[1]} {example}" if example else told
    if found and "whole number" in problem and (whole := re.search(r"found (\d+)\.0$", problem)):
        return f"such as {found[1]}.{found[2]}={whole[1]}"
    if found and (word := WORD.search(problem)):
        number, remark = number_in(word[1])
        if number and (number.isdigit() or "whole number" not in problem or "or a number" in problem):
            return f"such as {found[1]}.{found[2]}={number}{remark}"
    return f"such as {found[1]}.{found[2]}={example}" if found and example else ""


def _elsewhere_way(problem: str) -> str:
    """What to do about a key that another section has, that names a device, or whose share was given in percent."""
    if ratio := RATIO.search(problem):
        number = float(ratio[1])
        percent = f"train.warmup_steps={number / 100:.12g} for {ratio[1]} %" if number < 100 else ""
        steps = f"train.warmup_steps={number:.0f} for {number:.0f} steps" if number == int(number) else ""
        return ", ".join(filter(None, (percent, steps)))
    if device := DEVICE.search(problem):
        first = re.match(r"\d+", device[1] or "")
        return "--device cpu" if device[1] in ("false", "-1") else f"--device cuda:{first[0] if first else 0}"
    if (placed := ELSEWHERE.search(problem)) and not problem.startswith("command line"):
        home = f"under {placed[3]}" if placed[3] else "at the left margin, beside the sections"
        there = "" if placed[2] == "the recipe" else f", and not under {placed[2]}"
        return f"write {placed[4] or placed[1]} {home}{there}"
    return ""


def _several_way(problem: str) -> str:
    """What to do about a value of which several things were meant: methods, a list, a mapping."""
    if other := OTHERWISE.search(problem):
        return f"--method {other[3]}, or {other[4]}" if other[3] else f"--method {other[1]} {other[2] or ''}".rstrip()
    if methods := METHODS.search(problem):
        return f"--method {methods[1]}"
    if (several := A_LIST.search(problem)) and re.fullmatch(r"[\w. ,-]+", several[2] or several[3]):
        return f"such as {several[1]}='[{several[2] or several[3]}]'"
    if mapping := A_MAPPING.search(problem):
        pairs = [PAIR.fullmatch(part) for part in mapping[2].strip("{} ").split(",")]
        told = ", ".join(f"{pair[1]}: {pair[2]}" for pair in pairs if pair)
        told = told if all(pairs) else ONE_OF[mapping[1]].format(mapping[2]) if mapping[1] in ONE_OF else ""
        return f"such as {mapping[1]}='{{{told}}}', quoted" if told else ""
    return ""


def number_in(word: str) -> tuple[str, str]:
    """(the number that a word was meant as, a remark on how it was written), '' where it is none."""
    if re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", word):
        return word, ", and leave the quotes out"
    if re.fullmatch(r"\d+,\d{1,2}|0,\d+", word):
        return word.replace(",", "."), ", with a point"
    if re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+", word):
        return word.replace(",", ""), ""
    if scaled := re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKmM%])", word):
        number = float(scaled[1]) * SCALES[scaled[2].lower()]
        return (f"{number:.12g}", "") if scaled[2] != "%" or 0 < number < 1 else ("", "")
    return "", ""
