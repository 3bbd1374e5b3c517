"""Where Halter keeps what it can compute again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """HALTER_CACHE, else ~/.cache/halter."""
    named = os.environ.get("HALTER_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "halter"
