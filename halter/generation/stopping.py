"""Stop strings, found in the text and not in the tokens: they may begin and end in the middle of a token."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets text through until a stop string is complete, and holds back what could still become one.

    The text is cut where the string begins that is complete first; of several complete at the same character, the
    longest counts. How the text is cut into pieces makes no difference.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = sorted(strings, key=len, reverse=True)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that is certain now; after a stop string was found, nothing more."""
        if self.found is not None:
            return ""
        if not self._strings:
            return text
        held = self._held + text
        for end in range(len(self._held) + 1, len(held) + 1):
            for string in self._strings:
                if held.endswith(string, 0, end):
                    self.found, self._held = string, ""
                    return held[: end - len(string)]
        keep = max((k for s in self._strings for k in range(1, len(s)) if held.endswith(s[:k])), default=0)
        certain = len(held) - keep
        self._held = held[certain:]
        return held[:certain]

    def flush(self) -> str:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held
