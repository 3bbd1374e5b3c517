"""Regular expressions of strangers: tried in the process that the system kills, before they are used in this one.

PEFT's adapter_config.json may hold expressions over module paths, and ten characters, "(.*)*[^.]$", can keep Python's
matcher busy for longer than anyone lives. Matching takes the same steps every time, so what ends there ends here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from halter.errors import HalterError, Refusal
from halter.text.templates.sandbox import sandbox

MAX_PATTERNS, MAX_CHARS = 512, 4096
"""512 compiled expressions are what Python's re keeps; one of 4096 characters can name every module of a model."""
_GROUP_REPEATED = re.compile(r"\)[*+?{]|\\[0-9]")
_REPEATED = re.compile(r"[*+?{]")


def refuse_slow_patterns(patterns: Sequence[str], names: Sequence[str], where: str) -> None:
    """Refusal ``pattern-too-slow`` unless all ``patterns`` are matched with all ``names`` within the sandbox's bounds.

    Refusal ``pattern-too-large`` beyond 512 patterns or 4096 characters in one. Broken expressions are not judged here.
    """
    large = [p[:80] for p in patterns if len(p) > MAX_CHARS]
    if len(patterns) > MAX_PATTERNS:
        large.append(f"{len(patterns)} expressions")
    if large:
        limits = f"at most {MAX_PATTERNS} expressions of {MAX_CHARS} characters"
        what = "has regular expressions beyond reason"
        raise Refusal(
            "pattern-too-large", what, where=where, found=large, expected=limits, fix="give fewer and shorter ones"
        )
    doubtful = [p for p in patterns if not _plain(p)]
    if not doubtful:
        return
    try:
        ended = sandbox.run([{"patterns": doubtful, "names": list(names)}])[0].get("kind") != "memory"
    except HalterError:
        ended = False
    if not ended:
        fix = "name the modules instead of describing them"
        what = "has a regular expression that is not done within a second"
        raise Refusal("pattern-too-slow", what, where=where, found=[p[:80] for p in doubtful], fix=fix)


def _plain(pattern: str) -> bool:
    """At most three repetitions, none of a group: at worst the cube of a path's 60 characters."""
    return not _GROUP_REPEATED.search(pattern) and len(_REPEATED.findall(pattern)) <= 3
