"""The report as one page: no scripts, nothing fetched, everything that came from the record escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape

from halter.comparison.report.facts import ReportFacts, number
from halter.comparison.report.plots import Plot, plots
from halter.comparison.report.summary import count, duration, headline, loss, reasons, size
from halter.comparison.report.tables import ReportTable, plain, tables
from halter.files.reading import visible

LIGHT = (
    "#0072b2",
    "#b34d00",
    "#00805c",
    "#b0529a",
    "#6b5d00",
    "#2f8fc4",
    "#8b2e2e",
    "#5a4fb0",
    "#3f7d20",
    "#7a4a24",
    "#00707a",
    "#555b61",
)
DARK = (
    "#5ab4e6",
    "#f0944d",
    "#35c79b",
    "#e39acb",
    "#d9c54a",
    "#8fd0f5",
    "#ef8a8a",
    "#aaa2f2",
    "#93cf6d",
    "#d0a27c",
    "#5cc7d0",
    "#b4babf",
)
STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --dim: #5c636b; --paper: #fcfcfb; --card: #fff; --line: #dcdcd8;
  --best: #e7f3ec; LIGHT }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --dim: #a0a6ae; --paper: #16181a; --card: #1d2023;
  --line: #383d42; --best: #1b3226; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1rem; font-weight: 500; color: var(--dim); margin: 0; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .25rem; }
p { margin: .25rem 0 .75rem; } .dim { color: var(--dim); font-size: .9rem; }
.answer { font-size: 1.7rem; line-height: 1.25; font-weight: 600; margin: .5rem 0 1rem; max-width: 48rem;
  overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; margin: 1rem 0; max-width: 64rem; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.tile, figure, details { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
.tile { padding: .75rem 1rem; } .tile b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--dim); font-size: .85rem; }
figure { margin: .5rem 0; padding: 1rem; overflow-x: auto; }
svg { width: 100%; min-width: 32rem; height: auto; display: block; margin: 0 auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; } svg text { fill: currentColor; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .92rem; }
td, th { text-align: left; padding: .4rem 1rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 500; } td { min-width: 4.5rem; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; min-width: 0; }
tr.best td { background: var(--best); } details { margin: .5rem 0; padding: .5rem 1rem; } summary { cursor: pointer; }
pre { font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0; }
"""
_FIRST = "Results"


def page(found: ReportFacts, recipes: Mapping[str, str]) -> str:
    """The whole report as HTML; ``recipes`` holds {path: text} of the recipe files that could be read."""
    made = tables(found)
    body = [*_first_screen(found)]
    body += [text for table in made if table.title == _FIRST for text in _table(table, found)]
    body += [text for plot in plots(found) for text in _figure(plot)]
    body += [text for table in made if table.title != _FIRST for text in _table(table, found)]
    body += _details(found, recipes)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    joined = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>halter compare</title><style>{_style()}</style></head>\n'
        f"<body>\n{joined}\n</body></html>\n"
    )


def alone(plot: Plot) -> str:
    """A figure as an SVG file of its own, light or dark as its reader is."""
    shades = [" ".join(f"--s{n}: {colour};" for n, colour in enumerate(colours)) for colours in (LIGHT, DARK)]
    style = f"svg {{ color: #1c2024; --card: #fcfcfb; --line: #dcdcd8; background: #fcfcfb; {shades[0]} }}\n"
    style += "@media (prefers-color-scheme: dark) { svg { color: #e6e7e9; --card: #16181a; --line: #383d42; "
    style += f"background: #16181a; {shades[1]} }} }}\nsvg text {{ fill: currentColor; }}"
    opening = plot.svg.index(">") + 1
    head = plot.svg[:opening].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f"{head}<style>{style}</style>{plot.svg[opening:]}\n"


def _style() -> str:
    shades = [" ".join(f"--s{n}: {colour};" for n, colour in enumerate(colours)) for colours in (LIGHT, DARK)]
    return STYLE.replace("LIGHT", shades[0]).replace("DARK", shades[1])


def _shown(text: str) -> str:
    """Text of strangers, as text."""
    return escape(visible(text))


def _first_screen(found: ReportFacts) -> list[str]:
    record = found.record
    base, data, budget = (record.get(part) or {} for part in ("base", "data", "budget"))
    about = f"halter compare: {base.get('name', 'a base')}, {plain(data.get('train'))}, {plain(record.get('date'))}"
    tiles = [(text, words) for text, words in _tiles(found) if text]
    seeds = plain(budget.get("seeds"))
    words = f"tokens of training each, {seeds} {'seed' if seeds == '1' else 'seeds'}"
    tiles.append((count(number(budget, "tokens")), words))
    return [
        f'<h1>{_shown(about)}</h1><p class="answer">{_shown(headline(found))}</p>',
        '<div class="tiles">',
        *(
            f'<div class="tile"><b>{_shown(text)}</b><span>{_shown(words)}</span></div>'
            for text, words in tiles
            if text
        ),
        "</div>",
        "<dl>",
        *(f"<dt>{_shown(lead)}</dt><dd>{_shown(text)}</dd>" for lead, text in reasons(found)),
        "</dl>",
    ]


def _tiles(found: ReportFacts) -> list[tuple[str, str]]:
    row = found.choice
    if row is None:
        return []
    bases = loss(found.base.loss) if found.base is not None else ""
    return [
        (loss(row.loss), f"its loss; the base has {bases}" if bases else "its loss"),
        (size(row.peak), "memory to train it"),
        (duration(row.seconds), "to train it"),
        (count(row.trainable), "trained parameters"),
        (size(row.cost("adapter_bytes")), "on disk"),
    ]


def _figure(plot: Plot) -> list[str]:
    return [f'<h2>{plot.title}</h2><p class="dim">{plot.note}</p>', f"<figure>{plot.svg}</figure>"]


def _table(table: ReportTable, found: ReportFacts) -> list[str]:
    right = [_numbers([row[n] for row in table.rows]) for n in range(len(table.head))]
    best = found.choice.name if found.choice is not None else None
    cells = "".join(_cell("th", text, is_right) for text, is_right in zip(table.head, right, strict=True))
    lines = [f"<tr>{cells}</tr>"]
    for row in table.rows:
        marked = ' class="best"' if table.title == _FIRST and row[0] == best else ""
        inner = "".join(_cell("td", text, is_right) for text, is_right in zip(row, right, strict=True))
        lines.append(f"<tr{marked}>{inner}</tr>")
    note = f'<p class="dim">{_shown(table.note)}</p>' if table.note else ""
    return [f"<h2>{_shown(table.title)}</h2>{note}", f'<div class="scroll"><table>{"".join(lines)}</table></div>']


def _numbers(cells: list[str]) -> bool:
    """Whether a column is one of numbers, which are set to the right."""
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(cell.lstrip("+-")[:1].isdigit() and len(cell) < 32 for cell in filled)


def _cell(tag: str, text: str, is_right: bool) -> str:
    kind = ' class="n"' if is_right else ""
    return f"<{tag}{kind}>{_shown(text)}</{tag}>"


def _details(found: ReportFacts, recipes: Mapping[str, str]) -> list[str]:
    lines = ["<h2>The recipes themselves</h2>"]
    for row in found.rows:
        if row.is_base:
            continue
        text = recipes.get(str(row.facts.get("recipe")))
        if text is None:
            text = json.dumps({"method": row.facts.get("method")}, indent=2, ensure_ascii=False)
        kept = escape("\n".join(visible(line) for line in text.split("\n")))
        lines.append(f"<details><summary>{_shown(row.name)}</summary><pre>{kept}</pre></details>")
    return lines
