"""What the audit log says of one request. docs/guide/audit.md has the line, field by field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from halter.serve.audit.seal import Seal

_FINISH = re.compile(r"[a-z_]+([,:][a-z_]+)*")
Text = str | Sequence[int]
"""A prompt or an answer as the model reads or writes it: text, or tokens."""


@dataclass(frozen=True)
class AuditedAdapter:
    """An adapter that had a part in an answer, and with which weight."""

    name: str
    digest: str
    method: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class AuditRecord:
    """A request that was answered, failed or was refused. What is not known of it is None or empty.

    ``key`` is the id of a key, never the key. ``finish`` is a word for each answer, ``stop,length``, or two words of
    which the second says why: ``refused:model_not_found``. ``times``: how many
    requests the line stands for. ``seconds`` are durations by name.
    ``prompts`` and ``outputs`` are given as they are, and only their HMACs are written.
    """

    request: str
    finish: str
    times: int = 1
    key: str | None = None
    tenant: str | None = None
    base: str | None = None
    storage: str | None = None
    adapters: tuple[AuditedAdapter, ...] = ()
    template: str | None = None
    tokenizer: str | None = None
    route: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    seed: int | None = None
    prompts: tuple[Text, ...] = field(default=(), repr=False)
    outputs: tuple[Text, ...] = field(default=(), repr=False)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _FINISH.fullmatch(self.finish):
            raise ValueError("finish is words with commas between, or two with a colon")

    def facts(self, seal: Seal) -> dict[str, Any]:
        """The fields of the line, without those that every line has."""
        return {
            "request": self.request,
            "key": self.key,
            "tenant": self.tenant,
            "base": self.base,
            "storage": self.storage,
            "adapters": [asdict(adapter) for adapter in self.adapters],
            "template": self.template,
            "tokenizer": self.tokenizer,
            "route": self.route,
            "options": {name: _without_texts(value, seal) for name, value in self.options.items()},
            "seed": self.seed,
            "prompt_hmac": [seal.of_text(text) for text in self.prompts],
            "output_hmac": [seal.of_text(text) for text in self.outputs],
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "finish": self.finish,
            "times": self.times,
            "seconds": self.seconds,
        }


def _without_texts(value: Any, seal: Seal) -> Any:
    """An option's value with an HMAC for each text: stop strings, schemas and tools are a client's words too."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_without_texts(one, seal) for one in value]
    return f"hmac:{seal.of_text(value if isinstance(value, str) else json.dumps(value, sort_keys=True))}"
