"""Words of a command line that are written in YAML: where rows have their columns, and keys of the recipe's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

from halter.data.options import DataOptions
from halter.errors import Refusal
from halter.files.yaml12 import parse

EXAMPLE = "'{instruction: question, output: answer}'"


def columns_of(written: str | None, flag: str) -> Mapping[str, str]:
    """{our column: theirs} as it was typed, {} where nothing was. Refusal ``usage``."""
    if written is None:
        return {}
    data = parse(f"columns: {written}", flag).data.get("columns")
    if not isinstance(data, Mapping) or not all(isinstance(value, str) for value in data.values()):
        raise Refusal("usage", f"{written!r} does not say which column is which", where=flag, expected=EXAMPLE)
    return {str(key): str(value) for key, value in data.items()}


def data_options(words: Sequence[str], known: DataOptions) -> DataOptions:
    """``known`` with the keys of the recipe's data section that are given as data.KEY=VALUE. Refusals ``usage``, and
    those of a recipe."""
    names = {field.name for field in fields(DataOptions)} - {"train", "validation"}
    given = [word.partition("=")[0].removeprefix("--").removeprefix("data.").replace("-", "_") for word in words]
    strange = [word for word, name in zip(words, given, strict=True) if "=" not in word or name not in names]
    if strange:
        raise Refusal(
            "usage", "words that are no key of the data section", found=strange,
            expected=f"data.KEY=VALUE, such as data.columns={EXAMPLE}; KEY is one of {', '.join(sorted(names))}",
        )  # fmt: skip
    from halter.recipe.read import load

    read = load({"model": {"path": "-"}, "data": {"train": "-"}}, list(words)).data
    return replace(known, **{name: getattr(read, name) for name in given})
