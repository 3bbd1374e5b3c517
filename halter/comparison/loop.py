"""The course of a comparison: every row's search, runs and costs, each trial once, the record written after each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from halter import recipe as recipes
from halter.comparison import record as records
from halter.comparison.entries import base_name, entries
from halter.comparison.options import CompareOptions
from halter.comparison.report import writing as report
from halter.comparison.runner import Runner, Trial
from halter.comparison.search import halve
from halter.comparison.setup import ComparedMethod, Setup, most_seeing, set_up
from halter.comparison.survey import verdicts
from halter.errors import Refusal
from halter.evaluation.tasks import task_manager
from halter.files.extras import install
from halter.files.locks import held
from halter.files.runs import THREADS, RunFolder
from halter.files.writing import write_json
from halter.model.storages import STORAGES
from halter.numerics import allocation, denormals, threads
from halter.telling import Say
from halter.training.progress import in_words


@allocation.kept()
@denormals.flushed()
def compare(
    source: Mapping[str, Any], options: CompareOptions, variants: Mapping[str, Any], output: Path, say: Say
) -> dict[str, Any]:
    """Run what was not run yet; returns the record, which is in ``output``/record.json.

    ``source``: a recipe as a mapping without `method` and `compare`. Refusals before anything is trained: of the
    options, the recipe, the data and the base's folder; ``run-in-use`` where another process works in ``output``.
    """
    entered = entries(options, variants)
    with held(output, say):
        setup = set_up(source, most_seeing(source, entered), options, output, say)
        with threads.taken(_threads(setup, output, say)):
            return ComparisonLoop(setup, entered, say).run()


def _threads(setup: Setup, output: Path, say: Say) -> threads.Threads:
    """Those of the whole comparison, of trials of another day too."""
    run, train = RunFolder(output), setup.job.recipe.train
    chosen = threads.choose(train.threads, run.threads(), look=not train.deterministic)
    if chosen.remarkable():
        say(chosen.words())
    run.put(THREADS, chosen.facts())
    return chosen


def tell_unwritable(output: Path, say: Say) -> None:
    """Say before hours of training what cannot be written after them."""
    if find_spec("matplotlib") is None:
        again = f"python -m halter.comparison.report {output / 'record.json'} {output}"
        what = "no report page will be written, only record.json and the table"
        say(f"warning: {what}; now or afterwards: {install('report')}; then, once the record is there: {again}")


def write_report(record: Mapping[str, Any], output: Path, say: Say) -> tuple[Path, ...]:
    """Write the pages beside the record; where the extra for figures is not installed, the record has to do: ()."""
    if find_spec("matplotlib") is None:
        return ()  # which was told before the first trial
    try:
        written = tuple(report.write(record, output))
    except Refusal as refusal:
        again = f"python -m halter.comparison.report {output / 'record.json'} {output}"
        say(f"no report page: {refusal}. Once that is there: {again}")
        return ()
    for path in written:
        say(f"report: {path}")
    return written


class ComparisonLoop:
    """One comparison under way."""

    def __init__(self, setup: Setup, entered: Sequence[ComparedMethod], say: Say) -> None:
        self.setup, self.entered, self.say = setup, entered, say
        self.options = setup.options
        self.head = records.head(setup)  # with the base's digest, by which all trials are named
        self.runner = Runner(setup, say, self.write)
        if (
            asked := self.runner.suite.choice_questions
        ) is not None:  # choices that do not fit are refused before any training
            self.head["choices"] = asked.facts()
        if self.options.task_names:
            task_manager(self.options)
        self.rows: dict[str, records.RecordRow] = {}
        self.took: list[float] = []  # seconds of each row
        targets = [example.targets for example in setup.test]
        self.noise = records.Noise(targets, self.options.resamples, self.options.seed)

    def run(self) -> dict[str, Any]:
        """All rows, then the record. Memory first, while no base is in this process."""
        for entry in self.entered:
            self._start(entry)
        for precision in self.options.precisions:
            before = self._base(precision)
            for entry in self.entered:
                if entry.precision == precision and self.rows[entry.name].status == "done":
                    began = time.monotonic()
                    self._row(entry, before)
                    self.took.append(time.monotonic() - began)
                    self._foretell()
        return self.write()

    def _foretell(self) -> None:
        """How long the methods that are left take at the pace of those that were done."""
        rows = [self.rows[one.name] for one in self.entered]
        left = sum(row.status == "done" and not row.scored for row in rows)
        if left:
            done = len(self.took)
            more = in_words(sum(self.took) / done * left)
            self.say(f"time: about {more} more: {left} to go, at the pace of the {done} done so far")

    def write(self) -> dict[str, Any]:
        """record.json as it stands: rows that have been scored, or never will be."""
        shown = [row for row in self.rows.values() if row.status != "done" or row.scored]
        ties = self.noise.judge([row for row in shown if row.scored]) if self.noise.losses else {}
        record = {
            **self.head,
            "rows": [asdict(row) for row in shown],
            "ties": ties.pop("test_loss", []),
            "ties_by": ties,
        }
        # The survey's claims are about its own methods and sizes: whoever compares on other data did not ask for them.
        record["verdicts"] = verdicts(record) if record["base"]["name"] == "playground" else []
        write_json(self.setup.folder / "record.json", record, replace=True)
        return record

    def _start(self, entry: ComparedMethod) -> None:
        """The row with what can be said before training: counts, whether it fits, its memory."""
        row = records.RecordRow(entry.name, entry.method, entry.precision)
        self.rows[entry.name] = row
        try:
            job, adapter = self.runner.first_look(entry)
        except Refusal as refusal:
            row.leave("left out", str(refusal))
            return
        row.trainable = adapter.num_trainable
        row.share = row.trainable / job.config.num_parameters
        row.method = recipes.as_data(job.recipe)["method"]
        rate = job.recipe.train.learning_rate
        assert rate is not None  # a job's recipe has the method's own where none was given
        row.learning_rate, row.warmup = rate, job.recipe.train.warmup_steps
        memory = self.runner.memory(entry, job)
        if "why" in memory:
            row.leave("left out", f"its first steps failed: {memory['why']}")
        row.memory |= {key: value for key, value in memory.items() if key != "why"}

    def _base(self, precision: str) -> float | None:
        """The base's row; returns its loss on general text."""
        name = base_name(self.options, precision)
        trial = self.runner.base(precision)
        held = precision if precision in STORAGES else trial["dtype"]
        mean = {"test_loss": trial["test_loss"], **trial["scores"]}
        self.head |= {"tasks": trial["tasks"]} if "tasks" in trial else {}
        row = records.RecordRow(name, None, held, mean=mean, decode_tokens_per_second=trial["decode"])
        place = next((n for n, c in enumerate(self.entered) if c.precision == precision), 0)
        rows = list(self.rows.items())
        place += sum(one.method is None for _, one in rows)  # the bases before it
        self.rows = dict([*rows[:place], (name, row), *rows[place:]])
        for entry in self.entered:
            if entry.precision == precision:
                self.rows[entry.name].precision = held
        self.noise.add(name, [trial])
        self.say(f"{name}: test loss {trial['test_loss']:.4f}")
        return None if trial["general_loss"] is None else float(trial["general_loss"])

    def _row(self, entry: ComparedMethod, before: float | None) -> None:
        """Search, runs and costs of one contestant; ``before``: its base's loss on general text."""
        row, options = self.rows[entry.name], self.options

        def attempt(rates: Sequence[float], tokens: int) -> list[Trial]:
            return self.runner.search(entry, rates, tokens)

        rate, found = halve(row.learning_rate, options.search_trials, self.setup.tokens, attempt)
        if rate is None:
            row.leave("failed", "training failed at every learning rate that was tried")
            return
        row.learning_rate = rate
        trials: list[Trial] = []
        for seed in range(options.seed, options.seed + options.seeds):
            trial = self.runner.run(entry, rate, seed)
            why = trial["why"] or ("" if trial["test_loss"] is not None else "its loss on the test rows is not finite")
            if why:
                row.leave("failed", f"seed {seed}: {why}")
                return
            after = trial["general_loss"]
            forgetting = None if after is None or before is None else after - before
            trials.append({**trial, "forgetting": forgetting})
            self.noise.add(entry.name, trials)
            records.sum_up(row, trials, found)
        row.take(self.runner.costs(entry, rate))
        self.say(f"{entry.name}: rate {rate:g}, test loss {row.mean['test_loss']:.4f}")
        self.write()
