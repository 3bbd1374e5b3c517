"""Records and logs for the tests of the audit log, and what `halter audit verify` finds in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halter.serve.audit import seal
from halter.serve.audit.head import read_head
from halter.serve.audit.lines import log_files
from halter.serve.audit.log import AuditLog, apart
from halter.serve.audit.options import AuditOptions
from halter.serve.audit.record import AuditedAdapter, AuditRecord
from halter.serve.audit.walk import Walked, walk

PROMPT = "What is the secret of the lighthouse?"
OUTPUT = "It is painted anew each spring."
QUICK = AuditOptions(sync="never")
NOON = 1_790_000_000.0


def record(n: int = 1, **more: Any) -> AuditRecord:
    adapter = AuditedAdapter("law", "ab" * 32, "lora", 1.0)
    given: dict[str, Any] = {"prompts": (PROMPT,), "outputs": (OUTPUT,), "adapters": (adapter,), "finish": "stop"}
    return AuditRecord(request=f"req-{n}", **(given | more))


def write(folder: Path, lines: int, file_bytes: int = 1 << 20) -> list[Path]:
    """A log of so many lines; its files."""
    with AuditLog(folder, options=AuditOptions(sync="never", file_bytes=file_bytes), clock=lambda: NOON) as log:
        for n in range(1, lines + 1):
            assert log.write(record(n)) == n
    return [path for _, path in log_files(folder)]


def verified(folder: Path) -> Walked:
    beside = apart(folder)
    return walk(log_files(folder), seal.read(beside), read_head(beside))


def kinds(folder: Path) -> list[str]:
    return [damage.kind for damage in verified(folder).damages]
