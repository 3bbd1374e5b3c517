"""The record as tables of Markdown, and into docs/measured/performance.md between its markers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import busy
import growth
import ladder

Record = dict[str, Any]
BEGIN, END = "<!-- bench: {} -->", "<!-- end: {} -->"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "measured" / "performance.md"


def amount(side: Record | None) -> str:
    """Tokens a second, or seconds where there are no tokens, with the spread over the rounds."""
    if not side:
        return ""
    if "missing" in side:
        return "failed"
    low, high = side["spread"]
    wide = f" ± {(high - low) / 2 / side['seconds']:.0%}" if high > low else ""
    if "tokens_per_second" in side and side["tokens"] > 1:
        return f"{side['tokens_per_second']:.1f}{wide}"
    return f"{side['seconds']:.2f} s{wide}"


def gigabytes(side: Record | None) -> str:
    return f"{side['peak_bytes'] / 1e9:.2f}" if side and "peak_bytes" in side else ""


def beside(side: Record | None) -> str:
    """Speed and peak of a side that has no columns of its own."""
    return f"{amount(side)}, {gigabytes(side)} GB" if side and "missing" not in side else amount(side)


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def table(record: Record) -> str:
    """One line a row: speeds, ratios, peaks, what was checked."""
    lines = [
        "| row | Halter | peer | TRL | limit | times the peer | times TRL | of the limit "
        "| peak GB: Halter | peer | TRL | of the peer's | litgpt |",
        "|---|" + "---|" * 12,
    ]
    for row in record["rows"]:
        found = row["ratios"]
        sides = [row.get(side) for side in ("halter", "peer", "second_peer", "limit")]
        speeds = [times(found.get(f"speed_{side}")) for side in ("peer", "second_peer")]
        cells = [row["name"], *map(amount, sides), *speeds,
                 share(found.get("of_limit")), *map(gigabytes, sides[:3]), share(found.get("memory_peer")),
                 beside(row.get("litgpt"))]  # fmt: skip
        if "speed_alone" in found:
            cells[5] = f"{times(found['speed_alone'])} of alone"
        if row["check"]["ok"] is False:
            cells[0] += " (check failed)"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def checks(record: Record) -> str:
    """What was compared before a time counted."""
    lines = ["| row | compared with the peer |", "|---|---|"]
    for row in record["rows"]:
        lines.append(f"| {row['name']} | {row['check']['what'].replace('|', '/')} |")
    return "\n".join(lines)


def about(record: Record) -> str:
    machine, setting = record["machine"], record["setting"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"{record['date']}; {machine['cpu']}, {machine['system']}, {machine['threads']} threads on {machine['cores']} "
        f"cores; {setting['dtype']}; {versions}."
    )


def put(text: str, name: str, made: str) -> str:
    """``text`` with what lies between the markers of ``name`` replaced; markers that are missing go to the end."""
    begin, end = BEGIN.format(name), END.format(name)
    block = f"{begin}\n{made}\n{end}"
    if begin not in text:
        return f"{text.rstrip()}\n\n{block}\n"
    before, _, rest = text.partition(begin)
    return before + block + rest.partition(end)[2]


def write_page(record: Record, path: Path = PAGE) -> None:
    text = path.read_text() if path.is_file() else "# Performance\n"
    made = {"about": about(record), "table": table(record), "checks": checks(record)} if record.get("rows") else {}
    if "busy" in record:
        made["busy"] = f"{about(record['busy'])}\n\n{busy.table(record['busy']['rows'])}"
    if "growth" in record:
        made["growth"] = growth.table(record["growth"])
    if "ladder" in record:
        made["ladder"] = ladder.table(record["ladder"])
    for name, block in made.items():
        text = put(text, name, block)
    path.write_text(text)
