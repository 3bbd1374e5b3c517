"""The report's first screen: which method to use, in words that are made from the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from halter.compare.report_facts import Comparison, Row


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
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def listed(names: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def headline(found: Comparison) -> str:
    """The answer in one sentence."""
    choice = found.choice
    if choice is None:
        return "No method was trained to the end, so there is nothing to recommend."
    if found.helps(choice) is False:
        return "None of the methods is better than the base by more than the noise: use the base as it is."
    others = [row.name for row in found.leaders if row is not choice]
    if not others:
        return f"Use {choice.name}: the best loss, by more than the noise."
    return f"Use {choice.name}: it ties for the best loss with {listed(others)} and needs {_need(found)}."


def _need(found: Comparison) -> str:
    assert found.choice is not None
    if found.choice.peak is not None:
        return f"the least memory of {'both' if len(found.leaders) == 2 else 'them all'}"
    return "the fewest trained parameters" if found.choice.trainable is not None else "nothing that the others do not"


def reasons(found: Comparison) -> list[str]:
    """The sentences beneath the headline."""
    return [sentence for part in (_quality, _economy, _four_bits, _ladder, _caveats) for sentence in part(found)]


def _quality(found: Comparison) -> Iterator[str]:
    if not found.trained:
        return
    best = found.trained[0]
    seeds = len(best.seeds)
    over = f", the mean of {seeds} seeds" if seeds > 1 else ", from a single seed" if seeds else ""
    yield f"Least loss on the test rows: {best.name}, {loss(best.loss)} nats a token{over}."
    ties = [row.name for row in found.leaders if row is not best]
    if ties:
        yield f"Inside the noise of it, so a tie: {listed(ties)}."
    if found.base is not None and found.base.loss is not None:
        yield f"The base without an adapter has {loss(found.base.loss)}."
        vain = [row.name for row in found.trained if not found.helps(row)]
        if vain and len(vain) < len(found.trained):
            yield f"Not better than the base by more than the noise: {listed(vain)}."


def _economy(found: Comparison) -> Iterator[str]:
    for words, key, shown in (
        ("Least memory in training", lambda row: row.peak, size),
        ("Fewest trained parameters", lambda row: row.trainable, count),
        ("Shortest training", lambda row: row.seconds, duration),
        ("Smallest adapter on disk", lambda row: row.number("adapter_bytes"), size),
        ("Least forgetting of general text", _forgets, lambda value: f"{value:+.4f} nats a token"),
    ):
        text = _least(found.trained, words, key, shown)
        if text and len(found.trained) > 1:
            yield text
    if found.choice is not None and found.choice.facts.get("mergeable") is not None:
        merges = bool(found.choice.facts["mergeable"])
        said = (
            "can be merged into the weights, after which answering costs" if merges else "cannot be merged: answering"
        )
        yield f"{found.choice.name} {said} {'what the base costs' if merges else 'always costs a little more'}."


def _forgets(row: Row) -> float | None:
    return sum(row.forgetting) / len(row.forgetting) if row.forgetting else None


def _least(
    rows: Sequence[Row], words: str, key: Callable[[Row], float | None], shown: Callable[[float], str]
) -> str | None:
    values = [(value, row) for row in rows if (value := key(row)) is not None]
    if not values:
        return None
    value, row = min(values, key=lambda entry: entry[0])
    return f"{words}: {row.name}, {shown(value)}, with a loss of {loss(row.loss)}."


def _four_bits(found: Comparison) -> Iterator[str]:
    """What a 4-bit base costs in quality and saves in memory, method by method."""
    for wide, narrow in found.twins():
        if wide.loss is None or narrow.loss is None:
            continue
        change = narrow.loss - wide.loss
        noise = "inside the noise, a tie" if found.tied(wide, narrow) else "more than the noise"
        text = f"A 4-bit base ({narrow.name} against {wide.name}) changes the loss by {change:+.4f}, {noise}"
        if wide.peak and narrow.peak:
            share = narrow.peak / wide.peak - 1
            text += f", and the memory by {share:+.0%}"
        yield text + "."


def _ladder(found: Comparison) -> Iterator[str]:
    """The best method for every amount of memory."""
    front = found.front(lambda row: row.peak)
    if len(front) > 1:
        steps = [f"from {size(row.peak)} {row.name} ({loss(row.loss)})" for row in front]
        yield f"By the memory that you have: {', '.join(steps)}."


def _caveats(found: Comparison) -> Iterator[str]:
    for row in found.unfinished:
        fate = "was left out" if row.status == "left out" else row.status
        yield f"{row.name} {fate}: {row.why}."
    if found.trained:
        base = found.record.get("base") or {}
        yield f"All of this holds for this base ({base.get('name', 'unnamed')}), these data and this budget."
