"""`halter compare`: several methods on your base and data, side by side, each with its best learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from halter.cli.flags import with_options
from halter.comparison.options import CompareOptions
from halter.errors import Refusal

SETTINGS = {"ignore_unknown_options": True}
NEEDS = (
    "halter compare --model DIR --train FILE --test FILE --output OUT, or halter compare recipe.yaml --output OUT; "
    "halter compare --quick needs nothing"
)


@with_options(options=CompareOptions())
def command(
    options: CompareOptions,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE KEY=VALUE", help="A recipe with a section compare; values that override it."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder or hub id.")] = None,
    train: Annotated[list[str] | None, typer.Option(help="Rows to train on; may be given several times.")] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder of the comparison; the same again goes on with it.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="On the embedded playground: ten minutes on two cores.")
    ] = False,
) -> None:
    """Train several methods on the same rows with the same budget, learning rates chosen on validation rows, scores
    taken on test rows, and write a report. Interrupted, the same command goes on; no finished trial is run twice.
    Every key of a recipe is also a flag, as for halter train: --template alpaca, --max-length 512."""
    from halter.comparison import start
    from halter.comparison.engine import compare, tell_unwritable, write_report
    from halter.files.folders import try_out
    from halter.files.runs import RunFolder
    from halter.telling import tell

    source, section, variants, overrides = _given(arguments or [])
    if not quick and not source and model is None:
        raise Refusal("nothing-to-compare", "a comparison needs a model and data", fix=NEEDS)
    folder = Path(output) if output is not None else RunFolder.next("runs", "compare").path
    start.refuse_foreign(folder)
    try_out(folder)
    chosen = start.options_of(section, options, "compare")
    if quick:
        source, chosen = start.quick(chosen, folder / "playground")
    for (name, key), value in {("model", "path"): model, ("data", "train"): _one_or_all(train)}.items():
        if value is not None:
            source[name] = {**_section(source, name), key: value}
    source = start.overridden(source, overrides)
    tell_unwritable(tell)
    tell(f"comparison: {folder}")
    record = compare(source, chosen, variants, folder, tell)
    print(_table(record))
    write_report(record, folder, tell)
    tell(f"record: {folder / 'record.json'}")


def _one_or_all(files: list[str] | None) -> str | list[dict[str, str]] | None:
    return files[0] if files and len(files) == 1 else [{"path": file} for file in files] if files else None


def _section(source: dict[str, Any], name: str) -> dict[str, Any]:
    """A section as a mapping; `model: DIR` is short for its first key."""
    found = source.get(name) or {}
    return dict(found) if isinstance(found, dict) else {"path" if name == "model" else "train": found}


def _given(arguments: list[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[str]]:
    from halter.cli.train import split
    from halter.comparison import start

    recipe, overrides = split(arguments)
    return (*start.read(recipe), overrides) if recipe is not None else ({}, {}, {}, overrides)


def _table(record: dict[str, Any]) -> str:
    """The record as a person reads it."""
    shares = {"exact": "exact_match", "choice": "choice_accuracy"}
    shown = {head: key for head, key in shares.items() if any(key in row["mean"] for row in record["rows"])}
    lines = [f"{'':<26}{'trained':>12}{'rate':>10}{'test loss':>12}{'+-':>9}"]
    lines[0] += "".join(f"{head:>8}" for head in shown) + f"{'tok/s':>9}"
    for row in record["rows"]:
        if row["status"] != "done":
            lines.append(f"{row['name']:<26}{row['status']}: {row['why']}")
            continue
        mean, spread = row["mean"], row["spread"].get("test_loss")
        lines.append(
            f"{row['name']:<26}{row['trainable']:>12,}{row['learning_rate']:>10.3g}{mean['test_loss']:>12.4f}"
            f"{'' if spread is None else format(spread, '.4f'):>9}"
            + "".join(f"{format(mean[key], '.0%') if key in mean else '':>8}" for key in shown.values())
            + f"{row['tokens_per_second']:>9,.0f}"
        )
    if record["ties"]:
        lines.append("ties: " + "; ".join(" = ".join(pair) for pair in record["ties"]))
    return "\n".join(lines)
