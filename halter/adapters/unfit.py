"""Options that JSON of strangers may hold and nobody can mean: numbers that are not finite, endless lists and regular
expressions that take for ever."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from halter.contract.method import Method
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.text.patterns import refuse_slow_patterns

MAX_ENTRIES = 4096
"""Of any list or table in an adapter's options; the largest LLaMA has 882 linear layers."""


def refuse_unfit_options(methods: list[Method], shape: ModelConfig, folder: Path) -> None:
    """Numbers that are not finite, and regular expressions that take for ever: JSON of strangers may hold both."""
    patterns: list[str] = []
    wrong: list[str] = []
    for method in methods:
        for key, value in asdict(method).items():
            inner = value.values() if isinstance(value, dict) else [value]
            wrong += [f"{key} {v}" for v in inner if isinstance(v, float) and not math.isfinite(v)]
            expressions = [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
            patterns += [e for e in expressions if isinstance(e, str)]
            if isinstance(value, dict | list | tuple) and len(value) > MAX_ENTRIES:
                wrong.append(f"{key} has {len(value)} entries, the limit is {MAX_ENTRIES}")
    if wrong:
        raise Refusal(
            "adapter-unreadable",
            "has options that cannot be",
            where=str(folder),
            found=wrong,
            fix="copy the whole folder again",
        )
    refuse_slow_patterns(patterns, _paths(shape), str(folder))


def refuse_slow(config: Mapping[str, Any], shape: ModelConfig, folder: Path, also: Iterable[str] = ()) -> None:
    """The same of PEFT's options, before any is matched with anything: paths of ``shape``, and those of ``also``."""
    values = [config.get(key) for key in ("target_modules", "exclude_modules", "feedforward_modules")]
    patterns = [value for value in values if isinstance(value, str)]
    for key in ("rank_pattern", "alpha_pattern"):
        given = config.get(key)
        patterns += [text for text in given if isinstance(text, str)] if isinstance(given, dict) else []
    refuse_slow_patterns(patterns, [*_paths(shape), *also], str(folder))


def _paths(shape: ModelConfig) -> list[str]:
    return [place.path for place in shape.layout]
