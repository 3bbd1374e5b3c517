"""An inspection as lines for a terminal: in colour where it has some, with plain marks elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from halter.contract.experts import in_short
from halter.data import told
from halter.files.reading import lines_of, visible
from halter.inspection.census import Inspection, ShownRow, Steps
from halter.training.expert_use import ExpertUse

CONTEXT, LEARNT, CONTROL, LEARNT_CONTROL, HEADING, WARNING, PLAIN, DRAWN = range(8)
"""What a piece of a line is."""
ANSI = {
    CONTEXT: "\x1b[2m",
    LEARNT: "\x1b[30;42m",
    CONTROL: "\x1b[36m",
    LEARNT_CONTROL: "\x1b[1;30;42m",
    HEADING: "\x1b[1m",
    WARNING: "\x1b[33m",
    PLAIN: "",
    DRAWN: "",
}
RESET = "\x1b[0m"
EIGHTHS, SMALL = " ▁▂▃▄▅▆▇█", " .:-=+*%#"
HEIGHT = 5
MOST_EXPERTS = 16
"""Of a layer's experts so many are drawn."""

Line = list[tuple[str, int]]
"""Pieces of text, each with what it is."""


@dataclass(frozen=True)
class Look:
    """How lines are drawn: in colour, with block characters, so many columns wide."""

    colour: bool = False
    blocks: bool = True
    width: int = 100


def render(found: Inspection, look: Look) -> str:
    """The whole inspection."""
    lines: list[Line] = []
    for heading, body in (
        ("Rows", _rows(found, look)),
        ("Read as", _read_as(found)),
        ("Labels", _labels(found)),
        ("Lengths", _lengths(found, look)),
        ("Left out", _left_out(found)),
        ("Steps", _steps(found)),
        ("Experts", [] if found.experts is None else _experts(found.experts, look)),
        ("Learning rate", _course(found.steps, look)),
        ("Warnings", [[(f"- {text}", WARNING)] for text in found.warnings]),
        ("Training would stop", [[(f"- {text}", WARNING)] for text in found.stops]),
    ):
        section = list(body)
        if section:
            lines += [[(heading, HEADING)], *section, []]
    return "\n".join("".join(_painted(piece, kind, look) for piece, kind in line) for line in lines[:-1])


def _painted(text: str, kind: int, look: Look) -> str:
    text = text if kind == DRAWN else visible(text)  # file names and kinds of faults are strangers' too
    return f"{ANSI[kind]}{text}{RESET}" if look.colour and ANSI[kind] else text


def _rows(found: Inspection, look: Look) -> Iterator[Line]:
    mark = "learned tokens on green" if look.colour else "learned tokens in [brackets]"
    yield [(f"tokens separated by |, {mark}, line ends as ⏎", CONTEXT)]
    for row in found.rows:
        yield []
        yield [
            (row.origin, HEADING),
            (f"  {row.length} tokens, {row.learned} learned, {row.bos} BOS, {row.eos} ends", PLAIN),
        ]
        for number, picture in enumerate(row.pictures, 1):
            yield [(f"  picture {number}: {visible(picture.told())}", PLAIN)]
            for line in picture.drawn(look.colour, look.blocks, look.width - 4):
                yield [(line, DRAWN)]
        for line in lines_of(row.text):
            yield [("  " + visible(line), PLAIN)]
        yield [("  " + "-" * 20, CONTEXT)]
        yield from _tokens(row, look)


def _tokens(row: ShownRow, look: Look) -> Iterator[Line]:
    line: Line = [("  ", PLAIN)]
    used = 2
    for token in row.tokens:
        kind = (LEARNT_CONTROL if token.control else LEARNT) if token.learned else CONTROL if token.control else CONTEXT
        text = visible(token.text)
        text = f"[{text}]" if token.learned and not look.colour else text
        if used + len(text) + 1 > look.width and used > 2:
            yield line
            line, used = [("  ", PLAIN)], 2
        line += [(text, kind), ("|", PLAIN)]
        used += len(text) + 1
        if token.text.endswith("\n"):
            yield line
            line, used = [("  ", PLAIN)], 2
    if used > 2:
        yield line


def _read_as(found: Inspection) -> Iterator[Line]:
    report = found.job.data.report
    for line in (*told.readings(report.readings, report.ignored), *report.said):
        yield _said(visible(line))


def _labels(found: Inspection) -> Iterator[Line]:
    report, census = found.job.data.report, found.census
    yield _said(
        f"{report.kept:,} rows, {report.tokens:,} tokens, {report.targets:,} learned ({report.supervised_share:.1%})"
    )
    some = "" if census.rows == report.kept else f" (of {census.rows:,} rows, evenly spread)"
    for name, counts in (("BOS tokens per row", census.bos), ("end tokens per row", census.eos)):
        yield _said(f"{name}: " + ", ".join(f"{n} ({rows:,} rows)" for n, rows in list(counts.items())[:8]) + some)
    for text, there, learned in census.controls[:8]:
        yield _said(f"{visible(text)}: {there:,} times, {learned:,} learned{some}")
    if report.validation_rows:
        yield _said(f"held out: {report.validation_rows:,} rows, {report.validation_targets:,} learned tokens")


