"""`halter compare` in Python: several methods on one base and one set of rows, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from halter.arguments import checked
from halter.comparison import loop, start
from halter.comparison.options import CompareOptions
from halter.errors import Refusal
from halter.evaluation.options import TaskKeywords
from halter.files.folders import refuse_file_name, try_out
from halter.files.runs import RunFolder
from halter.run.beside import counting
from halter.run.keywords import sorted_out
from halter.telling import Say, tell

NEEDS = (
    "halter compare --model DIR --train FILE --test FILE --output OUT, or halter compare recipe.yaml --output OUT; "
    "halter compare --quick needs nothing"
)


class _Keywords(TypedDict, total=False):
    test: str | None
    general: str | None
    methods: str | Sequence[str]
    precisions: str | Sequence[str]
    tokens: int | None
    validation: float
    limit: int | None
    seeds: int
    search_trials: int
    together: int | None
    questions: int
    max_new_tokens: int
    choices: str | Sequence[str]
    resamples: int
    skip_memory: bool
    seed: int


class CompareKeywords(TaskKeywords, _Keywords, total=False):
    """The fields of CompareOptions as keyword arguments, for editors; a test holds the two alike."""


@dataclass(frozen=True)
class Compared:
    """One line of a comparison: a base, or a method with the learning rate that was best on validation rows."""

    name: str
    status: str
    """done, failed, or left out."""
    why: str | None
    """Why it failed or was left out."""
    trainable: int
    """Trained numbers; 0 for a base."""
    learning_rate: float
    """The chosen one; 0 for a base."""
    test_loss: float | None
    """Mean over the seeds, nats per learned token of the test rows; None where it was not run."""
    spread: float | None
    """Standard deviation of that loss over the seeds."""
    scores: Mapping[str, float]
    """Means of everything that was scored: test_loss, exact_match (0 to 1), forgetting (nats), ..."""
    tokens_per_second: float
    """Of training, prompts included."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Compared:
        """A row of the record."""
        mean, plain = row["mean"], ("name", "status", "why", "trainable", "learning_rate", "tokens_per_second")
        return cls(
            test_loss=mean.get("test_loss"),
            spread=row["spread"].get("test_loss"),
            scores=mean,
            **{name: row[name] for name in plain},
        )


@dataclass(frozen=True)
class Comparison:
    """What a comparison found."""

    folder: Path
    """Where record.json and the report are."""
    rows: tuple[Compared, ...]
    ties: tuple[tuple[str, ...], ...]
    """Names whose test losses cannot be told apart."""
    reports: tuple[Path, ...]
    """The report's files; () where the extra for figures is not installed."""
    record: Mapping[str, Any]
    """All of it as plain data, as record.json has it."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(self.record)


@checked('halter.compare(model="DIR", train="a.jsonl", test="b.jsonl", methods=["lora"], output="runs/which")')
def compare(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    train: str | Sequence[str] | None = None,
    output: str | Path | None = None,
    quick: bool = False,
    say: Say = tell,
    **options: Unpack[CompareKeywords],
) -> Comparison:
    """Train several methods on the same rows with the same budget, learning rates chosen on validation rows, scores
    taken on test rows; writes record.json and a report. Called again with the same ``output`` it goes on.

    ``source``: a recipe (YAML file or mapping) with a section ``compare``; ``overrides`` as for halter.train. ``model``
    and ``train`` (rows to train on, one file or several) go over the recipe's. ``quick``: on the embedded playground.
    The other ``options`` are the fields of CompareOptions: ``test``, ``methods``, ``tokens``, ``seeds``, ...

    Refusals: ``nothing-to-compare``, ``not-a-comparison``, ``recipe``, ``compare-options``, ``unknown-option``,
    ``run-in-use``, and those of data and base; all before anything is trained.
    """
    (flags,) = sorted_out("halter.compare", options, CompareOptions)
    recipe, section, variants = ({}, {}, {}) if source is None else start.read(source)
    if not quick and not recipe and model is None:
        raise Refusal("nothing-to-compare", "a comparison needs a model and data", fix=NEEDS)
    folder = Path(output) if output is not None else RunFolder.next("runs", "compare").path
    start.refuse_foreign(folder)
    refuse_file_name(folder)
    try_out(folder)
    chosen = start.options_of(section, flags, "compare")
    if quick:
        recipe, chosen = start.quick(chosen, folder / "playground")
    recipe, named = start.overridden(recipe, overrides)
    chosen = start.chosen_methods(chosen, named)
    for (name, key), value in {("model", "path"): model, ("data", "train"): _one_or_all(train)}.items():
        if value is not None:
            _refuse_twice(key, value, recipe, overrides)
            recipe[name] = {**_section(recipe, name), key: value}
    loop.tell_unwritable(folder, say)
    say(f"comparison: {folder}")
    with counting(source):
        record = loop.compare(recipe, chosen, variants, folder, say)
    reports = loop.write_report(record, folder, say)
    rows = tuple(Compared.of(row) for row in record["rows"])
    return Comparison(folder, rows, tuple(tuple(pair) for pair in record["ties"]), reports, record)


def _one_or_all(files: str | Sequence[str] | None) -> str | list[dict[str, str]] | None:
    if files is None or isinstance(files, str):
        return files
    return files[0] if len(files) == 1 else [{"path": file} for file in files]


def _refuse_twice(key: str, value: object, recipe: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Refusal ``compare-options`` of rows to train on that stand under two names."""
    before = _section(recipe, "data").get("train")
    if key == "train" and before not in (None, value) and start.overridden({}, overrides)[0].get("data", {}).get(key):
        found = [f"--train {value}", f"--data {before}"]
        fix = "keep one of them; for several files give --train again"
        raise Refusal("compare-options", "rows to train on are given twice", found=found, fix=fix)


def _section(source: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section as a mapping; `model: DIR` is short for its first key."""
    found = source.get(name) or {}
    return dict(found) if isinstance(found, Mapping) else {"path" if name == "model" else "train": found}
