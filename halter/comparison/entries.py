"""Who takes part: a method and a precision each, by the names of the options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from halter.comparison.options import CompareOptions
from halter.comparison.setup import ComparedMethod
from halter.contract.otherwise import as_variant, spelt
from halter.errors import Refusal, meant
from halter.recipe.sections import method_names


def sections(options: CompareOptions, variants: Mapping[str, Any]) -> dict[str, Any]:
    """{name: the recipe's method section}. Refusal ``unknown-method`` names every stranger."""
    known = {name: {"name": name} for name in method_names()} | {
        name: value if isinstance(value, list) else dict(value) if isinstance(value, Mapping) else {"name": value}
        for name, value in variants.items()
    }
    listed = [[spelt(part.strip(), known) for part in re.split(r"\+(?=.)", name)] for name in options.methods]
    parts = {"+".join(one): one for one in listed}
    strange = sorted({part for listed in parts.values() for part in listed if part not in known})
    if strange:
        raise Refusal(
            "unknown-method",
            "a comparison names methods that there are not",
            found=strange,
            expected=", ".join([*method_names(), *variants]),
            fix=_fix(strange[0], known),
        )
    return {name: known[listed[0]] if len(listed) == 1 else _several(known, listed) for name, listed in parts.items()}


def _fix(strange: str, known: Mapping[str, Any]) -> str:
    """What to name in place of a stranger."""
    if other := as_variant(strange):
        return other
    return f"--methods {','.join(strange.split())}" if " " in strange else meant(strange, known)


def _several(known: Mapping[str, Any], listed: list[str]) -> list[Any]:
    found: list[Any] = []
    for name in listed:
        found += known[name] if isinstance(known[name], list) else [known[name]]
    return found


def entries(options: CompareOptions, variants: Mapping[str, Any]) -> list[ComparedMethod]:
    """Every method at every precision; the first precision's rows have the method's bare name."""
    found = []
    for number, precision in enumerate(options.precisions):
        for name, section in sections(options, variants).items():
            row = name if number == 0 else f"{name}-{precision}"
            found.append(ComparedMethod(row, section, precision))
    return found


def base_name(options: CompareOptions, precision: str) -> str:
    """The name of the row of the base alone."""
    return "base" if precision == options.precisions[0] else f"base-{precision}"
