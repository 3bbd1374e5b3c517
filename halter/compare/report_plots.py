"""The report's figures, each drawn from the record: {name: (title, what it says, SVG)}."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halter.compare.report_facts import Comparison, Row
from halter.compare.report_svg import DASHES, FAINT, HATCHES, INK, MARKERS, PAPER, SERIES, drawing, svg
from halter.compare.report_words import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE = 11.0


@dataclass(frozen=True)
class Plot:
    """A figure of the page."""

    title: str
    note: str
    svg: str


def plots(found: Comparison) -> list[Plot]:
    """Every figure that the record has numbers for. The extra ``report`` (matplotlib) is needed."""
    with drawing():
        return [plot for draw in (_trade_off, _curves, _rates, _memory, _forgetting) if (plot := draw(found))]


def _look(found: Comparison, row: Row) -> dict[str, Any]:
    """A row's own colour, marker and dash, the same in every figure; a hollow marker is a 4-bit base."""
    n = [other.name for other in found.rows if not other.is_base].index(row.name)
    colour = SERIES[n % len(SERIES)]
    hollow = row.facts.get("precision") == "nf4"
    return {
        "color": colour, "marker": MARKERS[n % len(MARKERS)], "linestyle": DASHES[n % len(DASHES)], "markersize": 7,
        "markerfacecolor": PAPER if hollow else colour, "markeredgecolor": colour, "markeredgewidth": 1.4,
    }  # fmt: skip


def _point(axes: Axes, found: Comparison, row: Row, x: float, y: float) -> Any:
    (handle,) = axes.plot([x], [y], **{**_look(found, row), "linestyle": "none"}, label=row.name, zorder=3)
    return handle


def _trade_off(found: Comparison) -> Plot | None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    costs: list[tuple[str, Callable[[Row], float | None], Callable[[float], str]]] = [
        ("trained parameters", lambda row: row.trainable, _short),
        ("peak memory of training", lambda row: row.peak, size),
        ("time of a run", lambda row: row.seconds, _time),
    ]
    costs = [cost for cost in costs if any(cost[1](row) is not None for row in found.trained)]
    if not costs:
        return None
    figure, grid = plt.subplots(1, len(costs), figsize=(WIDE, 4.2), sharey=True, squeeze=False)
    for axes, (words, cost, shown) in zip(grid[0], costs, strict=True):
        axes.set_xscale("log")
        for row in found.trained:
            if (x := cost(row)) is not None and x > 0 and row.loss is not None:
                _spread(axes, found, row, x)
                _point(axes, found, row, x, row.loss)
        front = [(cost(row) or math.nan, row.loss or math.nan) for row in found.front(cost)]
        axes.plot(
            *zip(*front, strict=True), color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1, drawstyle="steps-post"
        )
        axes.plot(*zip(*front, strict=True), "o", markersize=15, markerfacecolor="none", markeredgecolor=INK, zorder=2)
        axes.set_xlabel(words)
        _few_ticks(axes, [x for row in found.trained if (x := cost(row))])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _, shown=shown: shown(x)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        if found.base is not None and found.base.loss is not None:
            axes.axhline(found.base.loss, color=INK, linewidth=1, linestyle=(0, (1, 2)))
    grid[0][0].set_ylabel("loss on the test rows, nats a token")
    _legend(figure, grid[0][0])
    note = "Lower and further left is better. Ringed and joined: the Pareto front, which no other method beats on both."
    note += " Bars: the spread over seeds. Hollow: a 4-bit base."
    if found.base is not None and found.base.loss is not None:
        note += " Dotted: the base without an adapter."
    return Plot("Quality against cost", note, _done(figure, "trade", "loss against parameters, memory and time"))


def _spread(axes: Axes, found: Comparison, row: Row, x: float) -> None:
    spread = row.number("spread", "test_loss")
    if spread:
        axes.errorbar([x], [row.loss or 0.0], yerr=[spread], color=_look(found, row)["color"], capsize=3, zorder=2)


