"""What a client is told of a request that cannot be answered: OpenAI's error object, all four keys, always."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from halter.errors import Refusal

MOST_FAULTS, MOST_LETTERS = 10, 200
"""Of what is wrong with a request so much is told: an answer may not grow with the mistakes in it."""
INVALID, RATE, SERVER = "invalid_request_error", "rate_limit_error", "server_error"
UNSUPPORTED = "unsupported_parameter"
INTERNAL = "the server failed; its log has the reason under the answer's x-request-id"

TOLD = {
    "prompt-empty": "",
    "prompt-tokens": "",
    "prompt-too-long": "context_length_exceeded",
    "generation-options": "",
    "messages-malformed": "",
    "no-chat-template": "",
    "template-drops-content": "",
    "template-failed": "",
    "template-pictures": "",
    "template-too-large": "",
    "template-too-slow": "",
    "template-unsupported": "",
    "picture-unusable": "",
    "schema-unusable": "",
    "pictures-many": "",
    "pictures-unseen": "",
    "cannot-weigh": "",
    "two-sights": "",
}
"""{id of a refusal that is the client's mistake: its code}. Others may name files, and are the server's."""
PLACED = ("schema-unusable",)
"""Those whose place is a field of the request."""


class Failure(Exception):
    """A request that gets an error: its status, and what stands in the error object."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.param, self.code, self.headers = status, type, param, code, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The answer's body."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}


def bad(message: str, param: str | None = None, code: str | None = None) -> Failure:
    """The client's mistake."""
    return Failure(400, message, INVALID, param, code)


def no_model(name: str) -> Failure:
    """A name that means nothing here, or nothing to who asks."""
    return Failure(404, f"the model {name[:MOST_LETTERS]!r} does not exist", INVALID, "model", "model_not_found")


def broken(name: str, why: str) -> Failure:
    """An adapter that is there and cannot be used; ``why`` is the id of a refusal, which names no file."""
    message = f"the adapter {name!r} cannot be used ({why}); the server's log says more"
    return Failure(400, message, INVALID, "model", "adapter_unusable")


def overloaded(message: str, seconds: int = 1) -> Failure:
    """The whole server has no room, or is about to end."""
    return Failure(503, message, SERVER, None, "overloaded", {"retry-after": str(seconds)})


def no_record(seconds: int) -> Failure:
    """Nothing is answered of which no record can be kept, now that the disk is full."""
    return overloaded("the server cannot keep its record of this request now, and does not answer without", seconds)


def too_many(message: str, seconds: int = 1) -> Failure:
    """Who asks has had its share."""
    return Failure(429, message, RATE, None, "rate_limit_exceeded", {"retry-after": str(seconds)})


def internal(message: str = INTERNAL) -> Failure:
    """Ours; nothing of what went wrong inside is told."""
    return Failure(500, message, SERVER)


def too_late(seconds: float) -> Failure:
    """A request that took longer than one may. Asking again would take as long."""
    again = {"x-should-retry": "false"}
    return Failure(504, f"not answered within {seconds:g} seconds", SERVER, None, "deadline_exceeded", again)


def of_refusal(refusal: Refusal, param: str | None) -> Failure | None:
    """What is told of a refusal; None: it is not the client's mistake."""
    if refusal.id not in TOLD:
        return None
    found = f": {listed(refusal.found)}" if refusal.found else ""
    expected = f" (expected: {refusal.expected})" if refusal.expected else ""
    param = refusal.where if refusal.id in PLACED else param
    return bad(
        f"{param}: {refusal.what}{found}{expected}" if param else f"{refusal.what}{found}{expected}",
        param,
        TOLD[refusal.id] or None,
    )


def listed(faults: Iterable[str]) -> str:
    """The first few of what is wrong, each cut."""
    every = list(faults)
    more = f"; and {len(every) - MOST_FAULTS} more" if len(every) > MOST_FAULTS else ""
    return "; ".join(one[:MOST_LETTERS] for one in every[:MOST_FAULTS]) + more
