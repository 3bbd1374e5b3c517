"""The report's figures, each drawn from the record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halter.comparison.report.facts import CHOICES, ReportFacts, ReportRow, number
from halter.comparison.report.styles import clock, cost_axis, finished, label, legend, look, loss_axis, short
from halter.comparison.report.summary import size
from halter.comparison.report.svg import DASHES, FAINT, HATCHES, INK, MARKERS, PAPER, SERIES, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE = 11.0


@dataclass(frozen=True)
class Plot:
    """A figure of the page."""

    title: str
    note: str
    svg: str


def plots(found: ReportFacts) -> list[Plot]:
    """Every figure that the record has numbers for. The extra ``report`` (matplotlib) is needed."""
    with drawing():
        return [plot for draw in (_trade_off, _shares, _curves, _rates, _memory, _forgetting) if (plot := draw(found))]


def _point(axes: Axes, found: ReportFacts, row: ReportRow, x: float, y: float) -> Any:
    (handle,) = axes.plot([x], [y], **{**look(found, row), "linestyle": "none"}, label=label(row.name), zorder=3)
    return handle


def _trade_off(found: ReportFacts) -> Plot | None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    costs: list[tuple[str, Callable[[ReportRow], float | None], Callable[[float], str]]] = [
        ("trained parameters", lambda row: row.trainable, short),
        ("peak memory of training", lambda row: row.peak, size),
        ("time of a run", lambda row: row.seconds, clock),
    ]
    costs = [cost for cost in costs if any(cost[1](row) for row in found.trained)]
    if not costs:
        return None
    losses = [row.loss or 0.0 for row in found.trained]
    bases = found.base.loss if found.base is not None else None
    near = bases is not None and bases < max(losses) + (max(losses) - min(losses))
    figure, grid = plt.subplots(1, len(costs), figsize=(WIDE, 4.2), sharey=True, squeeze=False)
    for axes, (words, cost, shown) in zip(grid[0], costs, strict=True):
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
        cost_axis(axes, [x for row in found.trained if (x := cost(row))])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _, shown=shown: shown(x)))
        if near:
            axes.axhline(bases, color=INK, linewidth=1, linestyle=(0, (1, 2)))
    grid[0][0].set_ylabel("loss on the test rows, nats a token")
    loss_axis(grid[0][0], losses)
    legend(figure, grid[0][0])
    note = "Lower and further left is better. Ringed and joined: the Pareto front, which no other method beats on both."
    note += " Bars: the spread over seeds. Hollow: a base in 4 bits."
    if bases is not None:
        note += " Dotted: the base without an adapter." if near else f" The base lies above, at {bases:.4f}."
    return Plot("Quality against cost", note, finished(figure, "trade", "loss against parameters, memory and time"))


def _spread(axes: Axes, found: ReportFacts, row: ReportRow, x: float) -> None:
    spread = row.number("spread", "test_loss")
    if spread and row.loss:
        low = min(spread, 0.9 * row.loss)  # a loss is above zero, and a logarithmic axis has none
        axes.errorbar([x], [row.loss], yerr=[[low], [spread]], color=look(found, row)["color"], capsize=3, zorder=2)


def _shares(found: ReportFacts) -> Plot | None:
    """Right answers of every row, a panel a measure."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    rows = [row for row in found.rows if row.status == "done"]
    if not found.trained or not found.shares:
        return None
    height = 1.3 + 0.36 * len(rows)
    figure, grid = plt.subplots(1, len(found.shares), figsize=(WIDE, height), sharey=True, squeeze=False)
    for axes, score in zip(grid[0], found.shares, strict=True):
        for y, row in enumerate(rows):
            mean, low, high = row.number("mean", score), *(row.number("interval", score, n) for n in (0, 1))
            if mean is None:
                continue
            if low is not None and high is not None:
                axes.errorbar([mean], [y], xerr=[[max(0, mean - low)], [max(0, high - mean)]], color=INK, capsize=3)
            if row.is_base:
                axes.plot([mean], [y], "x", color=INK, markersize=7, zorder=3)
            else:
                _point(axes, found, row, mean, y)
        axes.set_xlabel(label(score))
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        low, high = axes.get_xlim()
        axes.set_xlim(max(0.0, low), max(high, max(0.0, low) + 0.1))  # a share is never below 0
        axes.grid(axis="y", visible=False)
        for key, dashes in (("majority", (0, (1, 2))), ("chance", (0, (4, 3)))):
            at = number(found.record, "choices", key) if score == CHOICES else None
            if at is not None:
                axes.axvline(at, color=INK, linewidth=1, linestyle=dashes)
    grid[0][0].set_yticks(list(range(len(rows))), [label(row.name) for row in rows])
    grid[0][0].set_ylim(len(rows) - 0.5, -0.5)
    note = "Share of right answers on the test rows; further right is better. Bars: the 95 % interval of the bootstrap."
    if CHOICES in found.shares:
        note += " Dotted: always the most frequent choice; dashed: a guess."
    return Plot("Right answers", note, finished(figure, "shares", "shares of right answers"))


