"""The page of measurements: what every kind of processor gave, side by side, in docs/measured/performance.md and .svg.

A record is of one machine. What the page needs of it is put under its kind of processor into performance.json beside
the page, and the page is written from that file: measuring on one kind leaves the rows of the others where they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import busy
import growth
import ladder
import plot
import table

Record = dict[str, Any]
Kinds = dict[str, Record]
"""{kind: {"about": text, "rows": {name: {"cells", "check", "ratios"}}, and blocks of text by name}}."""
BEGIN, END = "<!-- bench: {} -->", "<!-- end: {} -->"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "measured" / "performance.md"
BLOCKS = ("busy", "ladder", "growth")


def kind(machine: Mapping[str, Any]) -> str:
    """The processor's name and the quickest products that it has: names alone are often a maker's."""
    return f"{machine['cpu'] or 'unknown processor'} ({machine['can']})" if machine.get("can") else machine["cpu"]


def keep(record: Record, store: Path) -> Kinds:
    """Every kind that is known, this record's rows and blocks in the place of those of its own kind."""
    kinds: Kinds = json.loads(store.read_text()) if store.is_file() else {}
    heads = [record] if record.get("rows") or "growth" in record or "ladder" in record else []
    for head in [*heads, *([record["busy"]] if "busy" in record else [])]:
        kinds.setdefault(kind(head["machine"]), {"about": table.about(head), "rows": {}})
    if heads:
        mine = kinds[kind(record["machine"])]
        mine["about"] = table.about(record)
        for row in record["rows"]:
            mine["rows"][row["name"]] = {"cells": table.cells(row), "check": table.check(row), "ratios": row["ratios"]}
        mine |= {
            name: made.table(record[name]) for name, made in (("growth", growth), ("ladder", ladder)) if name in record
        }
    if "busy" in record:
        kinds[kind(record["busy"]["machine"])]["busy"] = (
            f"{table.about(record['busy'])}\n\n{busy.table(record['busy']['rows'])}"
        )
    return kinds


def names(kinds: Kinds) -> list[str]:
    """Every row that any kind has, in the order of the first that has it."""
    return list(dict.fromkeys(name for one in kinds.values() for name in one["rows"]))


def side_by_side(kinds: Kinds) -> str:
    """One line a row: speed, times the peer, share of the limit and of the peer's memory, of every kind."""
    titles = ("Halter", "times the peer", "of the limit", "memory, of the peer's")
    lines = ["| row | " + " | ".join(f"{title}: {one}" for one in kinds for title in titles) + " |"]
    lines.append("|---|" + "---|" * (len(titles) * len(kinds)))
    for name in names(kinds):
        cells = [_four(one["rows"].get(name)) for one in kinds.values()]
        lines.append("| " + " | ".join([name, *(cell for four in cells for cell in four)]) + " |")
    return "\n".join(lines)


def _four(row: Record | None) -> list[str]:
    if row is None:
        return [""] * 4
    found = row["ratios"]
    speed = table.times(found.get("speed_peer"))
    return [row["cells"][0], speed, table.share(found.get("of_limit")), table.share(found.get("memory_peer"))]


def blocks(kinds: Kinds) -> dict[str, str]:
    """{marker: text}."""
    shown = {name: one for name, one in kinds.items() if one["rows"]}
    made = {
        "about": "\n".join(f"- {one['about']}" for one in kinds.values()),
        "beside": side_by_side(shown),
        "table": _each(shown, lambda one: table.table({n: row["cells"] for n, row in one["rows"].items()})),
        "checks": _each(shown, lambda one: table.checks({n: row["check"] for n, row in one["rows"].items()})),
    }
    for name in BLOCKS:
        having = {title: one for title, one in kinds.items() if name in one}
        if having:
            made[name] = _each(having, lambda one, name=name: one[name])  # type: ignore[misc]
    return made


def _each(kinds: Kinds, text: Any) -> str:
    return "\n\n".join(f"**{name}**\n\n{text(one)}" for name, one in kinds.items())


def put(text: str, name: str, made: str) -> str:
    """``text`` with what lies between the markers of ``name`` replaced; markers that are missing go to the end."""
    begin, end = BEGIN.format(name), END.format(name)
    block = f"{begin}\n{made}\n{end}"
    if begin not in text:
        return f"{text.rstrip()}\n\n{block}\n"
    before, _, rest = text.partition(begin)
    return before + block + rest.partition(end)[2]


def write(record: Record, page: Path = PAGE) -> None:
    """Page, picture and the file that they are made from."""
    kinds = keep(record, page.with_suffix(".json"))
    text = page.read_text() if page.is_file() else "# Performance\n"
    for name, block in blocks(kinds).items():
        text = put(text, name, block)
    page.with_suffix(".json").write_text(json.dumps(kinds, indent=1) + "\n")
    page.write_text(text)
    plot.draw(
        {name: {n: row["ratios"] for n, row in one["rows"].items()} for name, one in kinds.items()},
        page.with_suffix(".svg"),
    )
