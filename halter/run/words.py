"""Words of a command line: what is asked, and keys of the recipe's data section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from halter.data.options import DataOptions
from halter.data.sources import refuse_several
from halter.errors import Refusal
from halter.files.nearby import base_beside
from halter.files.row_names import called_rows
from halter.readers.named import readers_of
from halter.readers.reader import PictureReader
from halter.run.opening import Subject
from halter.telling import tell

EXAMPLE = "'{instruction: question, output: answer}'"


def subject_and_keys(
    words: Sequence[str] | None,
    rows: str,
    file: str | None = None,
    other: str | None = None,
    texts: Sequence[str] = (),
) -> tuple[str | None, list[str]]:
    """What is named (run, adapter or model), and the words KEY=VALUE beside it.

    ``rows`` is the flag that takes a file of rows and ``file`` what it took, ``other`` what a flag names, ``texts``
    what --prompt took. Refusals ``usage`` for two named, and for a file of rows; ``data-missing`` for several of those.
    """
    named = [word for word in words or () if "=" not in word or Path(word).exists()]
    if files := [word for word in named if called_rows(Path(word))]:
        refuse_several(",".join([file, *files] if file else files), rows)
        file = files[0]
        given = f"{rows} {file}"
        what = f"{file} is called as files of rows are, and is no run, adapter or model"
        lone = "name the run or model first, then the file: RUN "
        raise Refusal("usage", what, fix=given if len(named) > 1 or other else lone + given)
    if len(named) > 1:
        loose = [word for word in named if not Path(word).exists()]
        if switch := next((word for word in loose if word.lower() in ("true", "false", "yes", "no")), ""):
            fix = f"a switch stands alone: leave {switch} out" + (", and the switch" if switch[0] in "fFnN" else "")
            raise Refusal("usage", f"{switch} belongs to no flag", found=named, fix=fix)
        spoken = loose if len(loose) < len(named) else [word for word in loose if any(map(str.isspace, word))]
        if texts and loose:
            fix = f'hold what is asked together with quotes: --prompt "{" ".join([*texts[-1:], *loose])}"'
        elif spoken and rows == "--input":
            fix = f'what is asked stands after --prompt: --prompt "{" ".join(spoken)}"'
        else:
            fix = base_beside(named) or f"a command for each: {', '.join(f'once with {word}' for word in named)}"
        raise Refusal("usage", "more than one run, adapter or model", found=named, fix=fix)
    return (named[0] if named else None), [word for word in words or () if word not in named]


def readers_for(asked: Sequence[str], subject: Subject, pictures: bool) -> tuple[PictureReader, ...]:
    """The readers asked for, else those by which the subject was trained where there are ``pictures``. Refusals of
    readers_of."""
    if asked or subject.recipe is None or not pictures:
        return readers_of(asked)
    return readers_of(subject.recipe.data.readers)


def data_options(words: Sequence[str], known: DataOptions, of: Sequence[str] | None = None) -> DataOptions:
    """``known`` with the keys of the recipe's data section that are given as data.KEY=VALUE; ``of``: those that may be.
    Refusals ``usage``, and those of a recipe."""
    names = set(of) if of else {field.name for field in fields(DataOptions)} - {"train", "validation"}
    given = [word.partition("=")[0].removeprefix("--").removeprefix("data.").replace("-", "_") for word in words]
    strange = [word for word, name in zip(words, given, strict=True) if "=" not in word or name not in names]
    if strange:
        raise Refusal(
            "usage",
            "words that are no key of the data section",
            found=strange,
            expected=f"data.KEY=VALUE, such as data.columns={EXAMPLE}; KEY is one of {', '.join(sorted(names))}",
            fix="halter init METHOD writes a recipe with every key explained",
        )
    from halter.recipe.read import load

    recipe = load({"model": {"path": "-"}, "data": {"train": "-"}}, list(words))
    for note in recipe.notes:
        tell(f"note: {note}")
    return replace(known, **{name: getattr(recipe.data, name) for name in given})
