"""The record of the applications as tables: docs/applications/README.md, and the guides between their markers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]
BEGIN, END = "<!-- scores -->", "<!-- end of scores -->"
STYLES = {
    "loss": ("held-out loss, nats a token", ".3f"),
    "exact_match": ("exact match", ".1%"),
    "token_f1": ("F1 of words", ".3f"),
    "last_number": ("right result", ".1%"),
    "field_f1": ("F1 of fields", ".3f"),
    "choice_accuracy": ("choice accuracy", ".1%"),
    "words_used": ("asked words used", ".1%"),
    "rouge1": ("ROUGE-1", ".3f"),
    "rougeL": ("ROUGE-L", ".3f"),
    "bleu": ("BLEU", ".1f"),
    "chrf": ("chrF", ".1f"),
}
"""{measure: (name, how it is written)}."""


def write_pages(folder: Path, record: Record, applications: Mapping[str, Any]) -> None:
    """The overview's table and each guide's, in the place of those that are there."""
    done = {name: record[name] for name in applications if name in record}
    put(folder / "README.md", table(done, applications, True))
    for guide in {applications[name].guide for name in done}:
        mine = {name: figures for name, figures in done.items() if applications[name].guide == guide}
        put(folder / f"{guide}.md", table(mine, applications, False))


def put(page: Path, lines: list[str]) -> None:
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text("\n".join([before.rstrip("\n") + "\n", BEGIN, "", *lines, "", END]) + after, "utf-8")


def table(record: Record, applications: Mapping[str, Any], overview: bool) -> list[str]:
    """A line for every measure of every application; where, when and how long below."""
    head = (
        ["application"] * overview + ["recipe", "data", "measure", "base", "adapted", "chance"] + ["run on"] * overview
    )
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, figures in record.items():
        one = applications[name]
        for number, (measure, figure) in enumerate(figures["measures"].items()):
            first = [f"[{one.title}]({one.guide}.md)"] * overview + [recipe_link(one.recipe or name), one.data]
            last = [f"{figures['date']}, {figures['machine']}"] * overview
            cells = [*(first if number == 0 else [""] * len(first)), *scores(measure, figure)]
            lines.append(f"| {' | '.join(cells + (last if number == 0 else [''] * len(last)))} |")
    if overview:
        return lines
    runs = [
        f"`{name}`: {figures['date']}, {figures['machine']}; {figures['steps']} steps, {figures['seconds']} s with "
        f"loading and the held-out losses; {figures['rows']} test rows, {figures['answers']} answered."
        for name, figures in record.items()
    ]
    return [*lines, "", *runs] if len(runs) == 1 else [*lines, "", *(f"- {line}" for line in runs)]


def recipe_link(name: str) -> str:
    return f"[{name}](../../recipes/applications/{name}.yaml)"


def scores(measure: str, figure: Record) -> list[str]:
    """The measure's name, base, adapted, chance."""
    title, style = STYLES[measure]
    cells = [format(figure[who], style) for who in ("base", "adapted", "chance")]
    if "majority" in figure:
        cells[-1] += f" (always the most frequent: {figure['majority']:{style}})"
    if "blind" in figure:
        cells[-1] += f" (blind: {figure['blind']:{style}})"
    return [title, *cells]
