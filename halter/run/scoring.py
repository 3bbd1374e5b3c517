"""`halter evaluate` in Python: a run, an adapter or a model scored on rows that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from halter.arguments import checked
from halter.data.example import Example
from halter.data.sources import STANDARD_INPUT
from halter.evaluation import score
from halter.evaluation.choices import choice_report
from halter.evaluation.comparing import Comparing
from halter.evaluation.measures.measure import AnswerMeasure
from halter.evaluation.measures.registry import CHOICES, chosen
from halter.evaluation.options import MeasureKeywords, TaskKeywords
from halter.evaluation.own_choices import own_choices
from halter.evaluation.tasks import Judge, task_manager, task_scores
from halter.files import folders, writing
from halter.files.runs import RunFolder
from halter.generation.options import GenerationKeywords, GenerationOptions
from halter.run.keywords import sorted_out
from halter.run.opening import HowKeywords, Opened, OpenOptions, WhatKeywords, find, open_subject
from halter.run.scored import Scoring, ScoringKeywords, held_out_rows, with_facts
from halter.telling import Say, tell

Progress = Callable[[str, int, int], None]


class EvaluateKeywords(
    ScoringKeywords, MeasureKeywords, TaskKeywords, WhatKeywords, HowKeywords, GenerationKeywords, total=False
):
    """What ``halter.evaluate`` takes by name: what is scored, how it is opened, how it answers."""


@dataclass(frozen=True)
class Scores:
    """One side's scores. None: not measured, because no row asks a question or a library is not installed."""

    loss: float | None = None
    """Mean loss over all learned tokens of all rows, nats a token; None where there are no rows, tasks alone."""
    perplexity: float | None = None
    """exp(loss)."""
    exact_match: float | None = None
    """Share (0 to 1) of answers that are the wanted text, as is every score but the next ones."""
    token_f1: float | None = None
    last_number: float | None = None
    """Share of answers that end in the wanted number."""
    field_precision: float | None = None
    """Of the key-value pairs that were answered, the share that was wanted."""
    field_recall: float | None = None
    """Of the wanted pairs, the share that was answered."""
    field_f1: float | None = None
    fields: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """{key: its precision, recall, f1 and the number wanted}."""
    choice_accuracy: float | None = None
    """Share of rows whose right choice has the lowest loss."""
    rouge1: float | None = None
    rouge2: float | None = None
    rougeL: float | None = None
    bleu: float | None = None
    """0 to 100."""
    chrf: float | None = None
    """0 to 100."""
    cider_d: float | None = None
    """0 to 10; papers print it times 100."""
    coco_bleu1: float | None = None
    coco_bleu2: float | None = None
    coco_bleu3: float | None = None
    coco_bleu4: float | None = None
    coco_rouge_l: float | None = None
    spice: float | None = None
    vqa_accuracy: float | None = None
    tasks: Mapping[str, float] = field(default_factory=dict)
    """{task/measure: score} of lm-eval's tasks."""

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Scores:
        """One side of a report."""
        return cls(**{name: value for name, value in found.items() if name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    base: Scores
    adapter: Scores | None
    """None where a model alone was scored."""
    rows: int
    """Rows whose loss was taken."""
    learned_tokens: int
    """Tokens that the loss is the mean of."""
    answers: int
    """Rows that were answered."""
    folder: Path | None
    """The new folder with report.json and predictions.jsonl, None where nothing was written."""
    report: Mapping[str, Any]
    """All of it as plain data, as report.json has it: what was scored on what, the options, both sides."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(self.report)


@checked('halter.evaluate("runs/mine", data="test.jsonl", limit=100)')
def evaluate(
    named: str | Path | None = None,
    data: str | Path | None = None,
    keys: Sequence[str] = (),
    *,
    output: str | Path | None = None,
    say: Say = tell,
    progress: Progress | None = None,
    **options: Unpack[EvaluateKeywords],
) -> Evaluation:
    """Score a run folder, an adapter folder or a model (folder or hub id) on held-out rows, base beside adapter.

    ``data``: the rows, ``-`` standard input (one in JSON a line); not given, the validation rows of the run. ``keys``:
    keys of a recipe's data section that rows are read by, as "data.columns={...}"; the others are those of training.
    ``output``: a new folder for report.json and predictions.jsonl; not given, a new one in the run folder, or none
    where no run is named. ``progress(side, done, of)`` is called as answers are done. The other ``options`` are the
    fields of Scoring, OpenOptions (``model``, ``adapter``, ``quantize``, ...) and GenerationOptions
    (``max_new_tokens``, ...).

    Refusals: ``no-data``, ``already-exists``, ``unknown-option``, and those of halter.load, halter.load_adapter, of the
    rows and of generation.
    """
    scoring, opening, generation = sorted_out("halter.evaluate", options, Scoring, OpenOptions, GenerationOptions)
    if unshown := generation.unshown("an evaluation"):
        say(unshown)
    if scoring.columns is not None:
        keys = [*keys, f"data.columns={scoring.columns}"]
    subject = find(named, model=opening.model, adapter=opening.adapter)
    place = _place(output, subject.run)
    if place is not None:
        folders.refuse_unwritable(place, folder=True)
    if scoring.task_names:
        task_manager(scoring)  # what is missing is said before anything is loaded
    measures = chosen(scoring)
    opened = open_subject(subject, say, opening, as_trained=True)  # its scores depend on them in the last bits
    rows, account = held_out_rows(opened, data, scoring, keys, say)
    with ExitStack() as stack:
        folder = None if place is None else stack.enter_context(folders.new_folder(place))
        report = _head(opened, data, account, scoring.system)
        scored = with_facts(opened, data, keys, rows, scoring)
        asked = RowsScored(scored, scoring, measures)
        report |= _scores(opened, asked, generation, folder, progress) if rows else _NOTHING
        if scoring.task_names:
            _add_tasks(report, opened, scoring, say)
        if folder is not None:
            writing.write_json(folder / "report.json", report)
    sides = {side: Scores.of(report[side]) for side in ("base", "adapter") if side in report}
    return Evaluation(
        sides["base"],
        sides.get("adapter"),
        report["rows"],
        report.get("target_tokens", 0),
        report["answers"],
        place,
        report,
    )


_NOTHING: Mapping[str, Any] = {"rows": 0, "answers": 0, "base": {}}


def _place(output: str | Path | None, run: Path | None) -> Path | None:
    if output is not None:
        return Path(output)
    return None if run is None else RunFolder.next(run / "evaluations", "evaluation").path


def _head(opened: Opened, data: str | Path | None, account: str, system: str | None) -> dict[str, Any]:
    """What was scored on what."""
    subject = opened.subject
    named = str(data) if data else "the validation rows of the run"
    named = "standard input" if named == STANDARD_INPUT else named
    return {
        "model": subject.base,
        "adapter_folder": None if subject.adapter is None else str(subject.adapter),
        "data": named,
        "data_account": account,
        "template": None if opened.template is None else opened.template.name,
        "system": system,
    }


@dataclass(frozen=True)
class RowsScored:
    """The rows, and what is taken of them."""

    rows: Sequence[Example]
    scoring: Scoring
    measures: Mapping[str, type[AnswerMeasure]]


def _scores(
    opened: Opened,
    asked: RowsScored,
    options: GenerationOptions,
    folder: Path | None,
    progress: Progress | None,
) -> dict[str, Any]:
    # Before answers are generated, so that choices that do not fit are refused at once.
    scoring, found = asked.scoring, _chosen(opened, asked, folder)
    report = score.evaluate(
        opened.model,
        opened.tokenizer,
        asked.rows,
        opened.adapter,
        questions=scoring.questions,
        comparing=Comparing(scoring.strict, asked.measures, scoring),
        predictions=None if folder is None else folder / "predictions.jsonl",
        progress=progress,
        **vars(options),
    )
    for side in ("base", "adapter"):
        if side in found:
            report[side] |= found.pop(side)
    if "measures" in found:
        report["measures"] = {**report.get("measures", {}), **found.pop("measures")}
    return report | found


def _chosen(opened: Opened, asked: RowsScored, folder: Path | None) -> dict[str, Any]:
    """What is found of choices, those of all rows (``choices``) or of each its own (under ``measures``), with each
    side's scores."""
    scoring, model = asked.scoring, opened.model
    if scoring.choices:
        found = choice_report(model, opened.tokenizer, asked.rows, scoring.choices, opened.adapter)
        sides: dict[str, Any] = {side: found.pop(side) for side in ("base", "adapter") if side in found}
        return {"choices": found, **sides}
    if CHOICES not in scoring.measure_names:
        return {}
    own = own_choices(opened.tokenizer, asked.rows)
    sides = {"base": own.score("base", model)}
    if opened.adapter is not None:
        sides["adapter"] = own.score("adapter", model, opened.adapter)
    if folder is not None:
        own.write(folder / "choices.jsonl")
    by = {"by": own.by(scoring.by_names)} if scoring.by_names else {}
    return {"measures": {CHOICES: {**own.facts(), **by}}, **sides}


def _add_tasks(report: dict[str, Any], opened: Opened, scoring: Scoring, say: Say) -> None:
    """Each side's scores of the tasks under its ``tasks``, and what they were taken on under ``tasks``."""
    sides = {"base": None} if opened.adapter is None else {"base": None, "adapter": opened.adapter}
    for side, adapter in sides.items():
        say(f"tasks of the {side} ...")
        judge = Judge(opened.model, opened.tokenizer, adapter)
        found, report["tasks"] = task_scores(judge, scoring)
        report.setdefault(side, {})["tasks"] = found
