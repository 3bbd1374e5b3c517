"""`halter evaluate`: a run on rows that it has not seen, its base beside its adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from halter.cli.flags import with_options
from halter.cli.progress import CountLine
from halter.evaluation.measures.registry import CHOICES, formats
from halter.files.extras import install
from halter.generation.options import GenerationOptions
from halter.run.opening import OpenOptions
from halter.run.scored import Scoring
from halter.run.scoring import evaluate
from halter.run.words import subject_and_keys
from halter.telling import tell

MEASURES = {
    "loss": ".4f",
    "perplexity": ".3f",
    "exact_match": ".1%",
    "token_f1": ".3f",
    "last_number": ".1%",
    "choice_accuracy": ".1%",
    "rouge1": ".3f",
    "rouge2": ".3f",
    "rougeL": ".3f",
    "bleu": ".2f",
    "chrf": ".2f",
    **formats(),
}
BESIDE = ("human", "best", "floor")
"""What measures tell beside the sides' scores: people's answers, the best possible, the next row's answer."""
LIBRARIES = {"rouge1": "ROUGE", "bleu": "BLEU and chrF"}


@with_options(scoring=Scoring(), options=GenerationOptions(), opening=OpenOptions())
def command(
    scoring: Scoring,
    options: GenerationOptions,
    opening: OpenOptions,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN data.KEY=VALUE",
            help="Run folder, adapter folder, or model; and keys of a recipe's data section, as data.columns=...",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Held-out rows; - is standard input, one in JSON a line; not given: the validation rows of the run."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="New folder for report and answers; not given: in the run folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Held-out loss, exact match, F1, ROUGE, BLEU and chrF of a run, its base beside its adapter; every answer in a
    file. With --measures also CIDEr-D, SPICE, F1 of fields, VQA accuracy or choices of each row; with --tasks also, or
    without rows only, tasks of lm-eval."""
    run, keys = subject_and_keys(words, "--data", data, opening.model or opening.adapter)
    counters: dict[str, CountLine] = {}
    with ExitStack() as stack:

        def progress(side: str, done: int, of: int) -> None:
            if side not in counters:
                counters[side] = stack.enter_context(CountLine(f"answers of the {side}", of))
            counters[side].done(done)

        given: dict[str, Any] = vars(scoring) | vars(opening) | vars(options)
        found = evaluate(run, data, keys, output=output, progress=progress, **given)
    report = found.report
    print(json.dumps(report, indent=2, ensure_ascii=False) if as_json else _table(report))
    for measure, name in LIBRARIES.items():
        if report["answers"] and measure not in report["base"]:
            tell(f"{name}: left out, because the library is not installed: {install('eval')}")
    if report["answers"] and not any(report[side]["exact_match"] for side in ("base", "adapter") if side in report):
        tell("exact match counts short answers; for longer ones read them, base beside adapter, in predictions.jsonl")
    if found.folder is not None:
        tell(f"report and answers: {found.folder}")


def _table(report: Mapping[str, Any]) -> str:
    """The report as a person reads it."""
    sides = [side for side in ("base", "adapter") if side in report]
    targets = f"{report['target_tokens']:,} learned tokens, " if report["rows"] else ""
    lines = [f"{report['rows']} rows, {targets}{report['answers']} answers"]
    asked = report.get("measures") or {}
    beside = {name: {k: v for one in asked.values() for k, v in one.get(name, {}).items()} for name in BESIDE}
    columns = {side: report[side] for side in sides} | {name: found for name, found in beside.items() if found}
    lines.append(f"{'':<16}" + "".join(f"{name:>12}" for name in columns))
    for measure, style in MEASURES.items():
        if measure in report["base"]:
            told = (format(one[measure], style) if measure in one else "" for one in columns.values())
            lines.append((f"{measure:<16}" + "".join(f"{value:>12}" for value in told)).rstrip())
    lines += [line for name, facts in asked.items() for line in _of_measure(name, facts)]
    for column, kinds in (report.get("by") or {}).items():
        lines += _by(column, kinds, sides)
    for name in report["base"].get("tasks") or ():
        lines.append(f"{name}: " + ", ".join(f"{side} {report[side]['tasks'][name]:.4f}" for side in sides))
    return "\n".join(lines)


def _of_measure(name: str, facts: Mapping[str, Any]) -> list[str]:
    """What a reader needs beside the scores of a measure."""
    if name == CHOICES:
        fewest, most = facts["choices"]
        told = f"{facts['rows']} questions of {fewest} to {most} choices"
        told += f", chance {facts['chance']:.1%}, always the commonest name {facts['majority']:.1%}"
        kinds = [line for column, found in facts.get("by", {}).items() for line in _by(column, found)]
        return [f"{name}: {told}", *kinds]
    fewest, most = facts["references"]
    told = f"{facts['rows']} rows, {fewest} to {most} right answers each; floor: the next row's"
    if "human_rows" in facts:
        told += f"; human: one of a row's own beside its others ({facts['human_rows']} rows)"
    return [f"{name}: {told}"]


def _by(column: str, kinds: Mapping[str, Mapping[str, Any]], sides: Sequence[str] = ()) -> list[str]:
    """Scores by the values of a column."""
    lines = []
    for kind, found in kinds.items():
        shown = sides or [side for side in found if side != "rows"]
        told = (
            f"{side} " + ", ".join(f"{s} {format(v, MEASURES[s])}" for s, v in found[side].items() if v is not None)
            for side in shown
        )
        lines.append(f"{column} = {kind} ({found['rows']} rows): " + "; ".join(told))
    return lines
