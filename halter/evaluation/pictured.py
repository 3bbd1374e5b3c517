"""Pictures of rows that are scored: as who is asked sees them, withheld, or shuffled, to find what they are worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from halter.adapters.sight import Sees, rules_of
from halter.data.example import Example
from halter.model.decoder import Decoder

Shown = Literal["shown", "withheld", "shuffled"]


def seen_as(examples: Sequence[Example], model: Decoder, adapter: Sees | None) -> Sequence[Example]:
    """The rows with as many tokens for their pictures as the adapter, or the model, needs; without their pictures where
    neither sees."""
    if model.config.pictures is not None or not any(example.pictures for example in examples):
        return examples
    rules = rules_of(model.config, adapter)
    return [example.seen_by(rules) for example in examples]


def shown_as(examples: Sequence[Example], how: Shown) -> Sequence[Example]:
    """The rows as they are, ``withheld`` without their pictures, ``shuffled`` with those of other rows."""
    if how == "withheld":
        return [example.seen_by(None) for example in examples]
    return shuffled(examples) if how == "shuffled" else examples


def shuffled(examples: Sequence[Example]) -> list[Example]:
    """The rows, each with the pictures of the next one that has as many of these sizes, and others."""
    alike: dict[str, list[Example]] = {}
    for example in examples:
        alike.setdefault(_sizes(example), []).append(example)
    nth = Counter[str]()
    made = []
    for example in examples:
        rows, at = alike[_sizes(example)], nth[_sizes(example)]
        nth[_sizes(example)] += 1
        own = [one.digest for one in example.pictures]
        turned = (one.pictures for one in (*rows[at + 1 :], *rows[:at]))
        others = next((found for found in turned if [one.digest for one in found] != own), example.pictures)
        both = zip(example.pictures, others, strict=True)
        placed = tuple(replace(theirs, start=mine.start, length=mine.length) for mine, theirs in both)
        made.append(replace(example, pictures=placed))
    return made


def _sizes(example: Example) -> str:
    return repr([(one.grid, one.length) for one in example.pictures])
