"""Files that others must not read, or not write to."""

from __future__ import annotations

import os
from pathlib import Path

from halter.errors import Refusal


def refuse_open(path: Path, others: int = 0o077) -> None:
    """Refusal ``secret-open`` of a file that more than its owner may use; ``others``: the bits of its mode that must
    not be set."""
    mode = os.stat(path).st_mode & 0o777
    if os.name != "nt" and mode & others:  # Windows has no such bits
        may = " or ".join(word for word, bits in (("read", 0o044), ("write to", 0o022)) if mode & others & bits)
        raise Refusal(
            "secret-open",
            f"others than its owner may {may or 'run'} this file (mode {mode:04o})",
            where=str(path),
            fix=f"chmod {mode & ~others:o} {path}",
        )
