"""Which rows an evaluation scores: its options, and the rows as the run's training would have read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict

from halter.data import again, told
from halter.data.choose import sample
from halter.data.example import Example
from halter.data.load import DataReport, Examples, Loaded, RowSight, load_examples
from halter.data.options import DataOptions
from halter.data.sources import refuse_several
from halter.errors import Refusal, Waivers
from halter.evaluation import questions
from halter.evaluation.measures.registry import CHOICES
from halter.evaluation.options import MeasureOptions, TaskOptions
from halter.files.runs import RunFolder
from halter.generation.prompts import system_unused
from halter.run import same_data
from halter.run.answered import answered
from halter.run.opening import Opened
from halter.run.words import data_options
from halter.telling import Say, tell

MORE = 4
"""Times as many rows are drawn as before, where a limit found too few that can be scored."""


@dataclass(frozen=True)
class Scoring(MeasureOptions, TaskOptions):
    """What is scored, and how."""

    limit: int | None = None
    """Rows scored at most, chosen by the seed among those that can be."""
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
    system: str | None = None
    """System message of every row that is asked by a chat template, in place of one that it has."""
    pictures: Literal["shown", "withheld", "shuffled"] = "shown"
    """What the rows' pictures are worth: withheld asks without them and what is read in them, shuffled with the next
    row's."""

    def __post_init__(self) -> None:
        least = {"limit": 1, "questions": 0, "max_length": 1}
        given = {name: getattr(self, name) for name in least}
        wrong = [f"{n}: at least {least[n]}, not {v}" for n, v in given.items() if v is not None and v < least[n]]
        wrong += self.wrong_numbers()
        if self.choices and CHOICES in self.measure_names:
            wrong.append(f"choices: the same for all rows, and --measures {CHOICES} takes those that each row lists")
        if wrong:
            raise Refusal(
                "evaluation-options",
                "options of an evaluation that cannot be used",
                found=wrong,
                fix="change these; halter evaluate --help has every option with its default",
            )


class ScoringKeywords(TypedDict, total=False):
    """What Scoring has beside TaskOptions, as keyword arguments for editors; a test holds them alike."""

    limit: int | None
    questions: int | None
    strict: bool
    choices: str | Sequence[str]
    on_long: Literal["drop", "cut"] | None
    max_length: int | None
    columns: str | None
    system: str | None
    pictures: Literal["shown", "withheld", "shuffled"]


def held_out_rows(
    opened: Opened, data: str | Path | None, scoring: Scoring, keys: Sequence[str] = (), say: Say = tell
) -> tuple[Examples, str]:
    """The rows to score, made into tokens as in training but for ``keys`` of the data section, and what became of them.
    A merged model and its run get the same rows."""
    limit, recipe = scoring.limit, opened.subject.recipe
    known = _known(opened, keys)
    if known.readers and scoring.pictures != "shown":
        known, opened = _unread(known, opened, scoring.pictures)
    seed = 0 if recipe is None else recipe.train.seed
    if scoring.system is not None and opened.template is None:
        raise system_unused()
    if data is None:
        if known.validation is None and scoring.task_names:
            if scoring.system is not None:
                raise system_unused("tasks are asked as lm-eval writes them")
            return Examples([]), "no rows, tasks alone"
        if known.validation is None:
            raise Refusal("no-data", "there are no rows to score", fix="give --data FILE").by_keyword()
        held = _validation(opened, known, scoring.system, seed, say)
        count = len(held) if limit is None else min(limit, len(held))
        return Examples([held[i] for i in range(count)]), f"{count} of {len(held)} validation rows"
    refuse_several(str(data), "--data")
    known = replace(known, max_length=min(scoring.max_length or known.max_length, opened.model.config.context))
    policy = scoring.on_long or ("cut" if known.on_long in ("cut", "split") else "drop")
    options = replace(known, train=str(data), validation=None, limit=limit, on_long=policy)
    loaded, looked_at = _limited(options, opened, seed, scoring.system)
    _refuse_system_unused(scoring.system, loaded.report, say, looked_at)
    say(f"rows: {loaded.report}")
    for line in told.readings(loaded.report.readings, loaded.report.ignored):
        say(f"rows: {line}")
    for line in told.doubts(loaded.report):
        say(f"warning: {line}")
    run = _run_of(opened)
    if run is not None and (count := same_data.learned_before(run, loaded.train)):
        say(
            f"warning: {count:,} of {len(loaded.train):,} rows are among those that {run.path} was trained on: what is "
            "scored on them says nothing of rows that it has not seen"
        )
    if loaded.report.long_dropped:
        left = f"{loaded.report.long_dropped} of {looked_at} rows have more than {known.max_length} tokens"
        say(f"warning: {left} and are not scored; {_kept_by(policy, known.max_length, opened.model.config.context)}")
    return loaded.train, str(loaded.report)


def _unread(known: DataOptions, opened: Opened, pictures: str) -> tuple[DataOptions, Opened]:
    """Both, for rows without what is read in their pictures: that is what these are worth, too. Refusal
    ``evaluation-options`` where pictures are shuffled: what was read stands among the row's words."""
    if pictures == "shuffled":
        raise Refusal(
            "evaluation-options",
            "pictures that are read cannot be shuffled: their texts stand among the words of each row",
            found=[f"readers: {', '.join(known.readers)}"],
            fix="pictures: withheld leaves out the pictures and what was read; data.readers=[] scores without a reader",
        )
    return replace(known, readers=()), replace(opened, allow=(*opened.allow, "pictures-unseen"))


