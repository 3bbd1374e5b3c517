"""What a chat template adds to a row, and which template adds so little that the rows fit."""

from __future__ import annotations

import re

from halter.data.advice import columns_option
from halter.data.encode import Encoder
from halter.data.report import DataReport
from halter.errors import HalterError
from halter.text.chat.conversations import BUILTIN, ChatTemplate


def frame(encoder: Encoder, template: ChatTemplate, beside: bool) -> int:
    """Tokens that a template writes around a question and its answer of a letter each; ``beside``: with an input, as
    some templates write more words then."""
    user = {"role": "user", "content": "a", **({"input": "a"} if beside else {})}
    talk = [user, {"role": "assistant", "content": "a"}]
    encoded = template.encode(encoder.tokenizer, talk, date=encoder.options.template_date)
    return len(encoded.tokens) - len(talk) - beside


ASKED = re.compile(r"asked: ([^;]+); learned: ([^;]+)")


def _shorter(encoder: Encoder, report: DataReport) -> str:
    """What makes rows shorter that no length keeps, and of which a cut leaves no answer."""
    way = "shorten what is asked, or take a model with a larger context"
    if encoder.options.on_long == "cut":
        way = f"cutting leaves no answer: what is asked fills the {encoder.options.max_length} tokens; {way}"
    found = ASKED.search(" ".join(report.readings.values()))
    asked = found[1].split(", ") if found else []
    if found and len(asked) > 1:
        columns = columns_option({"instruction": asked[0], "output": found[2].split(", ")[0]})
        way += f"; without {' and '.join(asked[1:])}: {columns}"
    return way


def for_long_rows(encoder: Encoder, report: DataReport) -> tuple[str, str]:
    """(how much of the longest row is its template's, what to do), of a load whose rows are too long; '' where no
    template was used."""
    ways, longest = report.keeping(encoder.options.on_long), report.longest_seen
    larger = f"a larger --max-length: {longest} keeps every row"
    if encoder.context is not None and longest > encoder.context:
        larger = "" if encoder.at_context else f"a larger --max-length, up to {encoder.context} (this model's context)"
    first = ways or (_shorter(encoder, report) if not larger else "give shorter rows")
    keeps = f"{first}, or {larger}" if larger else first
    template = encoder.template
    if template is None or report.as_they_stand >= report.rows:
        return "", keeps
    beside = any("input" in told for told in report.readings.values())
    own = frame(encoder, template, beside)
    told = f"the longest has {report.longest_seen}, of which about {own} are the template's ({template.name})"
    if own >= encoder.options.max_length and not encoder.at_context:  # cutting leaves nothing of the row itself
        keeps = f"raise --max-length, the template alone takes about {own}; {larger.partition(': ')[2] or larger}"
    room = encoder.options.max_length - (report.longest_seen - own)
    if encoder.tokenizer.chat_template is not None:  # another one is not what the base has learned
        return told, keeps
    others: list[tuple[int, str]] = []
    for name in BUILTIN:
        try:
            others.append((frame(encoder, ChatTemplate.builtin(name), beside), name))
        except HalterError:  # needs tokens or dates that are not there
            continue
    least, name = min(others, default=(own, template.name))
    if least < own and least <= room:
        return told, f"--template {name} writes about {least} in their place, and every row fits"
    return told, keeps
