"""What whoever starts a server may choose, and the bounds that hold without a choice."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from halter.errors import Refusal

BODY_SECONDS = 30.0
HEADER_BYTES = 32 << 10
KEEP_ALIVE = 5
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ServeOptions:
    """Options of a server. Refusals ``serve-options`` and ``serve-exposed``."""

    host: str = "127.0.0.1"
    """Address to listen on. Other than this machine's own are refused as long as no keys are in force."""
    port: int = 8000
    """Port to listen on; 0: a free one, which is told."""
    name: str | None = None
    """What the base is called in requests; not given: the last part of MODEL."""
    rows: int = 32
    """HeardAnswers worked on in one step; others wait."""
    step_tokens: int = 4096
    """Tokens of one step, those of prompts among them: a smaller number lets answers go on more evenly while a long
    prompt is read."""
    queue: int = 256
    """HeardAnswers that may be worked on and wait together; more get 503."""
    queue_tokens: int = 262144
    """Tokens of prompts that may be worked on and wait together; more get 503."""
    adapter_gb: float = 4.0
    """Memory for adapters; those that were asked for longest ago go first, never one in use."""
    deadline: float = 600.0
    """Seconds that a request may take."""
    drain: float = 30.0
    """Seconds that answers may still take when the server is told to stop."""
    body_mb: float = 4.0
    """Longest body of a request."""
    allow_host: tuple[str, ...] = ()
    """Names under which the server may be asked for (Host), besides this machine's own."""
    allow_origin: tuple[str, ...] = ()
    """Pages of other servers that may ask (Origin), such as https://chat.example.org."""

    def __post_init__(self) -> None:
        positive = ("rows", "step_tokens", "queue", "queue_tokens", "adapter_gb", "deadline", "body_mb")
        wrong = [f"--{name.replace('_', '-')} {getattr(self, name)}" for name in positive if getattr(self, name) <= 0]
        wrong += [f"--drain {self.drain}"] if self.drain < 0 else []
        wrong += [f"--port {self.port}"] if not 0 <= self.port < 65536 else []
        if wrong:
            fix = "leave these out, or give numbers above 0"
            raise Refusal("serve-options", "options that a server cannot have", found=wrong, fix=fix)

    @property
    def hosts(self) -> frozenset[str]:
        """Names under which the server may be asked for, without ports."""
        return frozenset(name.lower() for name in (*LOOPBACK, self.host, *self.allow_host))

    def refuse_exposed(self, keys: bool) -> None:
        """Refusal ``serve-exposed`` where others than this machine could ask and nobody would have to show a key."""
        if not keys and not _is_loopback(self.host):
            raise Refusal(
                "serve-exposed",
                "whoever reaches this address could ask: no keys are in force",
                found=[f"--host {self.host}"],
                expected=f"one of {', '.join(LOOPBACK)}",
                fix="leave --host out, and let a proxy on this machine ask for keys",
            )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
