"""What a chat template adds to a row, and which template adds so little that the rows fit."""

from __future__ import annotations

from halter.data.encode import Encoder
from halter.data.report import DataReport
from halter.errors import HalterError
from halter.files.chat import BUILTIN, ChatTemplate


def frame(encoder: Encoder, template: ChatTemplate, beside: bool) -> int:
    """Tokens that a template writes around a question and its answer of a letter each; ``beside``: with an input, as
    some templates write more words then."""
    user = {"role": "user", "content": "a", **({"input": "a"} if beside else {})}
    talk = [user, {"role": "assistant", "content": "a"}]
    encoded = template.encode(encoder.tokenizer, talk, date=encoder.options.template_date)
    return len(encoded.tokens) - len(talk) - beside


def for_long_rows(encoder: Encoder, report: DataReport) -> tuple[str, str]:
    """(how much of the longest row is its template's, what to do), of a load whose rows are too long; '' where no
    template was used."""
    larger = f"a larger --max-length: {report.longest_seen} keeps every row"
    ways = report.keeping(encoder.options.on_long)
    keeps = f"{ways}, or {larger}" if ways else f"give shorter rows, or {larger}"
    template = encoder.template
    if template is None or report.as_they_stand >= report.rows:
        return "", keeps
    beside = any("input" in told for told in report.readings.values())
    own = frame(encoder, template, beside)
    told = f"the longest has {report.longest_seen}, of which about {own} are the template's ({template.name})"
    if own >= encoder.options.max_length:  # cutting leaves nothing of the row itself
        keeps = f"raise --max-length, the template alone takes about {own}; {report.longest_seen} keeps every row"
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
