"""What was refused, in six lines: several refusals share them, and nobody loses one for another's length.

Every refusal gets a line before any gets a second one; what is told shorter than it is, or by its id alone, is told
whole by --verbose, by `halter doctor --json` and in Python by the exception.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence

from halter.errors import SHOWN_LINES, Refusal
from halter.telling import columns, folded

MOST_LINES = 6
LEAST_COLUMNS = 80
"""Where a terminal is narrower, six lines of this width are still told: fewer words would help nobody."""
USUAL_COLUMNS = 100
CUT = " ..."


def message(refusal: Refusal, kept: str | None, whole: bool) -> str:
    """The refusal as people read it, unwrapped. ``kept``: the file that holds everything that was found, where there is
    one; ``whole``: as long as it takes."""
    place = f"; all of them are in {kept}" if kept else ""
    head = [f"{refusal.what}:"] if refusal.parts else []
    full = [("- " if head else "") + paragraph(part, place) for part in refusal.parts or (refusal,)]
    text = "\n".join([*head, *full])
    if whole or not refusal.parts or rows(f"halter: {text}") <= MOST_LINES:
        return text
    listed = f"; {kept} lists what was found" if kept else ""
    first = f"{refusal.what} (--verbose tells each in full{listed}):"
    return "\n".join([first, *_sharing(refusal.parts, MOST_LINES - rows(f"halter: {first}"))])


def rows(text: str) -> int:
    """How many lines of a screen the text takes: of a usual one where nobody is looking."""
    width = max(LEAST_COLUMNS, columns()) if sys.stderr.isatty() else USUAL_COLUMNS
    if not text:
        return 0
    return sum(max(1, -(-len(line) // width)) for line in folded(text, width).split("\n"))


def paragraph(refusal: Refusal, place: str = "") -> str:
    """One refusal in full; a long list stands one a line, the first few."""
    items = refusal.groups
    if not items:
        if not refusal.many():
            return refusal.paragraph() + ("" if refusal.whole() else f"\n{_sentence(place.removeprefix('; '))}")
        more = len(refusal.found) - SHOWN_LINES
        items = refusal.found if more <= 1 else (*refusal.found[:SHOWN_LINES], f"and {more} more")
    items = (*items[:-1], items[-1] + (place if not refusal.whole() else ""))
    return refusal.paragraph("Found:" + "".join(f"\n  {item}" for item in items) + "\n").replace("\n. ", "\n")


def _sentence(text: str) -> str:
    """The text with a capital at its beginning; nothing behind it is touched, as it may be a path."""
    return text[:1].upper() + text[1:]


def _sharing(parts: Sequence[Refusal], room: int) -> list[str]:
    """As many refusals as ``room`` lines hold, then the others' ids."""
    count = len(parts) if len(parts) <= room else max(1, room - 1)
    while count > 1 and count + rows(_others(parts[count:])) > room:
        count -= 1
    end = _others(parts[count:])
    spare = room - count - rows(end)
    has = [1] * count
    while spare > 0:  # in turn, so that a long list takes nobody's line
        wanting = [i for i in range(count) if _fitting(parts[i], has[i]) != _fitting(parts[i], has[i] + spare)]
        if not wanting:
            break
        has[min(wanting, key=lambda i: (has[i], i))] += 1
        spare -= 1
    return [*(_fitting(part, lines) for part, lines in zip(parts[:count], has, strict=True)), *([end] if end else [])]


def _others(parts: Sequence[Refusal]) -> str:
    ids = ", ".join(dict.fromkeys(f"[{part.id}]" for part in parts))
    return f"and {len(parts)} more: {ids}" if parts else ""


def _fitting(part: Refusal, lines: int) -> str:
    """The refusal in at most so many lines, as much of it as they hold: what is wrong, what to do, what was found."""
    for text in _shorter(part):
        if rows(f"- {text}") <= lines:
            return f"- {text}"
    end = f"{CUT} [{part.id}]"
    words = text.removesuffix(f" [{part.id}]").split(" ")
    while len(words) > 1 and rows(f"- {' '.join(words)}{end}") > lines:
        words.pop()
    text = " ".join(words)
    while rows(f"- {text}{end}") > lines:  # one word that is longer than the line
        text = text[:-8]
    return f"- {text.rstrip('.,;:')}{end}"


def _shorter(part: Refusal) -> Iterator[str]:
    """The refusal in one paragraph, then shorter and shorter; the last one is what must be told."""
    found = part.groups or part.found
    what = (f"{part.where}: " if part.where else "") + part.what.rstrip(".")
    expected = f". Expected: {part.expected.rstrip('.')}" if part.expected else ""
    fix, hint = ((f". Fix: {text.rstrip('.')}" if text else "") for text in (part.fix, _first_sentence(part.fix)))
    waiver = f" (or --allow {part.id})" if part.waivable else ""
    ends = [f"{rest} [{part.id}]" for rest in (expected + fix + waiver, fix + waiver, hint + waiver, hint, "")]
    if not part.groups and len(found) <= SHOWN_LINES:
        yield part.paragraph()
    lists = [""]
    if found:
        counts = range(min(len(found), SHOWN_LINES), 0, -1)
        lists = [_listed(found, count, short) for count in counts for short in (False, True)]
    if any(": " in one for one in found):  # each is a mistake of its own and says what to do
        yield from (what + listed + end for listed in lists for end in ends)
    else:
        yield from (what + listed + end for end in ends for listed in lists)


def _listed(found: Sequence[str], count: int, short: bool) -> str:
    items = [_first_sentence(one) if short else one for one in found[:count]]
    more = f"; and {len(found) - count} more" if len(found) > count else ""
    return f": {'; '.join(items)}{more}"


def _first_sentence(text: str) -> str:
    """The first sentence, with its question where one follows: did you mean ...?"""
    first = re.match(r"(?s).*?(?:[.;](?=\s)|[?!](?=\s)|$)", text)
    rest = text[first.end() :] if first else ""
    asked = re.match(r" did you mean [^?]*\?", rest)
    return " ".join(((first[0] if first else text) + (asked[0] if asked else "")).split()).rstrip(".;")
