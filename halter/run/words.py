"""Words of a command line: what is asked, and keys of the recipe's data section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from halter.data.options import DataOptions
from halter.errors import Refusal

EXAMPLE = "'{instruction: question, output: answer}'"


def subject_and_keys(words: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """What is named (run, adapter or model), and the words KEY=VALUE beside it. Refusal ``usage`` for two named."""
    named = [word for word in words or () if "=" not in word or Path(word).exists()]
    if len(named) > 1:
        raise Refusal("usage", "more than one run, adapter or model", found=named, fix="name them one by one")
    return (named[0] if named else None), [word for word in words or () if word not in named]


def data_options(words: Sequence[str], known: DataOptions, of: Sequence[str] | None = None) -> DataOptions:
    """``known`` with the keys of the recipe's data section that are given as data.KEY=VALUE; ``of``: those that may be.
    Refusals ``usage``, and those of a recipe."""
    names = set(of) if of else {field.name for field in fields(DataOptions)} - {"train", "validation"}
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
