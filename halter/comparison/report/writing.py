"""The report of a comparison, made from its record alone: report.html, report.md and report.csv."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halter.comparison.report.facts import ReportFacts
from halter.comparison.report.page import alone, page
from halter.comparison.report.plots import plots
from halter.comparison.report.summary import headline, reasons
from halter.comparison.report.tables import comma_separated, tables
from halter.errors import HalterError, Refusal
from halter.files import folders, writing
from halter.files.extras import missing_extra
from halter.files.reading import read_text, visible

FILES = ("report.html", "report.md", "report.csv")
ELSEWHERE = "The figures are in report.html."
MOST_FIGURE = 100_000
"""Characters of a figure that is written beside report.md; hatched ones have more, and their numbers are in tables."""
_MARKUP = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|#~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


def write(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the three files into ``folder``, over those of before; returns their paths.

    The recipes that the record names are shown in full where they lie in ``folder``. Refusal ``extra-missing`` without
    matplotlib, which the extra ``report`` brings; ``not-a-record``.
    """
    rows = record.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) and row.get("name") for row in rows):
        raise Refusal(
            "not-a-record",
            "is not the record of a comparison",
            expected="rows, each with a name",
            fix="give the record.json that halter compare wrote",
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_extra("report", "the figures of a report", folder, error) from error
    found = ReportFacts(record)
    texts = (page(found, _recipes(found, folder)), markdown(found), comma_separated(found))
    folders.make(folder)
    for name, text in zip(FILES, texts, strict=True):
        writing.write_text(folder / name, text, replace=True)
    return [folder / name for name in FILES]


def _recipes(found: ReportFacts, folder: Path) -> dict[str, str]:
    """{path: text} of the recipes beside the report; others are not read, since the record may be a stranger's."""
    texts: dict[str, str] = {}
    for name in {str(row.facts["recipe"]) for row in found.rows if row.facts.get("recipe")}:
        try:
            if (folder / name).resolve().is_relative_to(folder.resolve()):
                texts[name] = read_text(folder / name)
        except (HalterError, OSError, ValueError):  # ValueError: a NUL in the path
            continue  # the method's section stands in its place
    return texts


def write_markdown(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write report.md into ``folder``, and every figure small enough for it as an SVG file; returns the paths."""
    found = ReportFacts(record)
    drawn = {f"{plot.title.lower().replace(' ', '-').replace(',', '')}.svg": plot for plot in plots(found)}
    small = {name: plot for name, plot in drawn.items() if len(plot.svg) <= MOST_FIGURE}
    folders.make(folder)
    for name, plot in small.items():
        writing.write_text(folder / name, alone(plot), replace=True)
    text = markdown(found).removesuffix(f"{ELSEWHERE}\n")
    for name, plot in small.items():
        text += f"## {plot.title}\n\n{plot.note}\n\n![{plot.title}]({name})\n\n"
    writing.write_text(folder / FILES[1], text.rstrip("\n") + "\n", replace=True)
    return [folder / name for name in (FILES[1], *small)]


def markdown(found: ReportFacts) -> str:
    """The words and the tables as Markdown; the figures are in the page."""
    lines = [
        "# halter compare",
        "",
        f"**{_text(headline(found))}**",
        "",
        *(f"- **{lead}.** {_text(text)}" for lead, text in reasons(found)),
        "",
    ]
    for table in tables(found):
        lines += [f"## {_text(table.title)}", "", *([_text(table.note), ""] if table.note else [])]
        lines += [*table_lines(table.head, table.rows), ""]
    return "\n".join([*lines, ELSEWHERE, ""])


def table_lines(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table of Markdown; every cell is text, whatever stands in it."""
    return [_line(head), "|" + "---|" * len(head), *map(_line, rows)]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(map(_text, cells)) + " |"


def _text(text: str) -> str:
    """Text of strangers, as text of Markdown."""
    return visible(text).translate(_MARKUP)
