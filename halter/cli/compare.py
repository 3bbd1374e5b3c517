"""`halter compare`: several methods on your base and data, side by side, each with its best learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from halter.cli.flags import with_options
from halter.comparison.options import CompareOptions

SETTINGS = {"ignore_unknown_options": True}


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
        bool, typer.Option("--quick", help="On the embedded playground: eight minutes on two cores.")
    ] = False,
) -> None:
    """Train several methods on the same rows with the same budget, learning rates chosen on validation rows, scores
    taken on test rows, and write a report. Interrupted, the same command goes on; no finished trial is run twice.
    Every key of a recipe is also a flag, as for halter train: --template alpaca, --max-length 512."""
    from halter.cli.strays import refuse_unreadable
    from halter.cli.train import split
    from halter.comparison.whole import compare
    from halter.telling import tell

    recipe, overrides = split(arguments or [], rows="--train")
    refuse_unreadable(recipe)
    given: dict[str, Any] = vars(options)
    found = compare(recipe, overrides, model=model, train=train, output=output, quick=quick, **given)
    print(_table(found.record))
    tell(f"record: {found.folder / 'record.json'}")


def _table(record: Mapping[str, Any]) -> str:
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
            f"{row['name']:<26}{_or_dash(row['trainable'], ','):>12}{_or_dash(row['learning_rate'], '.3g'):>10}"
            f"{mean['test_loss']:>12.4f}{'-' if spread is None else format(spread, '.4f'):>9}"
            + "".join(f"{format(mean[key], '.0%') if key in mean else '':>8}" for key in shown.values())
            + f"{_or_dash(row['tokens_per_second'], ',.0f'):>9}"
        )
    if not any("test_loss" in row["spread"] for row in record["rows"]):
        lines.append("+-: how far apart the seeds lie, from two seeds on (--seeds 5)")
    if record["ties"]:
        lines.append("ties: " + "; ".join(" = ".join(pair) for pair in record["ties"]))
    return "\n".join(lines)


def _or_dash(value: float, form: str) -> str:
    """A figure, or a dash for the base, which trains nothing."""
    return format(value, form) if value else "-"
