"""The kept process in which grammars are tried (trial.py says why)."""

from __future__ import annotations

import json
import time
from typing import Any

from halter.bounded import BoundedProcess, ready
from halter.generation.grammars import trial

PATIENCE_SECONDS = 30.0
"""Of wall time; the processor clock inside is what bounds a grammar."""


class GrammarTrials(BoundedProcess):
    """One process that compiles; safe between threads, replaced after a fork and after every death."""

    def __init__(self) -> None:
        super().__init__(trial.__file__)

    def fault(self, schemas: list[str], lark: str) -> tuple[int | None, str]:
        """(which of the schemas, None: all of them together, why it cannot be used); '' where it can."""
        with self.taken() as process:
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps({"schemas": schemas, "lark": lark}).encode() + b"\n")
                process.stdin.flush()
                if not ready(process.stdout, time.monotonic() + PATIENCE_SECONDS):
                    process.kill()
                line = process.stdout.readline()
                told: dict[str, Any] = json.loads(line)
            except (OSError, ValueError):  # it has ended in the middle
                self.end()
                return None, f"it takes more than {trial.SECONDS:g} s, or too much memory, to read it"
            except BaseException:  # an answer is half read: the next one would be taken for its rest
                self.end()
                raise
        return told.get("schema"), told.get("why", "")


trials = GrammarTrials()
"""The one of this Python process."""