def _limited(options: DataOptions, opened: Opened, seed: int, system: str | None) -> tuple[Loaded, int]:
    """(rows to score, as many as the limit says of those that can be scored; rows that were looked at for it). Where
    some of the first drawn cannot be scored, more are drawn."""
    most, drawn = options.limit, options.limit
    while True:
        try:
            loaded = answered(replace(options, limit=drawn), opened, seed, system)
        except Refusal as refusal:
            if drawn is None or refusal.id != "no-rows":
                raise
            drawn = None  # none of those that were drawn: perhaps another
            continue
        report = loaded.report
        looked_at = report.looked_at
        if most is None or len(loaded.train) >= most or not report.left_out:
            break
        drawn = None if drawn is None else MORE * drawn
    if most is not None and len(loaded.train) > most:
        kept, count = sample(range(len(loaded.train)), most, seed, 0)
        loaded = replace(loaded, train=Examples([loaded.train[i] for i in kept]))
        report.left_out += count - most
        report.count(loaded.train, loaded.validation)
    return loaded, looked_at


def _run_of(opened: Opened) -> RunFolder | None:
    """The run whose adapter is scored, also where its adapter's folder was named."""
    subject = opened.subject
    beside = None if subject.adapter is None else RunFolder(subject.adapter.absolute().parent)
    return RunFolder(subject.run) if subject.run is not None else beside if beside and beside.begun else None


def _known(opened: Opened, keys: Sequence[str]) -> DataOptions:
    """The data section that rows are read by."""
    recipe = opened.subject.recipe
    known = recipe.data if recipe is not None else DataOptions(max_length=opened.model.config.context)
    return data_options(keys, known) if keys else known


def with_facts(
    opened: Opened, data: str | Path | None, keys: Sequence[str], rows: Examples, scoring: MeasureOptions
) -> Sequence[Example]:
    """The rows, with the answer as its file has it where the tokenizer does not know all of it, and with what the file
    says beside it: other right answers, and what ``scoring`` asks for. Refusal ``unknown-column``."""
    if not rows:  # of tasks alone, whose run's own files may be gone
        return rows
    lost = {one.origin for one in rows if not questions.knows_all(one, opened.tokenizer)}
    known = _known(opened, keys)
    options = known if data is None else replace(known, train=str(data), validation=None)
    found = again.answers(options, lost)
    asked = bool(scoring.by_names) or CHOICES in scoring.measure_names
    if not (asked or again.several(options)):
        return [replace(row, answer=found.get(row.origin, "")) for row in rows] if lost else rows
    facts = again.facts(options, {one.origin for one in rows}, scoring.by_names)
    said = {name for one in facts.values() for name in one.columns}
    if silent := [name for name in scoring.by_names if name not in said]:
        raise Refusal(
            "unknown-column",
            "no row that is scored says anything in this column",
            where="--by",
            found=silent,
            fix="name a column of the rows that has a text or a number in it",
        )
    return [replace(row, answer=found.get(row.origin, ""), beside=facts.get(row.origin, row.beside)) for row in rows]


def _validation(opened: Opened, known: DataOptions, system: str | None, seed: int, say: Say) -> Examples:
    """The run's validation rows. A share of them was drawn by what rows hold, so with another system message the rows
    are first found as they were in training, and then encoded anew: those that were learned are never scored."""
    sight = RowSight(opened.rules, Waivers(opened.allow))
    held = load_examples(known, opened.tokenizer, opened.template, seed, sight=sight).validation
    if system is None:
        return held
    origins = {held[i].origin for i in range(len(held))}
    anew = replace(known, validation=None)
    if isinstance(known.validation, str):
        anew = replace(anew, train=known.validation, limit=None)
    context = opened.model.config.context
    loaded = load_examples(anew, opened.tokenizer, opened.template, seed, None, system, context, sight)
    _refuse_system_unused(system, loaded.report, say, loaded.report.looked_at)
    found = [row for row in (loaded.train[i] for i in range(len(loaded.train))) if row.origin in origins]
    if len(found) < len(held):
        say(f"warning: {len(held) - len(found)} of {len(held)} validation rows are too long with this system message")
    return Examples(found)


def _refuse_system_unused(system: str | None, report: DataReport, say: Say, rows: int) -> None:
    """Refusal ``system-unused`` where none of the ``rows`` that were looked at is asked by the template; where some are
    not, their number is told."""
    plain = report.as_they_stand
    if system is not None and plain >= rows:
        raise system_unused("these rows are plain text, which no chat template writes")
    if system is not None and plain:
        say(f"note: {plain} of {rows} rows are plain text, without the system message")


def _kept_by(policy: str, length: int, context: int) -> str:
    """What keeps rows that are too long; where they are cut already, what is asked leaves an answer no room."""
    if policy == "drop":
        return "--on-long cut takes their beginnings"
    longer = f"; --max-length {context} is all that this model reads" if length < context else ""
    return f"what is asked fills that by itself{longer}"
