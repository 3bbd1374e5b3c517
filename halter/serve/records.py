"""What became of a request, as a plain record for whoever keeps one (an audit log, counters)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from halter.generation.streaming import Generation
from halter.serve.errors import Failure
from halter.serve.tenants import Tenant

Keep = Callable[[dict[str, Any]], None]
"""Called in a thread with the record of every finished, failed or refused request, before its answer's last byte is
sent. What it raises makes the answer an error."""


@dataclass
class Record:
    """One request as it is worked on; ``told`` is what ``Keep`` gets."""

    request_id: str
    route: str
    tenant: Tenant
    received: float = field(default_factory=time.time)
    id: str = ""
    """Of the answer: chatcmpl-... or cmpl-..."""
    model: str = ""
    adapters: list[dict[str, Any]] = field(default_factory=list)
    """{name, digest, methods, weight} of each that answers."""
    template: str | None = None
    """SHA-256 of the template in which it was asked."""
    options: dict[str, Any] = field(default_factory=dict)
    prompts: Sequence[Sequence[int]] = ()
    """Token ids of each prompt."""
    answers: Sequence[Generation] = ()
    status: int = 200
    error: str = ""
    """Type or code of the error that was told; '' where none was."""
    first: float | None = None
    """When the first token was there."""

    def failed(self, failure: Failure) -> None:
        """It was refused, or could not be answered."""
        self.status, self.error = failure.status, failure.code or failure.type

    def told(self) -> dict[str, Any]:
        """The record, of plain values; token ids and texts are for a digest of them, not to be kept."""
        return {
            "request_id": self.request_id,
            "id": self.id,
            "route": self.route,
            "tenant": self.tenant.name,
            "key": self.tenant.key,
            "model": self.model,
            "adapters": self.adapters,
            "template": self.template,
            "options": self.options,
            "status": self.status,
            "error": self.error,
            "finish": [one.finish_reason for one in self.answers],
            "prompt_tokens": sum(map(len, self.prompts)),
            "completion_tokens": sum(len(one.tokens) for one in self.answers),
            "prompts": [list(one) for one in self.prompts],
            "outputs": [one.text for one in self.answers],
            "received": self.received,
            "first_token": self.first,
            "ended": time.time(),
        }
