"""An inspection as one page: no scripts, nothing fetched, everything that came from data escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from halter.data import told
from halter.files.reading import lines_of, visible
from halter.inspection.census import Inspection, ShownRow, Steps

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --dim: #646b73; --paper: #fcfcfb; --card: #fff; --line: #e4e4e0;
  --learned: #cdeed6; --learned-ink: #0b3d1f; --control: #4b5fbd; --bar: #3f9c62; --warn: #a4540a; --warn-bg: #fdf1e2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --dim: #989ea6; --paper: #16181a; --card: #1d2023;
  --line: #2e3236; --learned: #1c4a2d; --learned-ink: #c9f2d5; --control: #9fb0ff; --bar: #58b97c; --warn: #f3b26b;
  --warn-bg: #33261a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.5rem 0 .75rem; }
p { margin: .25rem 0; } .dim { color: var(--dim); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.tile, details { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem; }
.tile b { display: block; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--dim); font-size: .85rem; }
.warn { background: var(--warn-bg); color: var(--warn); border-radius: .5rem; padding: .5rem 1rem; margin: .5rem 0; }
details { margin: .75rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
.tokens { font: 14px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin-top: .75rem; }
.t { border-radius: 3px; padding: 1px 0; box-shadow: inset -1px 0 var(--line); color: var(--dim); }
.l { background: var(--learned); color: var(--learned-ink); } .c { color: var(--control); font-weight: 600; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .75rem .3rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; font-weight: 400; }
th { color: var(--dim); } .n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--dim); font: 11px system-ui, sans-serif; }
.bar { fill: var(--bar); } .course { fill: none; stroke: var(--bar); stroke-width: 2; } .axis { stroke: var(--line); }
"""


MARK = '<meta name="generator" content="halter inspect">'
"""Stands at the beginning of every page, which tells them from files of another hand."""


