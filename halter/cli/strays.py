"""Words that stand where a recipe would and are none: what each of them was meant for, and how that is typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from halter.errors import Refusal

RECIPES = (".yaml", ".yml", ".json")
_SECTIONS = ("model", "method", "data", "checks", "train")
"""As halter.recipe has them, which takes seconds to import; a test holds the two alike."""
_DATA = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt", ".gz")
NO_RECIPE = "is no recipe (a file that ends in .yaml)"


def refuse_stray(
    word: str, after: Sequence[str], flag: str, overrides: Sequence[str], data: Sequence[str], recipe: str | None = None
) -> None:
    """Refusal ``usage`` where ``word`` is no recipe, or a second one beside ``recipe``.

    ``after`` are the words that follow, ``flag`` the last one before it, which took the last of ``overrides``; ``data``
    is what --data was given.
    """
    path = Path(word)
    if recipe is None and path.suffix.lower() in RECIPES and not _rows(path):
        return
    if not path.exists() and after and _is_key(word):
        raise Refusal("usage", f"{word} {NO_RECIPE}", fix=f"a key and its value are one word: {word}={after[0]}")
    if recipe is not None:
        told = "; ".join(filter(None, map(_meant, (recipe, word)))).replace("; --", " --")
        fix = f"say what they are: {told}" if told else "keep one of them"
        raise Refusal("usage", f"two recipes: {recipe} and {word}", expected="one recipe and KEY=VALUE", fix=fix)
    if data and (path.is_file() or not path.exists() and path.suffix):
        again = " ".join(f"--data {one}" for one in (*data, word))
        raise Refusal("usage", f"{word} {NO_RECIPE}", fix=f"name every data file: {again}")
    if flag and not path.exists():
        value = overrides[-1].partition("=")[2]
        raise Refusal(
            "usage",
            f"{word} stands after {flag} {value} and {NO_RECIPE}",
            fix=f"a flag takes one word; for a list give it again: {flag} {value} {flag} {word}",
        )
    if not any(map(_rest_names, after)) and (meant := _meant(word)):
        raise Refusal("usage", f"{word} {NO_RECIPE}", fix=f"say what it is: {meant}")


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


def _meant(word: str) -> str:
    """How a file or folder that is no recipe is given; '' for what may be one, or is not there."""
    path = Path(word)
    if path.is_dir():
        if any((path / name).is_file() for name in ("config.json", "params.json")):
            return f"--model {word}"
        if (path / "recipe.yaml").is_file():
            return f"{word}/recipe.yaml is the recipe of a run; --resume --output {word} goes on with it"
        return f"--data {word}"
    return f"--data {word}" if path.is_file() and (path.suffix.lower() in _DATA or _rows(path)) else ""


def _is_key(word: str) -> bool:
    """Whether a word is a recipe's key: train.learning_rate, or max_steps alone."""
    first, dot, rest = word.replace("-", "_").partition(".")
    if dot:
        return first in _SECTIONS and rest.replace(".", "_").isidentifier()
    if not first.isidentifier():
        return False
    from halter.recipe.fields import keys_of
    from halter.recipe.sections import SECTIONS, method_class, method_names

    options = [*SECTIONS.values(), *map(method_class, method_names())]
    return any(first in keys_of(one) for one in options)