def _few_ticks(axes: Axes, values: list[float]) -> None:
    """A logarithmic axis with three to five ticks at 1, 2 or 5 times a power of ten, whatever it spans."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = min(values), max(values)
    low, high = low / (high / low) ** 0.12 / 1.05, high * (high / low) ** 0.12 * 1.05
    axes.set_xlim(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(n / 10 for n in range(10, 100))):
        ticks = [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
        if len(ticks) >= 3:
            break
    axes.xaxis.set_major_locator(FixedLocator(ticks[:: max(1, math.ceil(len(ticks) / 5))]))
    axes.xaxis.set_minor_locator(NullLocator())


def _short(value: float) -> str:
    for unit, power in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= power:
            return f"{value / power:.3g}{unit}"
    return f"{value:.3g}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def _legend(figure: Any, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = min(len(labels), max(1, 110 // (max(map(len, labels), default=1) + 6)))
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=columns, handlelength=3.2)


def _done(figure: Any, name: str, words: str) -> str:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    text = svg(figure, name, words)
    plt.close(figure)
    return text


def _curves(found: Comparison) -> Plot | None:
    import matplotlib.pyplot as plt

    rows = [row for row in found.trained if row.curve("tokens")]
    if not rows:
        return None
    figure, grid = plt.subplots(1, 2, figsize=(WIDE, 4.4), sharey=True)
    for axes, across, scale, words in (
        (grid[0], "tokens", 1.0, "tokens of training"),
        (grid[1], "seconds", 60.0, "minutes of training"),
    ):
        for row in rows:
            points = row.curve(across)
            if points:
                x, mean, low, high = zip(*points, strict=True)
                x = tuple(value / scale for value in x)
                look = _look(found, row)
                axes.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
                axes.plot(x, mean, **{**look, "markersize": 5}, label=row.name)
        axes.set_xlabel(words)
        axes.set_xlim(left=0)
        axes.ticklabel_format(axis="x", style="plain") if across == "seconds" else axes.xaxis.set_major_formatter(
            _thousands()
        )
    grid[0].set_ylabel("loss on the validation rows, nats a token")
    _legend(figure, grid[0])
    note = "Line: the mean over the seeds. Band: from best to worst seed. Left at equal tokens, right at equal time."
    return Plot("Learning curves", note, _done(figure, "curves", "validation loss against tokens and minutes"))


def _thousands() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda x, _: _short(x) if x else "0")


def _rates(found: Comparison) -> Plot | None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullLocator

    rows = [row for row in found.trained if row.search]
    if not rows:
        return None
    across = min(4, len(rows))
    down = math.ceil(len(rows) / across)
    figure, grid = plt.subplots(down, across, figsize=(WIDE, 2.6 * down), squeeze=False)
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(grid.flat, rows, strict=False):
        look = _look(found, row)
        for n, (tokens, trials) in enumerate(_rungs(row)):
            style = {
                "color": look["color"],
                "marker": MARKERS[n],
                "linestyle": DASHES[n % len(DASHES)],
                "markersize": 5,
            }
            axes.plot(*zip(*trials, strict=True), **style, label=f"{_short(tokens)} tokens" if tokens else None)
        if (chosen := row.number("learning_rate")) is not None:
            axes.axvline(chosen, color=INK, linewidth=1, linestyle=(0, (1, 2)))
        axes.set_xscale("log")
        _few_ticks(axes, [trial["learning_rate"] for trial in row.search])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0e}".replace("e-0", "e-")))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(row.name)
        axes.legend(fontsize=8, handlelength=2.5)
    figure.supxlabel("learning rate")
    figure.supylabel("validation loss")
    note = "One line for each budget of the search: what did badly on few tokens went no further. Dotted: chosen."
    return Plot(
        "Sensitivity to the learning rate", note, _done(figure, "rates", "validation loss against learning rate")
    )


def _rungs(row: Row) -> Iterator[tuple[float, list[tuple[float, float]]]]:
    """(tokens, [(learning rate, loss)]) of each budget that the search went through, from small to large."""
    budgets = sorted({trial.get("tokens") or 0 for trial in row.search})
    for budget in budgets:
        trials = [trial for trial in row.search if (trial.get("tokens") or 0) == budget]
        points = [(t["learning_rate"], t["validation_loss"]) for t in trials if t.get("validation_loss") is not None]
        if points:
            yield budget, sorted(points)


def _memory(found: Comparison) -> Plot | None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    rows = [row for row in found.rows if not row.is_base and (row.planned or row.peak)]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(WIDE, 1.2 + 0.45 * len(rows)))
    parts = list(dict.fromkeys(part for row in rows for part in row.planned))
    left = [0.0] * len(rows)
    places = range(len(rows))
    for n, part in enumerate(parts):
        widths = [row.planned.get(part, 0.0) for row in rows]
        style: dict[str, Any] = {"hatch": HATCHES[n % len(HATCHES)], "edgecolor": INK, "linewidth": 0.8}
        axes.barh(places, widths, left=left, height=0.6, color=SERIES[n % len(SERIES)], alpha=0.75, label=part, **style)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    peaks = [(row.peak, n) for n, row in enumerate(rows) if row.peak is not None]
    if peaks:
        x, y = zip(*peaks, strict=True)
        axes.plot(x, y, "D", color=PAPER, markeredgecolor=INK, markeredgewidth=1.6, markersize=8, label="measured peak")
    axes.set_yticks(list(places), [row.name for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: size(x)))
    axes.set_xlabel("memory of training")
    _legend(figure, axes)
    note = "Bars: what was planned, part by part. Diamond: the highest that was measured."
    return Plot("Memory, planned and measured", note, _done(figure, "memory", "memory planned and measured"))


def _forgetting(found: Comparison) -> Plot | None:
    import matplotlib.pyplot as plt

    base = found.base.loss if found.base is not None else None
    rows = [row for row in found.trained if row.forgetting and row.loss is not None]
    if base is None or not rows:
        return None
    figure, axes = plt.subplots(figsize=(WIDE * 0.6, 4.2))
    axes.axhline(0, color=FAINT, linewidth=1.5)
    for row in rows:
        mean = sum(row.forgetting) / len(row.forgetting)
        gain = base - (row.loss or 0.0)
        bars = [[mean - min(row.forgetting)], [max(row.forgetting) - mean]]
        axes.errorbar([gain], [mean], yerr=bars, color=_look(found, row)["color"], capsize=3, zorder=2)
        _point(axes, found, row, gain, mean)
    axes.set_xlabel("gain on the task: fall of the loss on the test rows, nats a token")
    axes.set_ylabel("forgetting: rise of the loss\non general text, nats a token")
    _legend(figure, axes)
    note = "Lower and further right is better. Bars: from the best seed to the worst."
    return Plot("Forgetting against gain", note, _done(figure, "forgetting", "forgetting against gain"))
