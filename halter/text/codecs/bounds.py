"""What a stranger's tokenizer.json may ask for: bounds on the work that a text can cause."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

MAX_PARTS = 64
"""Normalizers and pre-tokenizers in one file; Llama 3's has two, Llama 2's two."""
MAX_GROWTH = 16.0
"""By how much normalizers may lengthen a text: a space to U+2581 is one character for one."""
MAX_PATTERN_CHARS = 4096
_REPEATED_GROUP = re.compile(r"(?<!\\)\)[*+{]|\\[1-9]|\\k")


def costly(spec: Mapping[str, Any]) -> list[str]:
    """Everything in a tokenizer.json that makes a short text expensive, or its ids a matter of chance."""
    parts = [part for key in ("normalizer", "pre_tokenizer") for part in _components(spec.get(key))]
    wrong = [f"{len(parts)} normalizers and pre-tokenizers, the limit is {MAX_PARTS}"] if len(parts) > MAX_PARTS else []
    growth = 1.0
    for part in parts[: MAX_PARTS + 1]:
        regex = _regex(part)
        if len(regex) > MAX_PATTERN_CHARS or _REPEATED_GROUP.search(regex):
            wrong.append(f"the expression {regex[:60]!r}, which repeats groups, refers back or is too long")
        if part.get("type") == "Replace":
            pattern = part.get("pattern")
            replaced = pattern.get("String") if isinstance(pattern, dict) else None
            growth *= max(1.0, len(str(part.get("content") or "")) / max(1, len(str(replaced or ""))))
        if part.get("type") == "Prepend":
            growth += len(str(part.get("prepend") or "")) / MAX_GROWTH
    if growth > MAX_GROWTH:
        wrong.append(f"normalizers that make a text more than {MAX_GROWTH:g} times as long")
    if spec["model"].get("dropout"):
        wrong.append("dropout, which gives a text other ids each time")
    return wrong


def _regex(part: Mapping[str, Any]) -> str:
    pattern = part.get("pattern")
    return str(pattern.get("Regex") or "") if isinstance(pattern, dict) else ""


def _components(component: Any) -> Iterator[dict[str, Any]]:
    if isinstance(component, dict):
        yield component
        for key in ("normalizers", "pretokenizers"):
            for part in component.get(key) or ():
                yield from _components(part)
