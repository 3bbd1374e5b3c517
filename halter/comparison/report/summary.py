"""The report's first screen: which method to use, in words that are made from the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from halter.comparison.report.facts import CHOICES, ReportFacts, ReportRow, number

Reason = tuple[str, str]
"""What a sentence is about, and the sentence."""


def size(count: float | None) -> str:
    """Bytes for people, in powers of 1,000."""
    if count is None:
        return ""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def duration(seconds: float | None) -> str:
    """A time for people."""
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def count(value: float | None) -> str:
    """A whole number for people."""
    return "" if value is None else f"{value:,.0f}"


def loss(value: float | None) -> str:
    """A loss in nats, to the fourth place."""
    return "" if value is None else f"{value:.4f}"


def listed(names: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def headline(found: ReportFacts) -> str:
    """The answer in one sentence."""
    choice = found.choice
    if choice is None:
        return "No method was trained to the end, so there is nothing to recommend."
    if found.helps(choice) is False:
        return "None of the methods is better than the base by more than the noise: use the base as it is."
    others = [row.name for row in found.leaders if row is not choice]
    doubt = _doubt(found)
    if not others:
        adapter = found.adapters.choice if choice.is_full else None
        second = f" Of the adapters: {adapter.name}." if adapter is not None else ""
        firm = "by more than the noise" if not doubt else "at the learning rates that were tried"
        return f"Use {choice.name}: the best loss, {firm}.{doubt}{second}"
    return f"Use {choice.name}: it ties for the best loss with {listed(others)}{_because(found, choice)}.{doubt}"


def _doubt(found: ReportFacts) -> str:
    """What makes the headline less firm: a search that did not find where a method does best."""
    unsettled = [row.name for row in found.trained if row.unsettled]
    if not unsettled:
        return ""
    return f" The search did not settle the learning rate of {listed(unsettled)}, so the order may change."


def _because(found: ReportFacts, choice: ReportRow) -> str:
    """What sets the choice apart from those that it ties with; nothing where that is not known."""
    alike = [row for row in found.frugal if row is not choice]
    if not alike:
        return " and needs less memory" if len(found.leaders) == 2 else " and needs the least memory of them"
    among = "" if len(alike) == len(found.leaders) - 1 else "; of those that need least memory"
    joint = " and" if not among else " it"
    if choice.facts.get("mergeable") and not any(row.facts.get("mergeable") for row in alike):
        return f"{among}{joint} is the one that merges into the weights"
    if choice.trainable is not None and all(row.trainable is not None for row in alike):
        return f"{among}{joint} trains the fewest parameters"
    return ""


def reasons(found: ReportFacts) -> list[Reason]:
    """What stands beneath the headline."""
    return [reason for part in (_quality, _choices, _economy, _four_bits, _memory, _caveats) for reason in part(found)]


def _quality(found: ReportFacts) -> Iterator[Reason]:
    if not found.trained:
        return
    best = found.trained[0]
    seeds = len(best.seeds)
    over = f", the mean of {seeds} seeds" if seeds > 1 else ", from a single seed" if seeds else ""
    text = f"{best.name} has the least loss on the test rows, {loss(best.loss)} nats a token{over}"
    ties = [row.name for row in found.leaders if row is not best]
    text += f"; inside the noise, so a tie: {listed(ties)}" if ties else ""
    text += f"; the base without an adapter has {loss(found.base.loss)}" if found.base and found.base.loss else ""
    yield "Quality", f"{text}."
    rest = found.adapters
    if best.is_full and rest.choice is not None:
        text = f"{listed([row.name for row in rest.leaders])} {'tie' if len(rest.leaders) > 1 else 'is best'}"
        text += f" among those that leave the base as it is; {rest.choice.name}: {loss(rest.choice.loss)}"
        yield "Adapters", f"{text}; {best.name}: {loss(best.loss)}."
    vain = [row.name for row in found.trained if found.helps(row) is False]
    if vain and len(vain) < len(found.trained):
        yield "No gain", f"Not better than the base by more than the noise: {listed(vain)}."
    ends = [end for row in found.trained if (end := max((at for at, *_ in row.curve("seconds")), default=None))]
    losses = [(value, row.name) for row in found.trained if (value := row.loss_after(min(ends, default=0.0)))]
    if len(losses) > 1:
        value, name = min(losses)
        text = f"After {duration(min(ends))}, when the quickest had finished, {name} had the least validation loss"
        yield "Equal time", f"{text}, {loss(value)}."


def _choices(found: ReportFacts) -> Iterator[Reason]:
    """Who picks the right answer most often, beside what needs no model."""
    rows = [row for row in found.trained if row.number("mean", CHOICES) is not None]
    if not rows:
        return
    best = max(rows, key=lambda row: row.number("mean", CHOICES) or 0.0)
    ties = [row.name for row in rows if row is not best and found.tied_by(CHOICES, best, row)]
    text = f"{best.name} finds the right choice likeliest in {share(best.number('mean', CHOICES))} of the test rows"
    text += f"; inside the noise, so a tie: {listed(ties)}" if ties else ""
    text += f"; the base: {share(base)}" if found.base and (base := found.base.number("mean", CHOICES)) else ""
    majority, chance = (number(found.record, "choices", key) for key in ("majority", "chance"))
    if majority is not None and chance is not None:
        text += f"; always the most frequent choice: {share(majority)}; a guess: {share(chance)}"
        low = best.number("interval", CHOICES, 0)
        if low is not None and low <= majority:
            text += ". So none is above the most frequent choice by more than the noise"
    yield "Choices", f"{text}."


def warmup(value: float | None) -> str:
    """How long the learning rate rises: a share of the steps, or their number."""
    return "" if value is None else f"{value:.0%} of the steps" if 0 < value < 1 else f"{value:.0f} steps"


def share(value: float | None) -> str:
    """A share in percent, to one place."""
    return "" if value is None else f"{value:.1%}"


def _economy(found: ReportFacts) -> Iterator[Reason]:
    for lead, words, key, shown in (
        ("Memory", "needs the least to train", lambda row: row.peak, size),
        ("Parameters", "trains the fewest", lambda row: row.trainable, count),
        ("Time", "trains in the shortest time", lambda row: row.seconds, duration),
        ("Disk", "has the smallest adapter", lambda row: row.cost("adapter_bytes"), size),
        ("Forgetting", "forgets least of general text", _forgets, lambda value: f"{value:+.4f} nats a token"),
    ):
        text = _least(found.trained, words, key, shown)
        if text and len(found.trained) > 1:
            yield lead, text
    choice = found.choice
    if choice is not None and choice.facts.get("mergeable") is not None:
        if choice.facts["mergeable"]:
            yield "Merging", f"{choice.name} can be merged into the weights; answering then costs what the base costs."
        else:
            yield "Merging", f"{choice.name} cannot be merged; answering always costs a little more than the base."


def _forgets(row: ReportRow) -> float | None:
    return sum(row.forgetting) / len(row.forgetting) if row.forgetting else None


def _least(
    rows: Sequence[ReportRow], words: str, key: Callable[[ReportRow], float | None], shown: Callable[[float], str]
) -> str | None:
    values = [(value, row) for row in rows if (value := key(row)) is not None]
    if not values:
        return None
    value, row = min(values, key=lambda entry: entry[0])
    return f"{row.name} {words}: {shown(value)}, at a loss of {loss(row.loss)}."


def _four_bits(found: ReportFacts) -> Iterator[Reason]:
    """What a 4-bit base costs in quality and saves in memory, method by method."""
    changes = []
    for wide, narrow in found.twins():
        if wide.loss is not None and narrow.loss is not None:
            noise = "a tie" if found.tied(wide, narrow) else "more than the noise"
            text = f"{wide.name}: loss {narrow.loss - wide.loss:+.4f} ({noise})"
            changes.append(text + (f", memory {narrow.peak / wide.peak - 1:+.0%}" if wide.peak and narrow.peak else ""))
    if changes:
        yield "4-bit base", f"Beside the same method on the wider base: {'; '.join(changes)}."


def _memory(found: ReportFacts) -> Iterator[Reason]:
    """The best method for every amount of memory."""
    front = found.front(lambda row: row.peak)
    if len(front) > 1:
        steps = [f"from {size(row.peak)} {row.name} ({loss(row.loss)})" for row in front]
        yield "What fits", f"The best for the memory that you have: {', '.join(steps)}."


def _caveats(found: ReportFacts) -> Iterator[Reason]:
    for row in found.unfinished:
        yield ("Left out" if row.status == "left out" else "Failed"), f"{row.name}: {row.why.rstrip('.')}."
    edge = [row.name for row in found.trained if row.facts.get("edge")]
    if edge:
        text = "The chosen learning rate is the lowest or highest that was tried, so a better one may lie beyond"
        yield "Search", f"{text}: {listed(edge)}. More --search-trials go further."
    alone = [row.name for row in found.trained if not row.search]
    if alone:
        yield (
            "No search",
            f"Only one learning rate was tried: {listed(alone)}. --search-trials 5 looks for a better one.",
        )
    ahead: dict[str, list[str]] = {}
    for row in found.trained:
        if text := warmup(row.number("warmup")):
            ahead.setdefault(text, []).append(row.name)
    if len(ahead) > 1:
        told = "; ".join(
            f"{text} {listed(names)}" for text, names in sorted(ahead.items(), key=lambda one: len(one[0]))
        )
        yield "Warm-up", f"Each method has its own, which in a short run is a part of its result: {told}."
    if any(len(row.seeds) == 1 for row in found.trained):
        yield "Noise", "Only of the test rows, for want of a second seed: another seed may turn the order round."
    if found.trained:
        base = found.record.get("base") or {}
        yield "Holds for", f"This base ({base.get('name', 'unnamed')}), these data and this budget; others may differ."
