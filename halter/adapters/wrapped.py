"""Adapter folders of PEFT whose base had the text inside a larger model, so that paths there begin otherwise; so do all
paths of a model that transformers holds under other names than it is published with (``Layout.in_memory``).

transformers' models that see hold their text as ``language_model``, in some releases as ``model.language_model``; here
it has the paths of the family's layout. Names of tensors and the options that name modules are read as those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from halter.contract.method import PEFT_PREFIX
from halter.model.layout import Layout

INSIDE = {"model.language_model.": "model.", "language_model.": ""}
"""{how a path begins inside a larger model: what stands there where the text is alone}."""
NAMING = ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save", "target_parameters")
PATTERNS = ("rank_pattern", "alpha_pattern")
_NAME = re.compile(r"[\w.]+|all-linear")


def bare(path: str) -> str:
    """A path as it is where the text stands alone."""
    lead = next((lead for lead in INSIDE if path.startswith(lead)), "")
    return INSIDE.get(lead, "") + path.removeprefix(lead)


class Wrapping:
    """How paths of a folder's base begin, as the names of its tensors show, and what they are here."""

    def __init__(self, names: Iterable[str], layout: Layout) -> None:
        plain = [name.removeprefix(PEFT_PREFIX) for name in names]
        memory = {theirs: ours for ours, theirs in layout.in_memory.items()}
        if any(name.startswith(tuple(memory)) for name in plain if memory):
            self.lead, self._memory = "", memory
            self.theirs = {place.path: layout.peft_path(place.path) for place in layout}
            return
        self._memory = {}
        self.lead = next((lead for lead in INSIDE if any(name.startswith(lead) for name in plain)), "")
        """'' where the text stood alone."""
        own = {bare(place.path): place.path for place in layout} if self.lead else {}
        self._own = own
        self.theirs = {path: self._inside(short) for short, path in own.items()}
        """{path here: path in the folder's base}; {} where they are the same."""

    def _inside(self, short: str) -> str:
        before = INSIDE[self.lead]
        return self.lead + short.removeprefix(before) if short.startswith(before) else short

    def own(self, name: str) -> str:
        """The name of a tensor, a module or a part of one, without PEFT's prefix, as it is here."""
        if begins := next((theirs for theirs in self._memory if name.startswith(theirs)), ""):
            return self._memory[begins] + name.removeprefix(begins)
        if not self.lead or not name.startswith(tuple(INSIDE)):
            return name
        short = bare(name)
        head = short
        while head:
            if head in self._own:
                return self._own[head] + short[len(head) :]
            head = head.rpartition(".")[0]
        return name

    def options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """PEFT's options with paths of this model where they name or describe some. Expressions become what they match;
        one that cannot be read, or matches nothing here, stays to be told."""
        read = dict(config)
        if not self.theirs:
            return read
        for key in NAMING:
            given = config.get(key)
            if isinstance(given, str) and not _NAME.fullmatch(given):
                read[key] = self._matched(given) or given
            elif isinstance(given, list):
                read[key] = [self.own(item) if isinstance(item, str) else item for item in given]
        for key in PATTERNS:
            if isinstance(config.get(key), dict):
                read[key] = dict(self._patterns(config[key]))
        return read

    def _matched(self, pattern: str, whole: bool = True) -> list[str]:
        try:
            found = re.compile(pattern)
        except re.error:
            return []
        match = found.fullmatch if whole else found.match
        return [path for path, theirs in self.theirs.items() if match(theirs)]

    def _patterns(self, given: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        for pattern, value in given.items():
            mine = self._matched(rf"(.*\.)?({pattern})$", whole=False) if "language_model" in pattern else []
            yield from ((re.escape(path), value) for path in mine) if mine else ((pattern, value),)
