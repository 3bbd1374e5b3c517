"""Words that stand where a recipe would and are none: what each of them was meant for, and how that is typed."""

from __future__ import annotations

import re
import shlex
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halter.errors import Refusal
from halter.files.nearby import kind_of
from halter.files.row_names import PACKED, RECIPES, SUFFIXES

NAMES = ("model", "method", "data", "checks", "train")
"""As halter.recipe has them, which takes seconds to import; a test holds the two alike."""
_DATA = (*(suffix for suffix in SUFFIXES if suffix not in RECIPES), PACKED)
SCRIPTS = (".sh", ".bash", ".zsh", ".cmd", ".bat")
LONG_DASH = re.compile(r"-?[\u2010-\u2015\u2212]+-?([A-Za-z][A-Za-z0-9_.-]*)(?:=.*)?", re.DOTALL)
"""A flag whose two hyphens a web page or a word processor has made one long dash of."""
OPENED = re.compile(r"((?:-{0,2}[\w.-]+=)?)([\[{].*)", re.DOTALL)
"""(what stands before the value, the value) of a word whose value opens a bracket."""
NO_RECIPE = "is no recipe (a file that ends in .yaml)"


def percent(number: str) -> str:
    """A number of hundredths as a share: 0.1 of 10; an example where it is no number."""
    try:
        return f"{float(number) / 100:.12g}"
    except ValueError:
        return "0.1"


def refuse_stray(
    word: str,
    after: Sequence[str],
    flag: str,
    overrides: Sequence[str],
    data: Sequence[str],
    recipe: str | None = None,
    rows: str = "--data",
    resumes: bool = False,
) -> None:
    """Refusal ``usage`` where ``word`` is no recipe, or a second one beside ``recipe``.

    ``after`` are the words that follow, ``flag`` the last one before it, which took the last of ``overrides``; ``data``
    is what --data was given, ``rows`` the flag that this command has for rows, ``resumes``: it goes on with runs.
    """
    path = Path(word)
    if recipe is None and path.suffix.lower() in RECIPES and not _rows(path):
        return
    if not path.exists() and after and is_key(word):
        raise Refusal("usage", f"{word} {NO_RECIPE}", fix=f"a key and its value are one word: {word}={after[0]}")
    if not path.exists() and (method := _named(word)).startswith("--method"):
        one, several = ("--method", "--method A,B") if rows == "--data" else ("--methods", "--methods A,B")
        what, fix = f"{word} is a method's name without a flag", f"{one} {method.split()[1]}; several: {several}"
        raise Refusal("usage", what, fix=fix)
    if not resumes and rows != "--data" and kind_of(path) in ("run", "adapter"):
        fix = "halter evaluate RUN scores one, halter adapters diff RUN RUN shows how two differ"
        raise Refusal("usage", f"{word} is trained already, and compare trains what it compares", fix=fix)
    if recipe is not None:
        told = "; ".join(filter(None, (_meant(one, rows, resumes) for one in (recipe, word)))).replace("; --", " --")
        fix = f"say what they are: {told}" if told else "keep one of them"
        raise Refusal("usage", f"two recipes: {recipe} and {word}", expected="one recipe and KEY=VALUE", fix=fix)
    if data and (path.is_file() or not path.exists() and path.suffix):
        again = " ".join(f"--data {one}" for one in (*data, word))
        raise Refusal("usage", f"{word} {NO_RECIPE}", fix=f"name every data file: {again}")
    if flag and word == "%":
        value = overrides[-1].partition("=")[2]
        fix = f"a share is below 1: {flag} {percent(value)}"
        raise Refusal("usage", f"{word} stands after {flag} {value} and {NO_RECIPE}", fix=fix)
    if flag and not path.exists():
        value = overrides[-1].partition("=")[2]
        raise Refusal(
            "usage",
            f"{word} stands after {flag} {value} and {NO_RECIPE}",
            fix=f"a flag takes one word; for a list give it again: {flag} {value} {flag} {word}",
        )
    if not any(map(_rest_names, after)) and (meant := _meant(word, rows, resumes)):
        raise Refusal("usage", f"{word} {NO_RECIPE}", fix=f"say what it is: {meant}")


def refuse_long_dash(words: Sequence[str], flags: Sequence[str] | None) -> None:
    """Refusal ``usage`` of a flag that begins with a long dash; of one that no file is called, and that is among
    ``flags``, where only those are taken (None: any, where it is not another flag's value)."""
    for before, word in zip(["", *words], words):
        found = LONG_DASH.fullmatch(word)
        if found is None or Path(word).exists():
            continue
        name = found[1].replace("_", "-")
        value = before.startswith("--") and "=" not in before and not is_key(found[1])
        if not value if flags is None else f"--{name}" in flags:
            raise Refusal("usage", f"{word} begins with a long dash", fix=f"write --{name}, with two hyphens")


