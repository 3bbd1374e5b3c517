"""`halter evaluate` in Python: a run, an adapter or a model scored on rows that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from halter.data import again, told
from halter.data.example import Example
from halter.data.load import Examples, load_examples
from halter.data.options import DataOptions
from halter.errors import Refusal
from halter.evaluation import questions, score
from halter.evaluation.choices import choice_report
from halter.evaluation.options import TaskKeywords, TaskOptions
from halter.evaluation.tasks import Judge, task_manager, task_scores
from halter.files import folders, writing
from halter.files.runs import RunFolder
from halter.generation.options import GenerationKeywords, GenerationOptions
from halter.run.keywords import sorted_out
from halter.run.opening import Opened, OpenKeywords, OpenOptions, find, open_subject
from halter.run.prepare import Say
from halter.run.words import data_options
from halter.telling import tell

Progress = Callable[[str, int, int], None]


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
            raise Refusal("evaluation-options", "options of an evaluation that cannot be used", found=wrong)


class ScoringKeywords(TypedDict, total=False):
    """What Scoring has beside TaskOptions, as keyword arguments for editors; a test holds them alike."""

    limit: int | None
    questions: int | None
    strict: bool
    choices: Sequence[str]
    on_long: Literal["drop", "cut"] | None
    max_length: int | None
    columns: str | None


class EvaluateKeywords(ScoringKeywords, TaskKeywords, OpenKeywords, GenerationKeywords, total=False):
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
    choice_accuracy: float | None = None
    """Share of rows whose right choice has the lowest loss."""
    rouge1: float | None = None
    rouge2: float | None = None
    rougeL: float | None = None
    bleu: float | None = None
    """0 to 100."""
    chrf: float | None = None
    """0 to 100."""
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

    ``data``: the rows; not given, the validation rows of the run. ``keys``: keys of a recipe's data section that rows
    are read by, as "data.columns={...}"; the others are those of training. ``output``: a new folder for report.json and
    predictions.jsonl; not given, a new one in the run folder, or none where no run is named. ``progress(side, done,
    of)`` is called as answers are done. The other ``options`` are the fields of Scoring, OpenOptions (``model``,
    ``adapter``, ``quantize``, ...) and GenerationOptions (``max_new_tokens``, ...).

    Refusals: ``no-data``, ``already-exists``, ``unknown-option``, and those of halter.load, halter.load_adapter, of the
    rows and of generation.
    """
    scoring, opening, generation = sorted_out(options, Scoring, OpenOptions, GenerationOptions)
    if scoring.columns is not None:
        keys = [*keys, f"data.columns={scoring.columns}"]
    subject = find(named, model=opening.model, adapter=opening.adapter)
    place = _place(output, subject.run)
    if place is not None:
        folders.refuse_unwritable(place)
    if scoring.task_names:
        task_manager(scoring)  # what is missing is said before anything is loaded
    opened = open_subject(subject, say, opening, as_trained=True)  # its scores depend on them in the last bits
    rows, account = held_out_rows(opened, data, scoring, keys, say)
    with ExitStack() as stack:
        folder = None if place is None else stack.enter_context(folders.new_folder(place))
        report = _head(opened, data, account)
        scored = with_answers(opened, data, keys, rows)
        report |= _scores(opened, scored, scoring, generation, folder, progress) if rows else _NOTHING
        if scoring.task_names:
            _add_tasks(report, opened, scoring, say)
        if folder is not None:
            writing.write_json(folder / "report.json", report)
    sides = {side: Scores.of(report[side]) for side in ("base", "adapter") if side in report}
    return Evaluation(
        sides["base"], sides.get("adapter"), report["rows"], report.get("target_tokens", 0), report["answers"], place,
        report,
    )  # fmt: skip


_NOTHING: Mapping[str, Any] = {"rows": 0, "answers": 0, "base": {}}


