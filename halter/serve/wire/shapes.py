"""What the ways of asking have in common, from fields to the wire."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from halter.generation.requests import One, Party, Request
from halter.generation.streaming import Delta, Generation
from halter.model.decoder import Decoder
from halter.pretrained.digest import BaseDigest
from halter.serve.wire.fields import SamplingFields
from halter.serve.wire.prompts import Speaking
from halter.text.tokenizer import Tokenizer
from halter.version import __version__

FINISH = {"stop": "stop", "length": "length", "context": "length"}
"""OpenAI's words; that the context was full is told in the answer's ``halter``."""


@dataclass(frozen=True)
class ServedBase:
    """What every model of this server stands on."""

    name: str
    model: Decoder
    tokenizer: Tokenizer
    speaking: Speaking
    digest: str = ""
    """The base's own (pretrained.digest); '' where it is not known."""
    digesting: Future[BaseDigest] | None = None
    """What makes it beside the serving, where it was not known at the start."""

    def digest_now(self) -> str | None:
        """The digest as far as it is known by now; for what is told, while ``digest`` stays as it was at the start."""
        made = self.digesting
        if self.digest or made is None or not made.done() or made.exception() is not None:
            return self.digest or None
        return made.result().digest


@dataclass(frozen=True)
class Who:
    """Who answers a request: the base, with what stands beside it."""

    model: str
    """The name by which it was asked for."""
    speaking: Speaking
    tenant: str
    """Who asks."""
    adapter: One = None
    adapters: tuple[dict[str, Any], ...] = ()
    """{name, digest, methods, weight} of each."""

    @property
    def party(self) -> Party:
        """What the engine is to count its work under, and to keep what was computed under."""
        template = self.speaking.template
        each = tuple((one["digest"], one["weight"]) for one in self.adapters)
        return Party(self.tenant, each, "" if template is None else template.digest)

    @property
    def header(self) -> str:
        """The adapters' names and versions in one line."""
        return ",".join(f"{one['name']}@{one['digest'][:8]}" for one in self.adapters)


class AnswerStream(Protocol):
    """An answer's events, one after the other; ``head`` is what each begins with."""

    head: dict[str, Any]

    def opening(self) -> list[dict[str, Any]]: ...

    def piece(self, place: int, delta: Delta) -> list[dict[str, Any]]: ...


class Shape(Protocol):
    """One way of asking: its route, its fields, and how its answers look."""

    route: str
    prefix: str
    fields: type[Any]

    def requests(self, base: ServedBase, who: Who, asked: Any) -> list[Request]:
        """What the engine is asked, ``n`` for each prompt. For a thread; refusals of prompts and options."""
        ...

    def body(self, base: ServedBase, asked: Any, head: dict[str, Any], answers: Sequence[Generation]) -> dict[str, Any]:
        """A whole answer. For a thread."""
        ...

    def stream(self, base: ServedBase, asked: Any, head: dict[str, Any]) -> AnswerStream: ...


def head_of(id: str, object: str, who: Who) -> dict[str, Any]:
    """What every answer, and every event of one, begins with."""
    known = {"id": id, "object": object, "created": int(time.time()), "model": who.model}
    return {**known, "system_fingerprint": f"halter-{__version__}"}


def usage_of(asked: SamplingFields, answers: Sequence[Generation]) -> dict[str, Any]:
    """Tokens: each prompt counts once, whatever ``n``."""
    given = sum(len(one.prompt_tokens) for one in answers[:: asked.n])
    made = 0 if asked.silent else sum(len(one.tokens) for one in answers)
    details = {"cached_tokens": sum(one.cached_tokens for one in answers[:: asked.n])}
    total = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    return {**total, "prompt_tokens_details": details}


def beside(who: Who, answers: Sequence[Generation]) -> dict[str, Any]:
    """The answer's ``halter``: which version of which adapter answered, and whose context was full."""
    full = [place for place, one in enumerate(answers) if one.finish_reason == "context"]
    return {"adapters": list(who.adapters), **({"context_full": full} if full else {})}
