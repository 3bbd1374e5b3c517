"""What is about to happen, in words: base, rows, steps, defaults, and what became of rows that are not as they were."""

from __future__ import annotations

from halter.contract.method import in_words
from halter.data import told
from halter.data.advice import about, columns_option
from halter.data.doubts import AS_OF
from halter.data.formats import READINGS
from halter.data.report import DataReport
from halter.run.cautions import cautions
from halter.run.prepare import Job
from halter.telling import Say
from halter.text.chat.marks import MARKS


def describe(job: Job, say: Say) -> None:
    """What is about to happen, with the defaults that were not chosen by the user and where they come from."""
    recipe, report = job.recipe, job.data.report
    held = f", {recipe.model.quantize}" if recipe.model.quantize else ""
    say(f"base: {job.folder} ({job.config.num_parameters:,} parameters{held})")
    say(f"data: {report} (rows of at most {recipe.data.max_length} tokens)")
    for line in told.readings(report.readings, report.ignored):
        say(f"rows: {line}")
    most = max(job.micro_tokens, report.longest)
    say(f"plan: {job.steps} steps of {_step(job)}, at most {most} tokens in one micro-batch")
    for choice in recipe.methods:
        say(f"method: {choice.name}{in_words(choice.options)}")
    if recipe.defaults:
        values = ", ".join(f"{key} {default.value}" for key, default in recipe.defaults.items())
        say(f"defaults: {values} (--verbose and recipe.yaml say where each comes from)")
    for key, default in recipe.defaults.items():
        say(f"default: {key} = {default.value} ({default.source})")
    for line in (*report.said, *told.notes(report, aside=True)):
        say(f"note: {line}")
    for line in (*told.notes(report, aside=False), *lost_rows(job), *cautions(job)):
        say(f"warning: {line}")


def _step(job: Job) -> str:
    """What a step is made of: so many rows, or rows up to so many tokens, of which there is at least one."""
    rows, tokens = job.recipe.train.rows_per_step, job.recipe.train.tokens_per_step or 0
    lengths = job.data.train.lengths
    if rows:
        return f"{rows} rows" if rows > 1 else "1 row"
    if len(lengths) and tokens < lengths.min():
        return f"1 row (tokens_per_step is {tokens}, and every row has more tokens)"
    return f"at most {tokens} tokens" + (", or one longer row" if tokens < job.data.report.longest else "")


def _asked_by(report: DataReport) -> str:
    """How rows that are plain text are asked by a template."""
    marked = {name.removeprefix(AS_OF): n for name, n in report.notes.items() if name.startswith(AS_OF)}
    if marked:
        name, count = max(marked.items(), key=lambda one: one[1])
        what = MARKS.get(name, f"marks of {name}")
        return (
            f"{count} hold {what}, which are text there, letter by letter; take these marks out, give what is asked "
            f"and answered as instruction and output, and --template {name} writes them"
        )
    others = [one for columns in report.ignored.values() for one in columns if about(one)]
    if set(report.readings.values()) == {READINGS["text"]} and len(set(others)) == 1:
        return f"perhaps {columns_option({'instruction': 'text', 'output': others[0]})}"
    return "data.columns says what is asked and what is answered"


def lost_rows(job: Job, share: float = 0.0) -> list[str]:
    """One sentence for each way in which more than ``share`` of the rows are not, or not so, in the training."""
    report, options = job.data.report, job.recipe.data
    ways, longer = report.keeping(options.on_long), options.max_length < job.config.context
    larger = "a larger data.max_length" if longer else ""
    kept = ", or ".join(filter(None, (ways, larger))) if ways or not longer else f"{larger} keeps them"
    template = None if job.recipe.data.template is None or job.template is None else job.template.name
    found, taken = [], report.looked_at
    for count, words in (
        (
            report.long_dropped,
            f"have more than {options.max_length} tokens and are left out" + (f": {kept}" if kept else ""),
        ),
        (report.duplicates, "repeat an earlier row and are kept"),
        (len(report.faults), f"cannot be used and are skipped ({report.kinds()})"),
        (
            report.as_they_stand if template else 0,
            f"are learned as plain text, without the chat template {template}: {_asked_by(report)}",
        ),
    ):
        if taken and count / taken > share:
            found.append(f"{count} of {taken} rows {words}")
    return found
