"""Everything that is wrong with one run, in one go: each problem is kept, and the rest is looked at all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from halter.errors import Refusal, Waivers

T = TypeVar("T")


FOLLOWING = {"checkpoint-mismatch": ("token-without-row", "untrained-tokens", "row-memory")}
"""{id: ids of what is no mistake of its own beside it}: where a configuration is not that of the weights, what was
reckoned with it says nothing."""


class Findings:
    """Problems in the order in which they were found. ``strict``: the first is raised instead.

    What ``waivers`` lets pass is noted there and is no problem. ``looked``: in words, everything that was looked at.
    """

    def __init__(self, waivers: Waivers | None = None, strict: bool = False) -> None:
        self.waivers = waivers or Waivers()
        self.strict = strict
        self.problems: list[Refusal] = []
        self.looked: list[str] = []

    def add(self, refusal: Refusal) -> None:
        """One more problem, unless it is waived or follows from one that is there."""
        if any(refusal.id in FOLLOWING.get(one.id, ()) for one in self.problems):
            return
        try:
            self.waivers.refuse(refusal)
        except Refusal:
            if self.strict:
                raise
            if str(refusal) not in map(str, self.problems):
                follow = FOLLOWING.get(refusal.id, ())
                self.problems = [*(one for one in self.problems if one.id not in follow), refusal]

    def attempt(self, make: Callable[..., T], *arguments: Any) -> T | None:
        """What ``make`` returns; None where it refuses, which is a problem."""
        try:
            return make(*arguments)
        except Refusal as refusal:
            self.add(refusal)
            return None

    def take(self, found: Iterable[Refusal]) -> None:
        """Every refusal that a check yields, and the one that it may end with."""
        try:
            for refusal in found:
                self.add(refusal)
        except Refusal as refusal:
            if self.strict:
                raise
            self.add(refusal)
