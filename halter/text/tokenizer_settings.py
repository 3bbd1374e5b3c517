"""What the small files beside a tokenizer say: which tokens open, close and pad, where to stop, the chat template."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halter.errors import Refusal
from halter.files.reading import read_json, read_text
from halter.text.codecs.codec import Control

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
# Tokenizer classes that never open a text with BOS, though they name one, and those that always do.
WITHOUT_BOS = re.compile(r"(GPT2|Qwen2)Tokenizer(Fast)?")
WITH_BOS = re.compile(r"(Code)?LlamaTokenizer(Fast)?")
# A turn's end implies the text's end and the end of a message with more to come (Llama 3.1 and Llama 4).
FAMILY_STOPS = {"<|eot_id|>": ("<|end_of_text|>", "<|eom_id|>"), "<|eot|>": ("<|end_of_text|>", "<|eom|>")}

TAUGHT = {"<|eot|>": "llama-4"}
"""{a turn's end: the built-in template of every checkpoint that was taught to end its turns so}."""
MISNAMED = {"<|finetune_right_pad_id|>": "<|finetune_right_pad|>"}
"""{a token as files name it: as the vocabulary has it}. Hugging Face's converter gave Llama 4's pad token the name of
Llama 3's, which became a token of its own, 201134, in the place of one of Meta's for reasoning; config.json says
200018, which is the vocabulary's own (axolotl#2988)."""


@dataclass(frozen=True)
class Settings:
    """The folder's own words, not yet looked up in the vocabulary."""

    names: dict[str, str] = field(default_factory=dict)  # bos_token -> "<s>" and the like
    add_bos: bool | None = None
    tokenizer_class: str = ""
    added: tuple[Control, ...] = ()
    templates: dict[str, str] = field(default_factory=dict)
    generation_eos: tuple[int, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)


def read_settings(folder: Path, config: Mapping[str, Any] | None) -> Settings:
    """Read whatever is there; every file is optional. ``config``: the parsed config.json, read here if None."""

    def optional(name: str) -> dict[str, Any]:
        return read_json(folder / name) if (folder / name).is_file() else {}

    own, special = optional("tokenizer_config.json"), optional("special_tokens_map.json")
    names = {}
    for name in NAMES:
        token = _text(own.get(name)) or _text(special.get(name))
        if token:
            names[name] = token
    added = {int(id): entry for id, entry in (own.get("added_tokens_decoder") or {}).items()}
    controls = [
        Control(e["content"], id, **{k: bool(e[k]) for k in _FLAGS if k in e})
        for id, e in added.items()
        if isinstance(e, dict) and isinstance(e.get("content"), str)
    ]
    controls += [Control(t, int(id)) for t, id in optional("added_tokens.json").items() if int(id) not in added]
    add_bos = own.get("add_bos_token")
    model = dict(config) if config is not None else optional("config.json")
    inner = model.get("text_config")  # of a model with pictures, whose tokens are named there
    if isinstance(inner, dict):
        model = inner | {key: value for key, value in model.items() if value is not None}
    return Settings(
        names=names,
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        tokenizer_class=str(own.get("tokenizer_class") or ""),
        added=tuple(controls),
        templates=_templates(folder, own, optional("chat_template.json")),
        generation_eos=ids_of(optional("generation_config.json").get("eos_token_id")),
        config=model,
    )


_FLAGS = ("special", "lstrip", "rstrip", "single_word")


def _text(token: Any) -> str | None:
    """A token written as a string or as an object with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def ids_of(value: Any) -> tuple[int, ...]:
    """One id, a list of them or nothing, as the JSON files have it."""
    many = value if isinstance(value, list | tuple) else [value]
    return tuple(i for i in many if isinstance(i, int) and not isinstance(i, bool) and i >= 0)


def _templates(folder: Path, own: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, str]:
    """Named Jinja sources; files of their own win over the text inside tokenizer_config.json."""
    templates: dict[str, str] = {}
    for value in (processor.get("chat_template"), own.get("chat_template")):
        if isinstance(value, str):
            templates["default"] = value
        elif isinstance(value, list):
            named = [t for t in value if isinstance(t, dict) and {"name", "template"} <= t.keys()]
            templates |= {t["name"]: t["template"] for t in named}
    templates |= {path.stem: read_text(path) for path in (folder / "additional_chat_templates").glob("*.jinja")}
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = read_text(folder / "chat_template.jinja")
    return templates


def opening_id(settings: Settings, bos: int | None, eos: int | None, in_file: int | None) -> int | None:
    """The id that every sequence of this tokenizer begins with, or None if its model never saw one.

    Many tokenizers name a BOS token for form's sake (GPT-2's classes, and those where it equals EOS). ``in_file``: the
    one that the tokenizer's own file prescribes.
    """
    if settings.add_bos is not None:
        return (in_file if bos is None else bos) if settings.add_bos else None
    if in_file is not None:
        return in_file
    if WITHOUT_BOS.fullmatch(settings.tokenizer_class):
        return None
    return bos if bos != eos or WITH_BOS.fullmatch(settings.tokenizer_class) else None


def stop_ids(
    settings: Settings, eos: int | None, in_file: tuple[int, ...], token_id: Callable[[str], int | None]
) -> tuple[int, ...]:
    """generation_config.json's ids, then the tokenizer's, its file's and config.json's, each once.

    Where no generation_config.json names any, a turn's end brings its family's other stops along.
    """
    stops = [*settings.generation_eos, *(() if eos is None else (eos,)), *in_file]
    stops += ids_of(settings.config.get("eos_token_id"))
    if not settings.generation_eos:
        for turn_end, siblings in FAMILY_STOPS.items():
            if token_id(turn_end) in stops:
                stops += [id for s in siblings if (id := token_id(s)) is not None]
    return tuple(dict.fromkeys(stops))


def missing_tokenizer(folder: Path) -> Refusal:
    """Refusal ``tokenizer-missing``."""
    return Refusal(
        "tokenizer-missing",
        "holds no tokenizer",
        where=str(folder),
        expected="tokenizer.json or tokenizer.model",
        fix="copy the tokenizer files of the base model into the folder",
    )
