"""The whole configuration of a run, assembled from the dataclasses that each part declares for itself."""

from __future__ import annotations

from halter.recipe.read import load, load_tolerant, with_output
from halter.recipe.schema import json_schema
from halter.recipe.sections import ChecksOptions, MethodChoice, ModelOptions, Recipe
from halter.recipe.write import as_data, commented, dump

__all__ = [
    "ChecksOptions",
    "MethodChoice",
    "ModelOptions",
    "Recipe",
    "as_data",
    "commented",
    "dump",
    "json_schema",
    "load",
    "load_tolerant",
    "with_output",
]
