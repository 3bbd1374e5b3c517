"""Which families' folders are read in Meta's layout, and how one is told from another: by its params.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halter.errors import Refusal
from halter.files.meta_config import read_params
from halter.files.meta_llama import LLAMA
from halter.files.meta_llama4 import LLAMA4
from halter.files.meta_llama4_vision import LLAMA4_SEEING
from halter.files.meta_mllama import MLLAMA
from halter.files.meta_table import MetaFamily

FAMILIES = (LLAMA4_SEEING, LLAMA4, MLLAMA, LLAMA)
"""The first that says so takes a folder; a LLaMA says nothing of itself and comes last."""


def family_of(params: Mapping[str, Any]) -> MetaFamily:
    """The family of a params.json."""
    return next(family for family in FAMILIES if family.tells(params))


def read_family(path: Path) -> tuple[MetaFamily, dict[str, Any]]:
    """The family and the numbers of the params.json at ``path``. Refusals ``meta-params`` and ``meta-unsupported``."""
    params = read_params(path)
    family = family_of(params)
    if wrong := family.faults(params):
        what = "lacks numbers that every model of its family has, or has impossible ones"
        raise Refusal("meta-params", what, where=str(path), found=wrong, fix="fetch params.json again")
    refused = family.refused or {}
    if problems := [why for key, why in refused.items() if params.get(key) not in (None, False, -1)]:
        raise Refusal(
            "meta-unsupported",
            "speaks of more than is read of its family",
            where=str(path),
            found=problems,
            expected=family.models,
            fix="give a model of that list",
        )
    return family, params


def generation_config(folder: Path, vocabulary: int) -> dict[str, Any]:
    """A generation_config.json for a folder in Meta's layout."""
    return read_family(folder / "params.json")[0].generation(vocabulary)