def _curves(found: ReportFacts) -> Plot | None:
    import matplotlib.pyplot as plt

    rows = [row for row in found.trained if row.curve("tokens")]
    if not rows:
        return None
    figure, grid = plt.subplots(1, 2, figsize=(WIDE, 4.4), sharey=True)
    long = max((at for row in rows for at, *_ in row.curve("seconds")), default=0.0) >= 120
    for axes, across, scale, words in (
        (grid[0], "tokens", 1.0, "tokens of training"),
        (grid[1], "seconds", 60.0 if long else 1.0, "minutes of training" if long else "seconds of training"),
    ):
        for row in rows:
            points = row.curve(across)
            if points:
                x, mean, low, high = zip(*points, strict=True)
                x = tuple(value / scale for value in x)
                signs = look(found, row)
                axes.fill_between(x, low, high, color=signs["color"], alpha=0.18, linewidth=0)
                axes.plot(x, mean, **{**signs, "markersize": 5}, label=label(row.name))
        axes.set_xlabel(words)
        axes.set_xlim(left=0)
        axes.ticklabel_format(axis="x", style="plain") if across == "seconds" else axes.xaxis.set_major_formatter(
            _thousands()
        )
    grid[0].set_ylabel("loss on the validation rows, nats a token")
    loss_axis(grid[0], [value for row in rows for _, _, low, high in row.curve("tokens") for value in (low, high)])
    legend(figure, grid[0])
    note = "Line: the mean over the seeds. Band: from best to worst seed. Left at equal tokens, right at equal time."
    return Plot("Learning curves", note, finished(figure, "curves", "validation loss against tokens and time"))


def _thousands() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda x, _: short(x) if x else "0")


def _rates(found: ReportFacts) -> Plot | None:
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullLocator

    rows = [row for row in found.trained if row.search]
    if not rows:
        return None
    budgets = sorted({budget for row in rows for budget, _ in _rungs(row)})
    styles = [{"marker": MARKERS[n % len(MARKERS)], "linestyle": DASHES[n % len(DASHES)]} for n in range(len(budgets))]
    down = math.ceil(len(rows) / 4)
    across = math.ceil(len(rows) / down)
    figure, grid = plt.subplots(down, across, figsize=(WIDE, 2.7 * down), squeeze=False)
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(grid.flat, rows, strict=False):
        for budget, trials in _rungs(row):
            colour = look(found, row)["color"]
            axes.plot(*zip(*trials, strict=True), color=colour, markersize=5, **styles[budgets.index(budget)])
        loss_axis(axes, [value for _, trials in _rungs(row) for _, value in trials])
        if (chosen := row.number("learning_rate")) is not None:
            axes.axvline(chosen, color=INK, linewidth=1, linestyle=(0, (1, 2)))
        axes.set_xscale("log")
        tried = sorted({trial["learning_rate"] for trial in row.search})
        tried = tried[:: math.ceil(len(tried) / 5)]
        axes.set_xticks(tried, [f"{rate:.2g}" for rate in tried])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(row.name)
    for n, axes in enumerate(grid.flat):
        axes.set_xlabel("learning rate" if n + across >= len(rows) else "")
    for axes in grid[:, 0]:
        axes.set_ylabel("validation loss")
    handles = [Line2D([], [], color=INK, markersize=5, **style) for style in styles]
    labels = [f"{short(budget)} tokens" for budget in budgets]
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=6, handlelength=3.2)
    note = "One line for each budget of the search: what did badly on few tokens went no further. Dotted: chosen."
    words = "validation loss against learning rate"
    return Plot("Sensitivity to the learning rate", note, finished(figure, "rates", words))


