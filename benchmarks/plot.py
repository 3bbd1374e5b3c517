"""The record as a picture: how many times faster and smaller than the peer, and the share of the machine's limit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PANELS = (
    ("times the peer's speed", lambda found: found.get("speed_peer"), 1.0),
    ("times smaller than the peer", lambda found: 1 / found["memory_peer"] if "memory_peer" in found else None, 1.0),
    ("share of the machine's limit", lambda found: found.get("of_limit"), 1.0),
)


Ratios = Mapping[str, Mapping[str, float]]


def draw(kinds: Mapping[str, Ratios], path: Path) -> None:
    """``kinds``: {kind of processor: {row: its ratios}}. One panel a ratio, a bar a row and kind, its value written
    beside it; the line at 1 is parity."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "halter"
    kinds = {
        kind: {n: found for n, found in rows.items() if {"speed_peer", "of_limit"} & set(found)}
        for kind, rows in kinds.items()
    }
    rows = list(dict.fromkeys(name for ratios in kinds.values() for name in ratios))[::-1]  # the first one on top
    high = 0.8 / max(1, len(kinds))
    figure, panels = plt.subplots(1, len(PANELS), figsize=(12, 1.4 + 0.3 * len(rows) * max(1, len(kinds))), sharey=True)
    for axes, (title, ratio, parity) in zip(panels, PANELS, strict=True):
        for number, (kind, ratios) in enumerate(kinds.items()):
            values = [ratio(ratios.get(name, {})) for name in rows]
            places = [at + 0.4 - high * (number + 0.5) for at in range(len(rows))]
            grey = str(max(0.1, 0.6 - 0.25 * number))
            bars = axes.barh(places, [value or 0 for value in values], high, color=grey, label=kind)
            axes.bar_label(bars, ["" if value is None else f" {value:.2f}" for value in values], fontsize="small")
        axes.set_yticks(range(len(rows)), rows)
        axes.axvline(parity, color="black", linewidth=1)
        axes.set_title(title, fontsize="medium")
        axes.margins(x=0.15)
    if kinds:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=len(kinds), fontsize="small")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
