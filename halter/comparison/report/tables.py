"""The report's tables, as text in cells; the page, the Markdown and the CSV show the same ones."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from halter.comparison.report.facts import LOSS, ReportFacts, ReportRow, number
from halter.comparison.report.summary import count, duration, listed, loss, size, warmup

NO, YES = "no", "yes"


@dataclass(frozen=True)
class ReportTable:
    """A heading, what to know before reading, column heads, and rows of text."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]


def tables(found: ReportFacts) -> list[ReportTable]:
    """Every table that has something to show."""
    made = (_results, _scores, _costs, _using, _recipes, _verdicts, _surroundings)
    return [_without_empty_columns(table) for build in made if (table := build(found)).rows]


def _without_empty_columns(table: ReportTable) -> ReportTable:
    kept = [n for n in range(len(table.head)) if n == 0 or any(row[n] for row in table.rows)]
    rows = [[row[n] for n in kept] for row in table.rows]
    return ReportTable(table.title, table.note, [table.head[n] for n in kept], rows)


def _results(found: ReportFacts) -> ReportTable:
    note = (
        "Loss on the test rows in nats a token, less is better: mean over the seeds, their standard deviation, and the "
        "95 % interval of a bootstrap over rows and seeds. Ties: the interval of the paired difference holds 0."
    )
    head = ["method", "base", "status", "trained parameters", "share", "loss", "spread", "interval", "ties with"]
    order = {row.name: n for n, row in enumerate(found.trained)}
    rows = sorted(found.rows, key=lambda row: order.get(row.name, len(order)))
    return ReportTable("Results", note, head, [_result(found, row) for row in rows])


def _result(found: ReportFacts, row: ReportRow) -> list[str]:
    low, high = row.number("interval", LOSS, 0), row.number("interval", LOSS, 1)
    done = row.status == "done"
    return [
        row.name,
        str(row.facts.get("precision") or ""),
        "done" if done else f"{row.status}: {row.why}",
        count(row.trainable),
        _share(row.cost("share")),
        loss(row.loss),
        loss(row.number("spread", LOSS)),
        f"{loss(low)} to {loss(high)}" if low is not None else "",
        listed([other.name for other in found.rows if other is not row and found.tied(row, other)]) if done else "",
    ]


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g}%"


def _scores(found: ReportFacts) -> ReportTable:
    names = found.scores
    rows = []
    for row in found.rows:
        if row.status == "done" and any(row.number("mean", name) is not None for name in names):
            rows.append([row.name, *(_score(row, name) for name in names)])
    note = (
        "Mean over the seeds and standard deviation, on the test rows; in brackets the 95 % interval of the bootstrap."
    )
    if (choices := found.record.get("choices")) and (majority := number(choices, "majority")) is not None:
        note += (
            f" choice_accuracy: the choice with the lowest loss, of {plain(choices.get('choices'))}; always the most "
        )
        note += f"frequent one is right in {majority:.3f}, a guess in {number(choices, 'chance') or 0:.3f}."
    return ReportTable("Scores by task", note, ["method", *names], rows)


def _score(row: ReportRow, name: str) -> str:
    mean, spread = row.number("mean", name), row.number("spread", name)
    if mean is None:
        return ""
    digits = 3 if abs(mean) < 10 else 1
    low, high = row.number("interval", name, 0), row.number("interval", name, 1)
    text = f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")
    return text + (f" ({low:.{digits}f} to {high:.{digits}f})" if low is not None and high is not None else "")


def _costs(found: ReportFacts) -> ReportTable:
    head = [
        "method",
        "planned memory",
        "measured peak",
        "tokens a second",
        "time of a run",
        "learning rate",
        "warm-up",
        "stability",
    ]
    rows = [
        [
            row.name,
            size(sum(row.planned.values())) if row.planned else "",
            size(row.peak),
            count(row.cost("tokens_per_second")),
            duration(row.seconds),
            _general(row.cost("learning_rate")) + (", at the edge" if row.facts.get("edge") else ""),
            warmup(row.number("warmup")),
            _general(row.number("stability")),
        ]
        for row in found.trained
    ]
    note = (
        "Stability across learning rates: the mean, over the first round's rates within a factor of 9 of the best, of "
        "the best validation loss divided by theirs; 1 where the rate does not matter. At the edge: no lower, or no "
        "higher, rate was tried."
    )
    return ReportTable("What training costs", note, head, rows)