def _rungs(row: ReportRow) -> Iterator[tuple[float, list[tuple[float, float]]]]:
    """(tokens, [(learning rate, loss)]) of each budget that the search went through, from small to large."""
    budgets = sorted({trial.get("tokens") or 0 for trial in row.search})
    for budget in budgets:
        trials = [trial for trial in row.search if (trial.get("tokens") or 0) == budget]
        points = [(t["learning_rate"], t["validation_loss"]) for t in trials if t.get("validation_loss") is not None]
        if points:
            yield budget, sorted(points)


def _memory(found: ReportFacts) -> Plot | None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    rows = [row for row in found.rows if not row.is_base and (row.planned or row.peak)]
    if not rows:
        return None
    both = any(row.planned for row in rows)
    thick, off = (0.34, 0.19) if both else (0.5, 0.0)
    figure, axes = plt.subplots(figsize=(WIDE, 1.2 + (0.62 if both else 0.42) * len(rows)))
    parts = list(dict.fromkeys(part for row in rows for part, held in row.planned.items() if held))
    left = [0.0] * len(rows)
    places = range(len(rows))
    frame: dict[str, Any] = {"edgecolor": INK, "linewidth": 0.8, "height": thick}
    for n, part in enumerate(parts):
        widths = [row.planned.get(part, 0.0) for row in rows]
        style = {"hatch": HATCHES[n % len(HATCHES)], "color": SERIES[n % len(SERIES)], "alpha": 0.75, **frame}
        axes.barh([y - off for y in places], widths, left=left, label=label(part), **style)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    runtime = [row.number("memory", "runtime_bytes") or 0.0 for row in rows]
    rest = [max(0.0, (row.peak or 0.0) - own) for row, own in zip(rows, runtime, strict=True)]
    lower = [y + off for y in places]
    if any(runtime):
        axes.barh(lower, runtime, color=FAINT, hatch="....", label="measured: Python, libraries, rows", **frame)
    axes.barh(lower, rest, left=runtime, color=PAPER, label="measured: all the rest", **frame)
    for y, row in zip(lower, rows, strict=True):
        if row.peak is not None:
            axes.annotate(size(row.peak), (row.peak, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(list(places), [row.name for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: size(x)))
    axes.set_xlabel("memory of training")
    legend(figure, axes)
    note = "Upper bar: what was planned, part by part. Lower bar, and the figure: the most that was measured."
    note = note if both else "The most that was measured. There was no plan to put beside it."
    return Plot("Memory, planned and measured", note, finished(figure, "memory", "memory planned and measured"))


def _forgetting(found: ReportFacts) -> Plot | None:
    import matplotlib.pyplot as plt

    base = found.base.loss if found.base is not None else None
    rows = [row for row in found.trained if row.forgetting and row.loss is not None]
    if base is None or not rows:
        return None
    figure, axes = plt.subplots(figsize=(WIDE * 0.7, 4.2))
    axes.axhline(0, color=FAINT, linewidth=1.5)
    for row in rows:
        mean = sum(row.forgetting) / len(row.forgetting)
        gain = base - (row.loss or 0.0)
        bars = [[mean - min(row.forgetting)], [max(row.forgetting) - mean]]
        axes.errorbar([gain], [mean], yerr=bars, color=look(found, row)["color"], capsize=3, zorder=2)
        _point(axes, found, row, gain, mean)
    axes.set_xlabel("gain on the task: fall of the loss on the test rows, nats a token")
    axes.set_ylabel("forgetting: rise of the loss\non general text, nats a token")
    legend(figure, axes)
    note = "Lower and further right is better. Bars: from the best seed to the worst."
    return Plot("Forgetting against gain", note, finished(figure, "forgetting", "forgetting against gain"))
