"""The recipe's JSON schema, for editors that check YAML while one types."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from halter.recipe.fields import keys_of
from halter.recipe.sections import ORDER, OUTPUT_DOC, SECTIONS, MethodChoice, method_class, method_names
from halter.training.defaults import PRESETS


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe, made from the dataclasses. Knows canonical names only, no aliases."""
    definitions: dict[str, Any] = {}
    sections: dict[str, Any] = {name: _section(options, name, definitions) for name, options in SECTIONS.items()}
    for name in ("model", "data"):
        sections[name] = {"anyOf": [{"type": "string"}, sections[name]]}
    for name in ("checks", "train"):  # a section may be there with everything in it commented out
        sections[name]["type"] = ["object", "null"]
    one = {"anyOf": [{"enum": list(method_names())}, *(_method(name, definitions) for name in method_names())]}
    definitions["method"] = one
    reference = {"$ref": "#/$defs/method"}
    sections["method"] = {"anyOf": [reference, {"type": "array", "items": reference, "minItems": 1}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Halter recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["model", "data"],
        "properties": {name: sections[name] for name in ORDER}
        | {"output_dir": {"type": ["string", "null"], "description": OUTPUT_DOC}},
        "$defs": definitions,
    }


def _section(options: type[Any], name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = TypeAdapter(options).json_schema(ref_template="#/$defs/{model}")
    definitions.update(schema.pop("$defs", {}))
    for key, entry in schema["properties"].items():
        entry.pop("title", None)
        entry["description"] = keys_of(options)[key].doc
    return {**schema, "title": name, "additionalProperties": False}


def _method(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = _section(method_class(name), name, definitions)
    beside = keys_of(MethodChoice)
    own = {
        "name": {"const": name, "description": beside["name"].doc},
        "init_from": {"type": ["string", "null"], "description": beside["init_from"].doc},
    }
    if name in PRESETS:
        for key, default in PRESETS[name]["method"].items():
            schema["properties"].get(key, {})["default"] = default.value
    return {**schema, "properties": own | schema["properties"], "required": ["name"]}