def _general(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _using(found: ReportFacts) -> ReportTable:
    head = [
        "method",
        "mergeable",
        "merge gap",
        "adapter",
        "compressed",
        "loss then",
        "forgetting",
        "start",
        "decoded tokens a second",
    ]
    rows = []
    for row in found.trained:
        merges = row.facts.get("mergeable")
        forgets = row.forgetting
        rows.append(
            [
                row.name,
                "" if merges is None else YES if merges else NO,
                _general(row.number("merge_gap")),
                size(row.cost("adapter_bytes")),
                size(row.number("compressed_bytes")),
                loss(row.number("compressed_loss")),
                f"{sum(forgets) / len(forgets):+.4f}" if forgets else "",
                _start(row.number("startup_seconds")),
                _general(row.number("decode_tokens_per_second")),
            ]
        )
    note = (
        "Merge gap: the mean divergence (Kullback-Leibler, nats) of the merged model from the adapter beside the base. "
        "Forgetting: the rise of the loss on general text, nats a token. Start and decoding are measured unmerged."
    )
    return ReportTable("What using it costs", note, head, rows)


def _start(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.0f} ms"


def _recipes(found: ReportFacts) -> ReportTable:
    rows = []
    for row in found.rows:
        seeds = [str(seed["recipe"]) for seed in row.seeds if seed.get("recipe")]
        own = row.facts.get("recipe") or next(iter(seeds), None)
        if own:
            others = [recipe for recipe in seeds if recipe != own]
            rows.append([row.name, f"halter train {own}", listed(others)])
    note = (
        "The command trains the method again with the learning rate that the search chose; other recipes, other seeds."
    )
    return ReportTable("Run it again", note, ["method", "command", "recipes of the other seeds"], rows)


def _verdicts(found: ReportFacts) -> ReportTable:
    rows = []
    for verdict in found.record.get("verdicts") or []:
        holds = verdict.get("holds")
        said = "" if holds is None else "holds" if holds else "does not hold"
        figures = plain(verdict.get("figures"))
        rows.append(
            [str(verdict.get("claim", "")), str(verdict.get("verdict", "")), said, plain(verdict.get("size")), figures]
        )
    note = (
        "What a survey of these methods (arXiv 2510.12178) says, and whether it is so. arithmetic: settled by "
        "counting. measured: by this comparison, at the size given. "
        "not testable here: neither, and so not judged."
    )
    return ReportTable("Claims of the survey", note, ["claim", "judged by", "verdict", "size", "figures"], rows)


def _surroundings(found: ReportFacts) -> ReportTable:
    record = found.record
    rows = [["halter", plain(record.get("halter"))], ["date", plain(record.get("date"))]]
    for part in ("machine", "base", "data", "tasks", "budget", "settings"):
        rows += [[name, value] for name, value in _leaves(part, record.get(part))]
    return ReportTable("Machine, data and digests", "", ["what", "value"], [row for row in rows if row[1]])


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    elif value is not None:
        yield name, size(value) if name.endswith("bytes") and isinstance(value, int) else plain(value)


def plain(value: Any) -> str:
    """Any value of the record as text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(inner) for inner in value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:,}"
    return json.dumps(value) if isinstance(value, bool) else f"{value:.6g}" if isinstance(value, float) else str(value)


def comma_separated(found: ReportFacts) -> str:
    """One line a row, with plain numbers. Text that a spreadsheet would run as a formula is quoted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    scores = [LOSS, *found.scores]
    plain_keys = (
        "trainable",
        "share",
        "adapter_bytes",
        "compressed_bytes",
        "compressed_loss",
        "merge_gap",
        "tokens_per_second",
        "seconds",
        "decode_tokens_per_second",
        "learning_rate",
        "stability",
    )
    head = ["name", "status", "why", "precision", "method", "mergeable", *plain_keys, "measured_peak_bytes"]
    head += [
        "planned_bytes",
        "seeds",
        *(f"{kind}_{name}" for name in scores for kind in ("mean", "spread", "low", "high")),
    ]
    writer.writerow([*map(_harmless, head), "recipe"])
    for row in found.rows:
        cells: list[Any] = [row.name, row.status, row.facts.get("why"), row.facts.get("precision")]
        cells += [json.dumps(row.facts.get("method"), ensure_ascii=False), row.facts.get("mergeable")]
        cells += [row.number(key) for key in plain_keys]
        cells += [row.peak, sum(row.planned.values()) if row.planned else None, len(row.seeds)]
        for name in scores:
            cells += [row.number("mean", name), row.number("spread", name)]
            cells += [row.number("interval", name, 0), row.number("interval", name, 1)]
        writer.writerow([_harmless(cell) for cell in [*cells, row.facts.get("recipe")]])
    return out.getvalue()


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
