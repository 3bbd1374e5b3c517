"""From what a server tells of a request (``serve/records.py``) to its line in the audit log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from halter.serve.audit.log import AuditLog
from halter.serve.audit.record import AuditedAdapter, AuditRecord
from halter.serve.records import Keep

OURS = 500
"""From this status on a request failed; below, it was refused."""
GONE = "client_gone"
"""The error of a request that nobody waits for any more."""


@dataclass(frozen=True)
class AuditedBase:
    """What all requests of a server have in common: digests of base and tokenizer, and how weights are stored. None for
    what is not known."""

    digest: str | None = None
    storage: str | None = None
    tokenizer: str | None = None


def keeping(log: AuditLog, base: AuditedBase) -> Keep:
    """What writes a line for each record that a server tells. Raises what ``AuditLog.write`` raises."""

    def keep(told: dict[str, Any]) -> None:
        log.write(line_of(told, base))

    return keep


def line_of(told: dict[str, Any], base: AuditedBase) -> AuditRecord:
    """A record of a server, as the audit log has it. Several methods of one adapter are joined by +."""
    began, first = told["received"], told["first_token"]
    seconds = {"total": told["ended"] - began} | ({} if first is None else {"first_token": first - began})
    adapters = [
        AuditedAdapter(one["name"], one["digest"], "+".join(one["methods"]), one["weight"]) for one in told["adapters"]
    ]
    return AuditRecord(
        request=told["request_id"],
        finish=_finish(told),
        times=told["times"],
        key=told["key"] or None,
        tenant=told["tenant"] or None,
        base=base.digest,
        storage=base.storage,
        adapters=tuple(adapters),
        template=told["template"],
        tokenizer=base.tokenizer,
        options={name: value for name, value in told["options"].items() if name != "seed"},
        seed=told["options"].get("seed"),
        prompts=tuple(told["prompts"]),
        outputs=tuple(told["outputs"]),
        prompt_tokens=told["prompt_tokens"],
        cached_tokens=told["cached_tokens"],
        output_tokens=told["completion_tokens"],
        seconds=seconds,
    )


def _finish(told: dict[str, Any]) -> str:
    if told["error"]:
        what = "failed" if told["status"] >= OURS else "refused" if told["error"] != GONE else "cancelled"
        return f"{what}:{told['error']}"
    return ",".join(told["finish"]) or "none"
