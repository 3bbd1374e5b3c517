"""Every measure of answers that can be asked for by name, and the refusal of others."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from halter.errors import Refusal
from halter.evaluation.measures.captions import Captions
from halter.evaluation.measures.fields import Fields
from halter.evaluation.measures.measure import AnswerMeasure
from halter.evaluation.measures.spice import Spice
from halter.evaluation.measures.vqa import Vqa
from halter.evaluation.options import MeasureOptions

MEASURES: dict[str, type[AnswerMeasure]] = {"captions": Captions, "fields": Fields, "spice": Spice, "vqa": Vqa}
CHOICES = "choices"
"""The one that scores no answers: which of its own choices each question finds likeliest (own_choices.py)."""

OTHER_NAMES = {"cider": "captions", "coco": "captions", "scienceqa": CHOICES, "multiple_choice": CHOICES}
"""What else people call them."""


def chosen(options: MeasureOptions) -> dict[str, type[AnswerMeasure]]:
    """{name: measure} of those that are asked for and score answers, each with what it needs.

    Refusals ``unknown-measure``, and those of each measure's ``ready``.
    """
    known = [*MEASURES, CHOICES]
    if strange := [name for name in options.measure_names if name not in known]:
        raise _unknown(strange, known)
    found = {name: MEASURES[name] for name in options.measure_names if name != CHOICES}
    for measure in found.values():
        measure.ready(options)
    return found


def formats() -> dict[str, str]:
    """{score: how it is printed} of all measures."""
    return {score: style for measure in MEASURES.values() for score, style in measure.formats.items()}


def _unknown(strange: Sequence[str], known: Sequence[str]) -> Refusal:
    meant = {score: name for name, measure in MEASURES.items() for score in measure.formats}
    meant |= {**OTHER_NAMES, **{name: name for name in known}}
    near = {name: close[0] for name in strange if (close := get_close_matches(_plain(name), meant, 1))}
    found = [f"{name} (did you mean {meant[near[name]]}?)" if name in near else name for name in strange]
    fix = f"name one of them: --measures {known[0]}; exact match, token F1, ROUGE, BLEU and chrF are always told"
    expected = ", ".join(known)
    return Refusal(
        "unknown-measure", "no measure has this name", where="--measures", found=found, expected=expected, fix=fix
    )


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
