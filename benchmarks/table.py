"""The record as tables of Markdown."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]


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


def cells(row: Record) -> list[str]:
    """A row of the table after its name: speeds, ratios, peaks."""
    found = row["ratios"]
    sides = [row.get(side) for side in ("halter", "peer", "second_peer", "limit")]
    speeds = [times(found.get(f"speed_{side}")) for side in ("peer", "second_peer")]
    if "speed_alone" in found:
        speeds[0] = f"{times(found['speed_alone'])} of alone"
    made = [
        *map(amount, sides),
        *speeds,
        share(found.get("of_limit")),
        *map(gigabytes, sides[:3]),
        share(found.get("memory_peer")),
        beside(row.get("litgpt")),
    ]
    if row["check"]["ok"] is False:
        made[0] += " (check failed)"
    return made


def check(row: Record) -> str:
    """What was compared before a time counted."""
    return row["check"]["what"].replace("|", "/")


def table(rows: dict[str, list[str]]) -> str:
    """One line a row: {name: its cells}."""
    lines = [
        "| row | Halter | peer | TRL | limit | times the peer | times TRL | of the limit "
        "| peak GB: Halter | peer | TRL | of the peer's | litgpt |",
        "|---|" + "---|" * 12,
    ]
    return "\n".join([*lines, *("| " + " | ".join([name, *row]) + " |" for name, row in rows.items())])


def checks(rows: dict[str, str]) -> str:
    """{name: what was compared}."""
    lines = ["| row | compared with the peer |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {what} |" for name, what in rows.items())])


def about(record: Record) -> str:
    machine, setting = record["machine"], record["setting"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    can = f" ({machine['can']})" if machine.get("can") else ""
    return (
        f"{record['date']}; {machine['cpu']}{can}, {machine['system']}, {machine['threads']} threads on "
        f"{machine['cores']} cores; {setting['dtype']}; {versions}."
    )
