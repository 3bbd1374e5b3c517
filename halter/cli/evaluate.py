"""`halter evaluate`: a run on rows that it has not seen, its base beside its adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from halter.cli.flags import with_options
from halter.cli.progress import Counter
from halter.cli.words import data_options
from halter.data.load import Examples, load_examples
from halter.data.options import DataOptions
from halter.errors import Refusal
from halter.evaluation.choices import choice_report
from halter.evaluation.options import TaskOptions
from halter.evaluation.score import evaluate
from halter.evaluation.tasks import Judge, task_manager, task_scores
from halter.files import folders, writing
from halter.files.extras import install
from halter.files.runs import RunFolder
from halter.generation.options import GenerationOptions
from halter.run.opening import Opened, OpenOptions, find, open_subject
from halter.telling import tell

MEASURES = {
    "loss": ".4f", "perplexity": ".3f", "exact_match": ".1%", "token_f1": ".3f", "last_number": ".1%",
    "choice_accuracy": ".1%", "rouge1": ".3f", "rouge2": ".3f", "rougeL": ".3f", "bleu": ".2f", "chrf": ".2f",
}  # fmt: skip
LIBRARIES = {"rouge1": "ROUGE", "bleu": "BLEU and chrF"}


@dataclass(frozen=True)
class Scoring(TaskOptions):
    """What is scored, and how."""

    limit: int | None = None
    """Rows taken at most."""
    questions: int | None = None
    """Rows answered at most (the loss is over all); 0: none."""
    strict: bool = False
    """Exact match to the character, white space too."""
    choices: tuple[str, ...] = ()
    """An answer that a question can have; with all of them given, the one with the lowest loss is taken as chosen, and
    the share of right ones is the choice accuracy."""
    on_long: Literal["drop", "cut"] | None = None
    """Rows above max_length; not given: as in the run's training, else drop."""
    max_length: int | None = None
    """Most tokens of a row; not given: as in the run's training, else the model's context."""
    columns: str | None = None
    """Where rows have what is asked and wanted, e.g. '{instruction: question, output: answer}'; not given: as in the
    run's training."""

    def __post_init__(self) -> None:
        least = {"limit": 1, "questions": 0, "max_length": 1}
        given = {name: getattr(self, name) for name in least}
        wrong = [f"{n}: at least {least[n]}, not {v}" for n, v in given.items() if v is not None and v < least[n]]
        wrong += self.wrong_numbers()
        if wrong:
            raise Refusal("evaluation-options", "options of an evaluation that make no sense", found=wrong)


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
    data: Annotated[str | None, typer.Option(help="Held-out rows; not given: the validation rows of the run.")] = None,
    output: Annotated[
        str | None, typer.Option(help="New folder for report and answers; not given: in the run folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Held-out loss, exact match, F1, ROUGE, BLEU and chrF of a run, its base beside its adapter; every answer in a
    file. With --tasks also, or without rows only, tasks of lm-eval."""
    named = [word for word in words or () if "=" not in word or Path(word).exists()]
    if len(named) > 1:
        raise Refusal("usage", "more than one run, adapter or model", found=named, fix="evaluate them one by one")
    keys = [word for word in words or () if word not in named]
    if scoring.columns is not None:
        keys.append(f"data.columns={scoring.columns}")
    subject = find(named[0] if named else None, model=opening.model, adapter=opening.adapter)
    place = _place(output, subject.run)
    if place is not None:
        folders.refuse_unwritable(place)
    if scoring.task_names:
        task_manager(scoring)  # what is missing is said before anything is loaded
    opened = open_subject(subject, tell, opening, as_trained=True)  # its scores depend on them in the last bits
    rows, account = held_out_rows(opened, data, scoring, keys)
    with ExitStack() as stack:
        folder = None if place is None else stack.enter_context(folders.new_folder(place))
        report = _head(opened, data, account)
        report |= _scores(opened, rows, scoring, options, folder) if rows else {"rows": 0, "answers": 0, "base": {}}
        if scoring.task_names:
            _add_tasks(report, opened, scoring)
        if folder is not None:
            writing.write_json(folder / "report.json", report)
    print(json.dumps(report, indent=2, ensure_ascii=False) if as_json else _table(report))
    for measure, name in LIBRARIES.items():
        if report["answers"] and measure not in report["base"]:
            tell(f"{name}: left out, because the library is not installed: {install('eval')}")
    if report["answers"] and not any(report[side]["exact_match"] for side in ("base", "adapter") if side in report):
        tell("exact match counts short answers; for longer ones read them, base beside adapter, in predictions.jsonl")
    if place is not None:
        tell(f"report and answers: {place}")


def _place(output: str | None, run: Path | None) -> Path | None:
    if output is not None:
        return Path(output)
    return None if run is None else RunFolder.next(run / "evaluations", "evaluation").path


def held_out_rows(opened: Opened, data: str | None, scoring: Scoring, keys: Sequence[str] = ()) -> tuple[Examples, str]:
    """The rows to score, made into tokens as in training but for ``keys`` of the data section, and what became of them.
    A merged model and its run get the same rows."""
    limit, recipe = scoring.limit, opened.subject.recipe
    known = recipe.data if recipe is not None else DataOptions(max_length=opened.model.config.context)
    known = data_options(keys, known) if keys else known
    seed = 0 if recipe is None else recipe.train.seed
    if data is None:
        if known.validation is None and scoring.task_names:
            return Examples([]), "no rows, tasks alone"
        if known.validation is None:
            raise Refusal("no-data", "there are no rows to score", fix="give --data FILE")
        loaded = load_examples(known, opened.tokenizer, opened.template, seed)
        held = loaded.validation
        count = len(held) if limit is None else min(limit, len(held))
        return Examples([held[i] for i in range(count)]), f"{count} of {len(held)} validation rows"
    known = replace(known, max_length=min(scoring.max_length or known.max_length, opened.model.config.context))
    policy = scoring.on_long or ("cut" if known.on_long in ("cut", "split") else "drop")
    options = replace(known, train=data, validation=None, limit=limit, on_long=policy)
    loaded = load_examples(options, opened.tokenizer, opened.template, seed)
    tell(f"rows: {loaded.report}")
    if loaded.report.long_dropped:
        left = f"{loaded.report.long_dropped} of {loaded.report.rows} rows have more than {known.max_length} tokens"
        tell(f"warning: {left} and are not scored; --on-long cut takes their beginnings")
    return loaded.train, str(loaded.report)


def _head(opened: Opened, data: str | None, account: str) -> dict[str, Any]:
    """What was scored on what."""
    subject = opened.subject
    return {
        "model": subject.base,
        "adapter_folder": None if subject.adapter is None else str(subject.adapter),
        "data": data or "the validation rows of the run",
        "data_account": account,
        "template": None if opened.template is None else opened.template.name,
    }


def _scores(
    opened: Opened, rows: Examples, scoring: Scoring, options: GenerationOptions, folder: Path | None
) -> dict[str, Any]:
    counters: dict[str, Counter] = {}
    with ExitStack() as stack:

        def progress(side: str, done: int, of: int) -> None:
            if side not in counters:
                counters[side] = stack.enter_context(Counter(f"answers of the {side}", of))
            counters[side].done(done)

        # Before answers are generated, so that choices that do not fit are refused at once.
        chosen: dict[str, Any] = {}
        if scoring.choices:
            chosen = choice_report(opened.model, opened.tokenizer, rows, scoring.choices, opened.adapter)
        report = evaluate(
            opened.model,
            opened.tokenizer,
            rows,
            opened.adapter,
            questions=scoring.questions,
            strict=scoring.strict,
            predictions=None if folder is None else folder / "predictions.jsonl",
            progress=progress,
            **vars(options),
        )
    for side in ("base", "adapter"):
        if side in chosen:
            report[side] |= chosen.pop(side)
    return report | ({"choices": chosen} if chosen else {})


def _add_tasks(report: dict[str, Any], opened: Opened, scoring: Scoring) -> None:
    """Each side's scores of the tasks under its ``tasks``, and what they were taken on under ``tasks``."""
    sides = {"base": None} if opened.adapter is None else {"base": None, "adapter": opened.adapter}
    for side, adapter in sides.items():
        tell(f"tasks of the {side} ...")
        judge = Judge(opened.model, opened.tokenizer, adapter)
        found, report["tasks"] = task_scores(judge, scoring)
        report.setdefault(side, {})["tasks"] = found


def _table(report: dict[str, Any]) -> str:
    """The report as a person reads it."""
    sides = [side for side in ("base", "adapter") if side in report]
    targets = f"{report['target_tokens']:,} target tokens, " if report["rows"] else ""
    lines = [f"{report['rows']} rows, {targets}{report['answers']} answers"]
    lines.append(f"{'':<14}" + "".join(f"{side:>12}" for side in sides))
    for measure, style in MEASURES.items():
        if measure in report["base"]:
            lines.append(f"{measure:<14}" + "".join(f"{format(report[side][measure], style):>12}" for side in sides))
    for name in report["base"].get("tasks") or ():
        lines.append(f"{name}: " + ", ".join(f"{side} {report[side]['tasks'][name]:.4f}" for side in sides))
    return "\n".join(lines)
