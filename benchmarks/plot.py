"""The record as a picture: how many times faster and smaller than the peer, and the share of the machine's limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "measured" / "performance.svg"
PANELS = (
    ("times the peer's speed", lambda found: found.get("speed_peer"), 1.0),
    ("times smaller than the peer", lambda found: 1 / found["memory_peer"] if "memory_peer" in found else None, 1.0),
    ("share of the machine's limit", lambda found: found.get("of_limit"), 1.0),
)


def draw(record: dict[str, Any], path: Path = PAGE) -> None:
    """One panel a ratio, one bar a row, its value written beside it; the line at 1 is parity."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "halter"
    rows = [row for row in record["rows"] if "speed_peer" in row["ratios"] or "of_limit" in row["ratios"]]
    rows = rows[::-1]  # the first one on top
    figure, panels = plt.subplots(1, len(PANELS), figsize=(12, 1.2 + 0.3 * len(rows)), sharey=True)
    for axes, (title, ratio, parity) in zip(panels, PANELS, strict=True):
        values = [ratio(row["ratios"]) for row in rows]
        bars = axes.barh([row["name"] for row in rows], [value or 0 for value in values], color="0.6")
        axes.bar_label(bars, ["" if value is None else f" {value:.2f}" for value in values], fontsize="small")
        axes.axvline(parity, color="black", linewidth=1)
        axes.set_title(title, fontsize="medium")
        axes.margins(x=0.15)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
