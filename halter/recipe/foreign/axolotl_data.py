"""Axolotl's `datasets`: a list of {path, type, data_files, ...}, and what its types mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halter.data import options
from halter.data.turns import ROLES, SWITCHES
from halter.recipe.foreign import common, rows
from halter.recipe.foreign.tables import ForeignRecipe, Unlike, word

OWN = ("tokenizer_default", "", None)
"""Templates that are the checkpoint's own."""
KINDS = ("json", "jsonl", "csv", "parquet", "text", "arrow")
KNOWN = frozenset(
    {
        "path",
        "type",
        "data_files",
        "ds_type",
        "name",
        "split",
        "trust_remote_code",
        "chat_template",
        "field",
        "message_property_mappings",
        "message_field_role",
        "message_field_content",
        "message_field_training",
        "roles_to_train",
        "train_on_eos",
        "revision",
        "conversation",
        "chat_template_jinja",
        "roles",
    }
)
USUAL: dict[str, tuple[Any, ...]] = {
    "split": ("train",),
    "train_on_eos": ("turn",),
    "revision": ("main",),
}
"""Values of a source's keys that ask for what happens here anyway."""
SAID = {"role": ("role", "from"), "content": ("content", "value")}
"""The keys of a turn under which what it says, and who, is found here."""
FIELDS = {"field_messages": ("messages", "conversations"), "field_system": ("system",), "field_tools": ("tools",)}
"""{a key that names a column: the names under which it is found anyway}."""


def together(reading: ForeignRecipe) -> None:
    """The sources, their columns, and the template; held-out rows."""
    named, templates, cast = [], [], []
    sources = _listed(reading, "datasets")
    found = []
    for one in sources:
        found.append({"path": _path(reading, one)})
        columns, template = _kind(reading, one)
        named.append(columns)
        templates.append(template)
        cast.append(_speakers(reading, one))
    rows.give(reading, "datasets", found)
    rows.columns(reading, "datasets", named)
    rows.roles(reading, "datasets", cast)
    _template(reading, [one for one in templates if one is not None])
    tests = _listed(reading, "test_datasets")
    share = reading.number("val_set_size", 0)
    if tests:
        rows.give(reading, "test_datasets", [{"path": _path(reading, one)} for one in tests], "validation")
    elif 0 < share < 1:
        reading.take("val_set_size", "data", "validation", share)
    elif share >= 1:
        reading.lose("val_set_size", "a number of rows; a share below 1 is held out here")
        reading.need("data.validation", f"a file of about {share:g} rows, or a share below 1")
    if "val_set_size" in reading.given and "val_set_size" not in (*reading.read, *reading.lost):
        reading.idle["val_set_size"] = "nothing is held out by it"
    _tokens(reading)


def _listed(reading: ForeignRecipe, key: str) -> list[Mapping[str, Any]]:
    held = reading.get(key) or []
    listed = [held] if isinstance(held, Mapping) else held
    if not isinstance(listed, list) or not all(isinstance(one, Mapping) and one.get("path") for one in listed):
        raise Unlike(f"{key}: expected a list of mappings with a path each")
    return listed


def _path(reading: ForeignRecipe, one: Mapping[str, Any]) -> str:
    path, files = word(one["path"]), one.get("data_files")
    listed = files if isinstance(files, list) else [files] if files else []
    if listed:
        first = word(listed[0])
        path = first if path in KINDS else str(Path(path) / first)
        if len(listed) > 1:
            reading.lose("datasets.data_files", f"the first of {len(listed)} is read; name each as a source of its own")
    elif one.get("name"):
        path = f"{path}:{one['name']}"
    for key, usual in USUAL.items():
        if one.get(key) is not None and one[key] not in usual:
            reading.lose(f"datasets.{key}", f"{one[key]} has no equal here")
    for key in one:
        if key not in KNOWN and key not in FIELDS and one[key] is not None and key != f"field_{one[key]}":
            reading.lose(f"datasets.{key}", "has no equal here")
    return rows.exists(path, reading.folder)


def _kind(reading: ForeignRecipe, one: Mapping[str, Any]) -> tuple[dict[str, str], Any]:
    """(columns, template: a name, None where the source says nothing of one) of a source's type."""
    kind = one.get("type")
    if isinstance(kind, Mapping):
        return _own(reading, kind), None
    kind = str(kind or "")
    head = kind.split(".")[0].split(":")[0]
    if head == "alpaca":
        return {}, "alpaca"
    if head in ("chat_template", "sharegpt"):
        _turns(reading, one)
        columns = {}
        for key, found in FIELDS.items():
            if one.get(key) and one[key] not in found:
                columns[found[0]] = word(one[key])
        return columns, one.get("chat_template") or ("vicuna" if one.get("conversation") == "vicuna_v1.1" else None)
    if head in ("completion", "pretrain"):
        field = one.get("field") or "text"
        return ({} if field == "text" else {"text": word(field)}), None
    if head:
        reading.need("data.columns", f"what is asked and what is learned of the rows that Axolotl reads as {kind}")
    return {}, None