def _place(output: str | Path | None, run: Path | None) -> Path | None:
    if output is not None:
        return Path(output)
    return None if run is None else RunFolder.next(run / "evaluations", "evaluation").path


def held_out_rows(
    opened: Opened, data: str | Path | None, scoring: Scoring, keys: Sequence[str] = (), say: Say = tell
) -> tuple[Examples, str]:
    """The rows to score, made into tokens as in training but for ``keys`` of the data section, and what became of them.
    A merged model and its run get the same rows."""
    limit, recipe = scoring.limit, opened.subject.recipe
    known = _known(opened, keys)
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
    options = replace(known, train=str(data), validation=None, limit=limit, on_long=policy)
    loaded = load_examples(options, opened.tokenizer, opened.template, seed)
    say(f"rows: {loaded.report}")
    for line in told.readings(loaded.report.readings, loaded.report.ignored):
        say(f"rows: {line}")
    for line in told.doubts(loaded.report):
        say(f"warning: {line}")
    if loaded.report.long_dropped:
        left = f"{loaded.report.long_dropped} of {loaded.report.rows} rows have more than {known.max_length} tokens"
        say(f"warning: {left} and are not scored; {_kept_by(policy, known.max_length, opened.model.config.context)}")
    return loaded.train, str(loaded.report)


def _known(opened: Opened, keys: Sequence[str]) -> DataOptions:
    """The data section that rows are read by."""
    recipe = opened.subject.recipe
    known = recipe.data if recipe is not None else DataOptions(max_length=opened.model.config.context)
    return data_options(keys, known) if keys else known


def with_answers(opened: Opened, data: str | Path | None, keys: Sequence[str], rows: Examples) -> Sequence[Example]:
    """The rows, with the answer as its file has it where the tokenizer does not know all of it."""
    lost = {one.origin for one in rows if not questions.knows_all(one, opened.tokenizer)}
    known = _known(opened, keys)
    if not lost:
        return rows
    options = known if data is None else replace(known, train=str(data), validation=None)
    found = again.answers(options, lost)
    return [replace(row, answer=found.get(row.origin, "")) for row in rows]


def _kept_by(policy: str, length: int, context: int) -> str:
    """What keeps rows that are too long; where they are cut already, what is asked leaves an answer no room."""
    if policy == "drop":
        return "--on-long cut takes their beginnings"
    longer = f"; --max-length {context} is all that this model reads" if length < context else ""
    return f"what is asked fills that by itself{longer}"


def _head(opened: Opened, data: str | Path | None, account: str) -> dict[str, Any]:
    """What was scored on what."""
    subject = opened.subject
    return {
        "model": subject.base,
        "adapter_folder": None if subject.adapter is None else str(subject.adapter),
        "data": str(data) if data else "the validation rows of the run",
        "data_account": account,
        "template": None if opened.template is None else opened.template.name,
    }


def _scores(
    opened: Opened,
    rows: Sequence[Example],
    scoring: Scoring,
    options: GenerationOptions,
    folder: Path | None,
    progress: Progress | None,
) -> dict[str, Any]:
    # Before answers are generated, so that choices that do not fit are refused at once.
    chosen: dict[str, Any] = {}
    if scoring.choices:
        chosen = choice_report(opened.model, opened.tokenizer, rows, scoring.choices, opened.adapter)
    report = score.evaluate(
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


def _add_tasks(report: dict[str, Any], opened: Opened, scoring: Scoring, say: Say) -> None:
    """Each side's scores of the tasks under its ``tasks``, and what they were taken on under ``tasks``."""
    sides = {"base": None} if opened.adapter is None else {"base": None, "adapter": opened.adapter}
    for side, adapter in sides.items():
        say(f"tasks of the {side} ...")
        judge = Judge(opened.model, opened.tokenizer, adapter)
        found, report["tasks"] = task_scores(judge, scoring)
        report.setdefault(side, {})["tasks"] = found