def is_page(file: Path) -> bool:
    """Whether this is a page of ours, which a new one may replace."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return MARK.encode() in opened.read(1024)


def page(found: Inspection) -> str:
    """The whole inspection as HTML."""
    job, steps = found.job, found.steps
    report = job.data.report
    tiles = (
        (f"{report.kept:,}", "rows to train on"),
        (f"{report.tokens:,}", "tokens"),
        (f"{report.supervised_share:.1%}", "of them learned"),
        (f"{report.longest:,}", "tokens in the longest row"),
        (f"{steps.total:,}", "steps"),
        (f"{steps.tokens[1]:,.0f}", "tokens a step"),
        (f"{steps.filled:.1%}", "of each pass filled"),
    )
    body = [
        f"<h1>{_shown(job.recipe.model.path)}</h1>",
        f'<p class="dim">halter inspect: {_shown(", ".join(report.sources))}; template: '
        f"{_shown(job.template.name if job.template else 'none')}; no weights were read</p>",
        *(f'<p class="warn">Training would stop: {_shown(text)}</p>' for text in found.stops),
        *(f'<p class="warn">{_shown(text)}</p>' for text in found.warnings),
        '<div class="tiles">',
        *(f'<div class="tile"><b>{value}</b><span>{words}</span></div>' for value, words in tiles),
        "</div>",
        "<h2>Rows</h2>",
        *(f"<p>{_shown(line)}</p>" for line in (*told.readings(report.readings, report.ignored), *report.said)),
        '<p class="dim">Learned tokens stand on green, control tokens in blue; hover over one for its id.</p>',
        *(_row(row) for row in found.rows),
        "<h2>Labels</h2>",
        _table(_labels(found)),
        "<h2>Lengths</h2>",
        _lengths(found.histogram),
        _table(_longest(found)),
        "<h2>Left out</h2>",
        _table(_left_out(found)) or '<p class="dim">Nothing.</p>',
        "<h2>Steps</h2>",
        _table(_steps(steps)),
        "<h2>Learning rate</h2>",
        _course(steps),
    ]
    head = f'<meta charset="utf-8">{MARK}<meta name="viewport" content="width=device-width, initial-scale=1">'
    rules = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{rules}">'
    joined = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}{policy}<title>halter inspect</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{joined}\n</body></html>\n"
    )


def _shown(text: str) -> str:
    """Text of strangers, as text."""
    return escape(visible(text))


def _row(row: ShownRow) -> str:
    spans = []
    for place, token in enumerate(row.tokens):
        names = "t" + " l" * token.learned + " c" * token.control
        title = f"{place}: id {token.id}, {'learned' if token.learned else 'not learned'}"
        end = "\n" if token.text.endswith("\n") else ""
        spans.append(f'<span class="{names}" title="{title}">{_shown(token.text)}</span>{end}')
    pictures = "".join(
        f'<p class="dim">picture {number}: {_shown(picture.told())}</p><img alt="" src="{picture.uri()}">'
        for number, picture in enumerate(row.pictures, 1)
    )
    summary = f"{row.length} tokens, {row.learned} learned, {row.bos} BOS, {row.eos} ends"
    text = "\n".join(visible(line) for line in lines_of(row.text))
    return (
        f'<details open><summary><b>{_shown(row.origin)}</b> <span class="dim">{summary}</span></summary>'
        f'{pictures}<div class="tokens">{"".join(spans)}</div></details>'
        f'<details><summary class="dim">the same row as text</summary>'
        f'<div class="tokens">{escape(text)}</div></details>'
    )


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f'<tr><th>{_shown(name)}</th><td class="n">{_shown(v)}</td></tr>' for name, v in rows)
    return f"<table>{lines}</table>" if lines else ""


def _labels(found: Inspection) -> Iterable[tuple[str, str]]:
    report, census = found.job.data.report, found.census
    yield "learned tokens", f"{report.targets:,} of {report.tokens:,}"
    if census.rows != report.kept:
        yield "rows whose tokens were counted, evenly spread", f"{census.rows:,}"
    for name, counts in (("BOS", census.bos), ("ends", census.eos)):
        for count, rows in list(counts.items())[:8]:
            yield f"rows with {count} {name}", f"{rows:,}"
    for text, there, learned in census.controls[:12]:
        yield text, f"{there:,}, learned {learned:,}"
    if report.validation_rows:
        yield "rows held out", f"{report.validation_rows:,}"


def _longest(found: Inspection) -> Iterable[tuple[str, str]]:
    report = found.job.data.report
    for percent, length in report.quantiles.items():
        yield f"{percent} % of rows up to", f"{length:,}"
    yield f"longest: {report.longest_origin}", f"{report.longest:,}"
    if report.longest_seen > report.longest:
        yield f"longest before data.on_long: {report.longest_seen_origin}", f"{report.longest_seen:,}"


def _left_out(found: Inspection) -> Iterable[tuple[str, str]]:
    report, most = found.job.data.report, found.job.recipe.data.max_length
    for count, words in (
        (report.long_dropped, f"dropped, longer than {most} tokens"),
        (report.long_cut, f"cut to {most} tokens"),
        (report.long_split, f"split at {most} tokens"),
        (report.left_out, "left out by a limit"),
        (report.overlap_dropped, "also in validation, dropped"),
        (report.duplicates, "duplicates kept"),
        (report.empty_lines, "empty lines"),
    ):
        if count:
            yield words, f"{count:,}"
    for text in report.long_shown:
        place, _, fate = text.rpartition(": ")
        yield place, fate
    for kind, count, first in found.faults:
        yield f"{kind}; the first at {first}", f"{count:,}"


def _steps(steps: Steps) -> Iterable[tuple[str, str]]:
    yield "steps an epoch", f"{steps.per_epoch:,}"
    yield "passes a step", f"{steps.passes / max(1, steps.per_epoch):.1f}"
    for name, (least, mean, most) in (
        ("rows", steps.rows),
        ("tokens", steps.tokens),
        ("learned tokens", steps.targets),
    ):
        yield f"{name} a step", f"{mean:,.1f} ({least:,} to {most:,})"
    yield f"of a micro-batch of {steps.micro_tokens:,} tokens filled", f"{steps.filled:.1%}"
    yield "padding, if every pass were padded to its longest row (here: none)", f"{steps.padding:.1%}"


def _lengths(histogram: list[tuple[int, int, int]]) -> str:
    most, wide, high = max(count for _, _, count in histogram), 800, 160
    step = wide / len(histogram)
    bars = "".join(
        f'<rect class="bar" x="{i * step + 1:.1f}" y="{high - high * count / most:.1f}" width="{step - 2:.1f}" '
        f'height="{high * count / most:.1f}"><title>{low} to {top} tokens: {count:,} rows</title></rect>'
        for i, (low, top, count) in enumerate(histogram)
    )
    ends = f'<text x="0" y="{high + 16}">{histogram[0][0]:,} tokens</text>'
    ends += f'<text x="{wide}" y="{high + 16}" text-anchor="end">{histogram[-1][1]:,}</text>'
    ends += f'<text x="0" y="-6">most: {most:,} rows</text>'
    return f'<svg viewBox="0 -20 {wide} {high + 44}" role="img" aria-label="lengths of rows">{bars}{ends}</svg>'


def _course(steps: Steps) -> str:
    wide, high, peak = 800, 120, max(rate for _, rate in steps.course) or 1.0
    across = max(1, steps.total - 1)
    points = " ".join(f"{(n - 1) / across * wide:.1f},{high - rate / peak * high:.1f}" for n, rate in steps.course)
    words = f"peak {steps.rate:g}; {steps.warmup:,} steps of warm-up, then {steps.kind}"
    return (
        f'<svg viewBox="0 -20 {wide} {high + 44}" role="img" aria-label="learning rate by step">'
        f'<line class="axis" x1="0" y1="{high}" x2="{wide}" y2="{high}"/><polyline class="course" points="{points}"/>'
        f'<text x="0" y="-6">{escape(words)}</text><text x="0" y="{high + 16}">step 1</text>'
        f'<text x="{wide}" y="{high + 16}" text-anchor="end">{steps.total:,}</text></svg>'
    )