def refuse_opened(words: Sequence[str]) -> None:
    """Refusal ``usage`` of a value in brackets, a mapping or a list, of which the shell has made several words."""
    for place, word in enumerate(words):
        opened = OPENED.fullmatch(word)
        lead, value = opened.groups() if opened else ("", "")
        if not value or any(sign.isspace() for sign in value) or _closed(value) or Path(word).exists():
            continue
        for end in range(place + 1, len(words)):
            if words[end].startswith("--"):
                break
            if _closed(whole := " ".join([value, *words[place + 1 : end + 1]])):
                before = words[place - 1] + " " if not lead and place and words[place - 1].startswith("--") else ""
                fix = f"put it into quotes: {before}{lead}{shlex.quote(whole)}"
                raise Refusal("usage", f"{word} opens a value that goes on in the words after it", fix=fix)


def _closed(value: str) -> bool:
    return all(value.count(sign) <= value.count(end) for sign, end in ("[]", "{}"))


def refuse_apart(words: Sequence[str]) -> None:
    """Refusal ``usage`` of a key and its value with spaces around the = between them."""
    for place, word in enumerate(words):
        before, after = words[place - 1] if place else "", words[place + 1] if place + 1 < len(words) else ""
        if word.startswith("=") and re.fullmatch(r"[\w.-]+", before):
            key, value = f"{before}=", word[1:] or after
        elif re.fullmatch(r"[\w.-]+=", word) and after and not after.startswith("-") and not _stands_alone(after):
            key, value = word, after.removeprefix("=")
        else:
            continue
        fix = f"a key and its value are one word: {key}{shlex.quote(value) if value else 'VALUE'}"
        raise Refusal("usage", f"{key.rstrip('=')} and its value are apart, with a space at the =", fix=fix)


def _stands_alone(word: str) -> bool:
    """Whether a word means something without the one before it: a recipe, or another key=value."""
    return "=" in word or Path(word).suffix.lower() in RECIPES or Path(word).is_file() and not Path(word).suffix


def refuse_unreadable(recipe: str | None) -> None:
    """Refusal ``yaml`` or ``recipe`` of a file that is no mapping in YAML, before what reads recipes is imported."""
    from halter.files import yaml12

    if recipe is not None and not isinstance(yaml12.read(recipe).data, dict):
        raise yaml12.no_sections(recipe)


def _rest_names(word: str) -> bool:
    """Whether another word without a flag follows, which is told together with the first."""
    return not word.startswith("--") and "=" not in word and Path(word).exists()


def _rows(path: Path) -> bool:
    """Whether a .json is a list, as data is, and no recipe."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"[")


def _meant(word: str, rows: str, resumes: bool) -> str:
    """How a file or folder that is no recipe is given, a model or a method by its name; '' for what may be a recipe."""
    path = Path(word)
    if not path.exists():
        return _named(word)
    if path.is_dir():
        if any((path / name).is_file() for name in ("config.json", "params.json")):
            return f"--model {word}"
        if (path / "recipe.yaml").is_file():
            goes_on = f"; --resume --output {word} goes on with it" if resumes else ""
            return f"{word}/recipe.yaml is the recipe of a run{goes_on}"
        return f"{rows} {word}"
    if path.suffix.lower() in SCRIPTS:
        return f"halter init --from {word} halter-recipe.yaml writes a recipe of the command line in it"
    return f"{rows} {word}" if path.is_file() and (path.suffix.lower() in _DATA or _rows(path)) else ""


def _named(word: str) -> str:
    """How a name that is no file's is given: a preset's or a hub's, a method's; '' for another."""
    from halter.model.families import published_names
    from halter.recipe.sections import method_names

    if Path(word).suffix.lower() in (*RECIPES, *_DATA):
        return ""
    if word.lower() in method_names():
        return f"--method {word.lower()}"
    return f"--model {word}" if word in published_names() or re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", word) else ""


def is_key(word: str) -> bool:
    """Whether a word is a recipe's key: train.learning_rate, or max_steps alone."""
    first, dot, rest = word.replace("-", "_").partition(".")
    if dot:
        return first in NAMES and rest.replace(".", "_").isidentifier()
    if not first.isidentifier():
        return False
    from halter.recipe.aliases import ALIASES

    return first in ALIASES or bool(_declared(first))


def takes_pairs(flag: str) -> bool:
    """Whether a recipe's key of this flag takes names and values, of which a single pair may be given as name=value."""
    name = flag.removeprefix("--").replace("-", "_").rpartition(".")[2]
    return any(typing.get_origin(kind) in (dict, Mapping) for kind in _declared(name))


def _declared(key: str) -> list[Any]:
    """The types of a recipe's keys of this name, in whichever section or method."""
    from halter.recipe.fields import keys_of
    from halter.recipe.sections import SECTIONS, method_class, method_names

    known = map(keys_of, [*SECTIONS.values(), *map(method_class, method_names())])
    return [keys[key].type for keys in known if key in keys]