def _lengths(found: Inspection, look: Look) -> Iterator[Line]:
    report, most = found.job.data.report, max(count for _, _, count in found.histogram)
    width = max(10, min(50, look.width - 40))
    digits = len(f"{found.histogram[-1][1]:,}")
    for low, high, count in found.histogram:
        bar = bars(count / most, width, look.blocks)
        yield _said(f"{low:>{digits},} - {high:>{digits},}  {bar:<{width}} {count:,}")
    yield _said(", ".join(f"{percent} % up to {length}" for percent, length in report.quantiles.items()))
    yield _said(f"longest: {report.longest} tokens, {report.longest_origin}")
    if report.longest_seen > report.longest:
        yield _said(f"longest before data.on_long: {report.longest_seen} tokens, {report.longest_seen_origin}")


def bars(share: float, width: int, blocks: bool) -> str:
    """A bar of up to ``width`` columns; anything above nothing shows."""
    full = share * width
    if not blocks:
        return "#" * max(round(full), share > 0)
    whole, part = int(full), int((full - int(full)) * 8)
    return "█" * whole + ("▏▎▍▌▋▊▉"[part - 1] if part else "▏" if not whole and share > 0 else "")


def _experts(use: ExpertUse, look: Look) -> Iterator[Line]:
    """A histogram of every layer, and what the busiest experts cover: 1, 2, 4, ... of them."""
    yield _said("tokens that each routed expert of a layer is given; entropy 1: evenly spread, 0: all to one")
    width = max(10, min(40, look.width - 40))
    for layer, counts in use.counts.items():
        total, many = max(1, sum(counts)), len(counts)
        sizes = [1 << n for n in range(many.bit_length()) if 1 << n < many]
        covered = ", ".join(f"{k}: {use.covered(k, layer):.0%}" for k in sizes)
        yield _said(f"layer {layer}: entropy {use.entropy(layer):.3f}; the most used cover {covered}")
        for expert in sorted(range(many), key=lambda e: (-counts[e], e))[:MOST_EXPERTS]:
            share = counts[expert] / total
            yield _said(f"  {expert:>4}  {bars(share, width, look.blocks):<{width}} {share:6.1%} {counts[expert]:,}")
        if many > MOST_EXPERTS:
            yield _said(f"        and {many - MOST_EXPERTS} more; --json has all")
        if unseen := [expert for expert, count in enumerate(counts) if not count]:
            yield _said(f"  no token: {in_short(unseen)}")


def _left_out(found: Inspection) -> Iterator[Line]:
    report, data = found.job.data.report, found.job.recipe.data
    for count, words in (
        (report.long_dropped, f"dropped: more than {data.max_length} tokens (data.on_long: {data.on_long})"),
        (report.long_cut, f"cut to {data.max_length} tokens"),
        (report.long_split, f"split at {data.max_length} tokens"),
        (report.left_out, "left out by a limit (data.limit)"),
        (report.overlap_dropped, "dropped because they are in validation too"),
        (report.notes["rejected_dropped"], "marked as bad answers (data.on_rejected: drop)"),
        (report.duplicates, "duplicates kept"),
        (report.empty_lines, "empty lines"),
    ):
        if count:
            yield _said(f"{count:,} {words}")
    for text in report.long_shown[:5]:
        yield _said(f"  {text}")
    if found.faults:
        yield _said(f"{len(report.faults):,} cannot be used:")
    for kind, count, first in found.faults[:20]:
        yield _said(f"  {visible(kind)}: {count:,}, the first at {first}")


def _steps(found: Inspection) -> Iterator[Line]:
    steps = found.steps
    yield _said(
        f"{steps.total:,} steps, {steps.per_epoch:,} an epoch; {steps.passes / max(1, steps.per_epoch):.1f} passes each"
    )
    for name, (least, mean, most) in (
        ("rows", steps.rows),
        ("tokens", steps.tokens),
        ("learned tokens", steps.targets),
    ):
        yield _said(f"{name} a step: {mean:,.1f} on average ({least:,} to {most:,})")
    yield _said(
        f"packing: micro-batches of at most {steps.micro_tokens:,} tokens are {steps.filled:.1%} full, no padding "
        f"(padded to the longest row of each pass, {steps.padding:.1%} would be padding)"
    )


def _course(steps: Steps, look: Look) -> Iterator[Line]:
    points = [rate for _, rate in steps.course]
    peak = max(points) or 1.0
    signs = EIGHTHS if look.blocks else SMALL
    for level in reversed(range(HEIGHT)):
        row = "".join(signs[max(0, min(8, round((rate / peak * HEIGHT - level) * 8)))] for rate in points)
        yield _said(f"{peak:>9.2e} {row}" if level == HEIGHT - 1 else f"{'0' if level == 0 else '':>9} {row}")
    yield _said(
        f"{'':9} step 1 to {steps.total:,}: {steps.warmup:,} of warm-up, then {steps.kind}, peak {steps.rate:g}"
    )


def _said(text: str) -> Line:
    return [(f"  {text}", PLAIN)]
