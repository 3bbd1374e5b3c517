"""What Halter says when it will not go on: a failure, or a refusal that the user can fix, and some of them waive."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

SHOWN_FOUND = 20
SHOWN_LINES = 3
LONG = 200
"""What was found, of so many characters together are shown one a line, the first SHOWN_LINES of them."""
MORE = re.compile(r"and \d[\d,]* more")
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
"""How torch says that memory ran out; on a CPU in a bare RuntimeError."""

WAIVABLE: dict[str, str] = {
    "base-differs": "an adapter was trained on other weights than these",
    "adapter-task": "an adapter was trained for another task than writing text",
    "tokenizer-differs": "an adapter was trained with another tokenizer than this one",
    "template-differs": "the chat templates of checkpoint, recipe and adapter write different tokens",
    "double-bos": "rows begin with two BOS tokens, the base has seen one at a time",
    "pad-trained": "the pad token is also one that is learned, or an end that the rows mask",
    "untrained-tokens": "the chat template needs tokens that the base has never been trained on",
    "row-memory": "by our estimate the longest row does not fit into memory",
    "learning-rate": "the learning rate is more than fifty times the method's own",
    "run-data-differs": "a run goes on with other rows than it has learned from so far",
    "pictures-unseen": "rows have pictures and the model sees none: the pictures are left out",
    "disk-space": "there is less room on the disk than three checkpoints take",
}
"""{id: what is waived}: every refusal that ``checks.allow`` may waive. Bytes that are damaged have no waiver."""


FLAG = re.compile(r"--([a-z][\w-]*)(?: ([\w./-][^\s;,)]*))?")


def _keyword(name: str, value: str | None) -> str:
    return name if value is None else f"{name}={value}" if value.isdecimal() else f'{name}="{value}"'


class HalterError(Exception):
    """A failure that is not the user's mistake. The command line ends with exit code 1."""

    exit_code = 1


class Refusal(HalterError):
    """Input that Halter will not work with, said so that it can be fixed. Exit code 2.

    ``id`` is stable and is what ``checks.allow`` names; ``found`` holds everything that is wrong, the message
    shows the first 20. ``parts`` are the refusals of which this one is made (``together``), () where it stands alone.
    ``groups`` are shown in its place where equal ones are better told together, one line each.
    ``folder``, where somebody knows it, is the run folder in which the whole list of what was found may be kept.
    ``call`` is what to do in Python where that is another thing than to type ``fix`` (``calls``).
    """

    exit_code = 2

    def __init__(
        self,
        id: str,
        what: str,
        *,
        where: str = "",
        expected: str = "",
        fix: str = "",
        found: Iterable[object] = (),
        waivable: bool = False,
        groups: Iterable[str] = (),
    ) -> None:
        self.id = id
        self.what = what
        self.where = where
        self.expected = expected
        self.fix = fix
        self.found = tuple(str(one) for one in found)
        self.waivable = waivable
        self.groups = tuple(groups)
        self.parts: tuple[Refusal, ...] = ()
        self.folder: Path | None = None
        self.call = ""
        super().__init__(self.paragraph())

    def calls(self, call: str) -> Refusal:
        """The same, the exception's own text with what to do in Python as its fix."""
        self.call, self.args = call, (self.paragraph(fix=call),)
        return self

    def by_keyword(self) -> Refusal:
        """The same, the exception's own text with keywords where the fix has flags."""
        return self.calls(FLAG.sub(lambda flag: _keyword(flag[1].replace("-", "_"), flag[2]), self.fix))

    def many(self) -> bool:
        """Whether what was found is too long to be told in a row."""
        return sum(len(one) for one in self.found[:SHOWN_FOUND]) >= LONG

    def whole(self) -> bool:
        """Whether the command line shows everything that was found."""
        if self.groups:  # which say every place, unless they end in ... or count what they do not name
            told = not any(one.endswith("...") or " rows more with " in one or MORE.match(one) for one in self.groups)
            return len(self.found) <= SHOWN_LINES or told
        return len(self.found) <= (SHOWN_LINES + 1 if self.many() else SHOWN_FOUND)

    def paragraph(self, listing: str | None = None, fix: str | None = None) -> str:
        """The whole refusal in one paragraph, for who types. ``listing`` replaces the list of what was found, else its
        first 20; ``fix`` the fix."""
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.found:
            more = len(self.found) - SHOWN_FOUND
            listed = "; ".join(self.groups) or ", ".join(self.found[:SHOWN_FOUND]) + (
                f", and {more} more" if more > 0 else ""
            )
            parts.append(f"Found: {listed}" if listing is None else listing)
        if self.expected:
            parts.append(f"Expected: {self.expected}")
        if fix := self.fix if fix is None else fix:
            parts.append(f"Fix: {fix}")
        if self.waivable:
            ways = f'--allow {self.id}; in a recipe checks.allow: [{self.id}]; in Python allow="{self.id}"'
            parts.append(f"To continue anyway: {ways}")
        return f"{'. '.join(p.rstrip('.') for p in parts)}. [{self.id}]".replace("?. ", "? ")


def meant(name: object, known: Iterable[str], else_: str = "take one of these") -> str:
    """The fix for a name that nobody knows: the nearest one that there is."""
    close = get_close_matches(str(name).lower(), known, 1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else else_


def together(refusals: Sequence[Refusal]) -> Refusal:
    """Several refusals as one, ``preflight``; a single one is itself."""
    if len(refusals) == 1:
        return refusals[0]
    whole = Refusal("preflight", f"{len(refusals)} mistakes keep this from starting", found=refusals)
    whole.parts = tuple(refusals)
    whole.args = ("\n".join([f"{whole.what}:", *(f"- {part}" for part in refusals)]),)
    return whole


class Waivers:
    """Which refusals the user lets pass, and which of them would have been raised.

    ``waived`` holds (id, text) of each, for the run folder and the adapter. Refusal ``waiver-unknown`` for an id that
    nothing has or that has no waiver.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self.allow = frozenset(allow)
        self.waived: list[tuple[str, str]] = []
        strange = sorted(self.allow - WAIVABLE.keys())
        if strange:
            close = {id: get_close_matches(id, WAIVABLE, 1, cutoff=0.5) for id in strange}
            raise Refusal(
                "waiver-unknown",
                "checks.allow names what cannot be waived",
                found=[f"{id} (did you mean {near[0]}?)" if near else id for id, near in close.items()],
                expected=", ".join(WAIVABLE),
                fix="leave these out of checks.allow (--allow)",
            )

    def refuse(self, refusal: Refusal) -> None:
        """Raise the refusal, unless it is waived; then it is noted."""
        if not (refusal.waivable and refusal.id in self.allow):
            raise refusal
        text = refusal.paragraph().partition(" To continue anyway:")[0]
        if (refusal.id, text) not in self.waived:
            self.waived.append((refusal.id, text))

    def facts(self) -> list[dict[str, str]]:
        """What was waived, for halter.json and the run folder: [{id, text}]."""
        return [{"id": id, "text": text} for id, text in self.waived]