def _turns(reading: ForeignRecipe, one: Mapping[str, Any]) -> None:
    """What a turn's keys are called; those that are not read are told one by one."""
    said = one.get("message_property_mappings") or {}
    if not isinstance(said, Mapping):
        reading.lose("datasets.message_property_mappings", f"{said}: expected a mapping")
        said = {}
    asked = {f"datasets.message_property_mappings.{key}": (key, said[key]) for key in said}
    asked |= {
        f"datasets.message_field_{key}": (key, one[f"message_field_{key}"])
        for key in SAID
        if one.get(f"message_field_{key}") is not None
    }
    for theirs, (key, value) in asked.items():
        if value not in SAID.get(key, (key,)):
            reading.lose(theirs, f"{value}: a turn's {key} stands here under {' or '.join(SAID.get(key, (key,)))}")
    switch = one.get("message_field_training")
    if switch is not None and switch not in SWITCHES:
        reading.lose("datasets.message_field_training", f"{switch}: it stands here under {' or '.join(SWITCHES)}")


def _speakers(reading: ForeignRecipe, one: Mapping[str, Any]) -> dict[str, str]:
    """{a speaker's name: our role} of a source's roles, {role: its names}; and whether those that are learned there
    are the ones here."""
    held = one.get("roles") or {}
    cast: dict[str, str] = {}
    for role, names in held.items() if isinstance(held, Mapping) else ():
        ours = ROLES.get(str(role).lower())
        if ours not in options.ROLES or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            reading.lose(
                f"datasets.roles.{role}", f"{names}: roles here are {', '.join(options.ROLES)}, each with names"
            )
            continue
        cast |= dict.fromkeys(names, ours)
    if held and not isinstance(held, Mapping):
        reading.lose("datasets.roles", f"{held}: expected a mapping")
    learned = one.get("roles_to_train")
    if learned is not None:
        known = ROLES | {name.lower(): role for name, role in cast.items()}
        asked = {known.get(str(name).lower()) for name in (learned if isinstance(learned, list) else [learned])}
        if asked != {"assistant"}:
            reading.lose("datasets.roles_to_train", f"{learned}: the assistant's answers are learned here")
    return cast


def _own(reading: ForeignRecipe, kind: Mapping[str, Any]) -> dict[str, str]:
    """A prompt of the user's own: a row template where there is a format, with this data's columns in it."""
    fields = {
        "instruction": str(kind.get("field_instruction") or "instruction"),
        "input": str(kind.get("field_input") or "input"),
        "output": str(kind.get("field_output") or "output"),
        "system": str(kind.get("field_system") or "system"),
    }
    form = kind.get("format") or kind.get("no_input_format") or "{instruction} {input} "
    text = word(form).replace("{", "{{").replace("}", "}}")
    for name, column in fields.items():
        text = text.replace("{{" + name + "}}", "{" + column + "}")
    reading.take("datasets", "data", "row_template", text, "the format of its type")
    for key in ("no_input_format", "system_prompt", "system_format"):
        if kind.get(key) and kind[key] != form and not (key == "system_format" and kind[key] == "{system}"):
            reading.lose(f"datasets.type.{key}", "one text makes every row's prompt here: format")
    return {"completion": fields["output"]}


def _template(reading: ForeignRecipe, named: list[Any]) -> None:
    """One template writes every row here."""
    whole = reading.get("chat_template")
    if isinstance(whole, str) and whole.startswith("tokenizer_default"):
        reading.idle["chat_template"] = "the checkpoint's own is used anyway"
        whole = None
    jinja = reading.get("chat_template_jinja")
    wanted = list(dict.fromkeys(name for name in named if name not in OWN)) or [whole]
    if len(wanted) > 1:
        reading.lose("datasets", f"templates {', '.join(map(str, wanted))}: one writes every row here")
    name = wanted[0]
    if jinja is not None and name in (None, "jinja"):
        if "\n" in word(jinja) or "{" in jinja:
            reading.need("data.template", "a file with the text of chat_template_jinja")
        else:
            reading.take("chat_template_jinja", "data", "template", jinja)
        name = None
    if name not in OWN:
        common.template(reading, "chat_template" if name == whole else "datasets", name)
    for key in ("chat_template", "chat_template_jinja"):
        if key in reading.given and not any(key in told for told in (reading.read, reading.idle, reading.lost)):
            reading.idle[key] = "the data set's own template counts" if reading.get(key) else "empty"


def _tokens(reading: ForeignRecipe) -> None:
    held = reading.get("special_tokens")
    if "special_tokens" not in reading.given:
        return
    other = [key for key in held if key != "pad_token"] if isinstance(held, Mapping) else []
    if other:
        reading.lose("special_tokens", f"{', '.join(map(str, other))}: the tokenizer stays as it is")
    else:
        reading.idle["special_tokens"] = "no row is padded"
