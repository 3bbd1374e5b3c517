"""How the report's figures look: the same sign for a row in every one of them, axes with few and round ticks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from halter.comparison.report.facts import ReportFacts, ReportRow
from halter.comparison.report.svg import DASHES, MARKERS, PAPER, SERIES, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILLS: tuple[Any, ...] = ("full", "left", "bottom")
"""How markers are filled over a base in the first, second and third precision; over 4 bits they are hollow."""


def look(found: ReportFacts, row: ReportRow) -> dict[str, Any]:
    """The same in every figure: colour and marker of the method, filling of the base, and a dash of the row's own."""
    rows = [other for other in found.rows if not other.is_base]
    kinds = list(dict.fromkeys(str(other.facts.get("method", other.name)) for other in rows))
    wide = list(dict.fromkeys(p for other in rows if (p := other.facts.get("precision")) != "nf4"))
    kind, precision = kinds.index(str(row.facts.get("method", row.name))), row.facts.get("precision")
    colour = SERIES[kind % len(SERIES)]
    return {
        "color": colour,
        "marker": MARKERS[kind % len(MARKERS)],
        "markersize": 7,
        "linestyle": DASHES[[other.name for other in rows].index(row.name) % len(DASHES)],
        "fillstyle": "full" if precision == "nf4" else FILLS[wide.index(precision) % len(FILLS)],
        "markerfacecolor": PAPER if precision == "nf4" else colour,
        "markerfacecoloralt": PAPER,
        "markeredgecolor": colour,
        "markeredgewidth": 1.4,
    }


def loss_axis(axes: Axes, values: list[float]) -> None:
    """A vertical axis of losses: logarithmic where they are more than twenty times apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
        many = max(values) > 1000 * min(values)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if many else (1.0, 3.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def cost_axis(axes: Axes, values: list[float]) -> None:
    """A horizontal axis with a few round ticks: logarithmic where the values span much, else even."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    low, high = min(values), max(values)
    if high < 4 * low:
        room = 0.15 * (high - low) or 0.15 * high
        axes.set_xlim(low - room, high + room)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        return
    axes.set_xscale("log")
    room = (high / low) ** 0.12
    axes.set_xlim(low / room, high * room)
    powers = range(math.floor(math.log10(low / room)), math.ceil(math.log10(high * room)) + 1)
    within = [s * 10.0**p for p in powers for s in (1, 2, 5) if low / room <= s * 10.0**p <= high * room]
    tens = [tick for tick in within if math.log10(tick) % 1 < 1e-9 or math.log10(tick) % 1 > 1 - 1e-9]
    ticks = tens if len(tens) >= 3 else within
    axes.xaxis.set_major_locator(FixedLocator(ticks[:: math.ceil(len(ticks) / 5)]))
    axes.xaxis.set_minor_locator(NullLocator())


def label(name: str) -> str:
    """A name as matplotlib puts it into a legend: those that begin with _ it leaves out."""
    return f" {name}" if name.startswith("_") else name


def short(value: float) -> str:
    """A count for an axis: 20k, 3.28M."""
    for unit, power in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= power:
            return f"{value / power:.3g}{unit}"
    return f"{value:.3g}"


def clock(seconds: float) -> str:
    """A time for an axis."""
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def legend(figure: Any, axes: Axes) -> None:
    """One legend for all of a figure, beneath it."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(len(labels), max(1, 110 // (max(map(len, labels), default=1) + 6)))
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=columns, handlelength=3.2)


def finished(figure: Any, name: str, words: str) -> str:
    """The figure as SVG; it is not kept."""
    import matplotlib.pyplot as plt

    figure.tight_layout()
    text = svg(figure, name, words)
    plt.close(figure)
    return text
