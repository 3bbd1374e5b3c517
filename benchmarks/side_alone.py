"""What the rows with several adapters are compared with: the same work of Halter's, one adapter at a time."""

from __future__ import annotations

from typing import Any

from side_halter import decode, several
from workloads import Setting, Work


def measure(work: Work, setting: Setting) -> dict[str, Any]:
    return several(work, setting, together=False) if work.kind == "several" else decode(work, setting, alike=True)
