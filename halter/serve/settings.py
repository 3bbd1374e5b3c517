"""What whoever starts a server may choose, and the bounds that hold without a choice."""

from __future__ import annotations

import ipaddress
import math
import ssl
from dataclasses import dataclass
from pathlib import Path

from halter.errors import Refusal

BODY_SECONDS = 30.0
HEADER_BYTES, HEADER_SECONDS = 32 << 10, 15.0
KEEP_ALIVE = 5
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ServeOptions:
    """Options of a server. Refusals ``serve-options``, ``serve-exposed``, ``file-missing`` and ``tls-unusable``."""

    host: str = "127.0.0.1"
    """Address to listen on. Other than this machine's own need --keys, and TLS or --behind-proxy."""
    port: int = 8000
    """Port to listen on; 0: a free one, which is told."""
    name: str | None = None
    """What the base is called in requests; not given: the last part of MODEL."""
    rows: int = 32
    """Answers worked on in one step; others wait."""
    step_tokens: int = 4096
    """Tokens of one step, those of prompts among them: a smaller number lets answers go on more evenly while a long
    prompt is read."""
    queue: int = 256
    """Answers that may be worked on and wait together; more get 503."""
    queue_tokens: int = 262144
    """Tokens of prompts that may be worked on and wait together; more get 503."""
    prefix_gb: float = 1.0
    """Memory, on the model's device, for keys and values of prompts and answers that have ended: what begins alike is
    read from there. 0: none are kept."""
    connections: int = 512
    """Connections that may be open at once, with those that ask nothing; one more gets 503."""
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
    runs: tuple[str, ...] = ()
    """Run folder, or folder of these, whose curves the page shows (/ui/), besides those among --adapters."""
    no_page: bool = False
    """Leave the page out (/ui/)."""
    keys: Path | None = None
    """File of the keys that are let in (halter keys new). Not given: whoever is on this machine."""
    admin: Path | None = None
    """File that gets the address and the key of a second port, for this machine alone, on which adapters are listed,
    loaded, unloaded and reloaded. Not given: there is none."""
    admin_port: int = 0
    """That port; 0: a free one."""
    tls_cert: Path | None = None
    """File of the certificate with those that vouch for it (PEM): the server speaks TLS."""
    tls_key: Path | None = None
    """File of the certificate's key (PEM), without a password."""
    behind_proxy: bool = False
    """A proxy that speaks TLS stands before this address, and nobody else reaches it."""

    def __post_init__(self) -> None:
        positive = ("rows", "step_tokens", "queue", "queue_tokens", "connections", "adapter_gb", "deadline", "body_mb")
        given = {f"--{name.replace('_', '-')}": getattr(self, name) for name in positive}
        wrong = [f"{flag} {number}" for flag, number in given.items() if not 0 < number < math.inf]
        others = {"--drain": self.drain, "--prefix-gb": self.prefix_gb}
        wrong += [f"{flag} {number}" for flag, number in others.items() if not 0 <= number < math.inf]
        ports = (("--port", self.port), ("--admin-port", self.admin_port))
        wrong += [f"{name} {port}" for name, port in ports if not 0 <= port < 65536]
        wrong += ["--tls-cert without --tls-key"] if self.tls_cert and not self.tls_key else []
        wrong += ["--tls-key without --tls-cert"] if self.tls_key and not self.tls_cert else []
        if wrong:
            fix = "leave these out, or give numbers above 0, and both files of TLS"
            raise Refusal("serve-options", "options that a server cannot have", found=wrong, fix=fix)

    @property
    def hosts(self) -> frozenset[str]:
        """Names under which the server may be asked for, without ports."""
        return frozenset(name.lower() for name in (*LOOPBACK, self.host, *self.allow_host))

    def refuse_exposed(self) -> None:
        """Refusal ``serve-exposed`` where others than this machine could ask, and nobody would have to show a key, or
        keys would be read on their way."""
        if _is_loopback(self.host):
            return
        if self.keys is None:
            why, fix = "whoever reaches this address could ask: no keys are in force", "--keys FILE (halter keys new)"
        elif self.tls_cert is None and not self.behind_proxy:
            why = "keys would come to this address as anybody on the way can read them"
            fix = "--tls-cert FILE --tls-key FILE, or --behind-proxy where a proxy that speaks TLS stands before it"
        else:
            return
        expected = f"one of {', '.join(LOOPBACK)}"
        raise Refusal("serve-exposed", why, found=[f"--host {self.host}"], expected=expected, fix=fix)

    def refuse_missing_runs(self) -> None:
        """Refusal ``file-missing`` of folders of runs that are not there."""
        lost = [folder for folder in self.runs if not Path(folder).expanduser().is_dir()]
        if lost:
            what, fix = "there is no such folder of runs", "--runs names a run folder, or a folder of these"
            raise Refusal("file-missing", what, found=lost, fix=fix)

    def refuse_bad_tls(self) -> None:
        """Refusal ``tls-unusable`` of a certificate or a key that cannot be used."""
        if self.tls_cert is None:
            return
        try:
            # An empty password, so that nobody is asked for one.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.tls_cert, self.tls_key, lambda: "")
        except (OSError, ValueError) as error:  # those of ssl, too
            why = getattr(error, "strerror", None) or str(error)
            raise Refusal(
                "tls-unusable",
                "TLS cannot be spoken with this certificate and this key",
                found=[f"--tls-cert {self.tls_cert}", f"--tls-key {self.tls_key}", why],
                fix="name a certificate and its own key, both PEM, the key without a password",
            ) from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
