"""The process in which chat templates of strangers are rendered: kept between calls, killed when one goes too far.

Bounds per rendering: 1 s of processor time, 256 MiB of memory beyond what the process starts with, 1 MiB of text.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

from halter.bounded import BoundedProcess, ready
from halter.errors import HalterError, Refusal
from halter.text.templates import rendering

PATIENCE_SECONDS = 60.0  # of wall time for one request; the processor clock inside is what bounds templates
AT_ONCE = 16
"""Jobs in one request. A conversation of n messages is about 1.5 n jobs of up to n messages: all of 1,000 messages' at
once would not fit into the process, and no other thread here goes on while they are written."""


class Sandbox(BoundedProcess):
    """One process that renders; safe between threads, replaced after a fork and after every death."""

    def __init__(self) -> None:
        super().__init__(rendering.__file__)

    def run(self, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Jobs as rendering.serve takes them, one reply each. Refusal ``template-too-slow`` kills the process."""
        return [reply for at in range(0, len(jobs), AT_ONCE) for reply in self._some(jobs[at : at + AT_ONCE])]

    def _some(self, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        with self.taken() as process:
            assert process.stdin is not None
            try:
                rendering.send(process.stdin, list(jobs))
                replies = _received(process)
            except (EOFError, OSError):
                self.end()
                raise _death(process.returncode) from None
            except BaseException:  # an answer is half read: the next one would be taken for its rest
                self.end()
                raise
            if any(reply.get("kind") == "memory" for reply in replies):
                self.end()
            return replies


def _received(process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    assert process.stdout is not None
    if os.name == "posix":
        if not ready(process.stdout, time.monotonic() + PATIENCE_SECONDS):
            process.kill()
        replies: list[dict[str, Any]] = rendering.receive(process.stdout)
        return replies
    timer = threading.Timer(PATIENCE_SECONDS, process.kill)  # pipes of Windows cannot be waited for
    timer.start()
    try:
        replies = rendering.receive(process.stdout)
    finally:
        timer.cancel()
    return replies


def _death(code: int | None) -> Exception:
    if code is not None and code < 0:
        return Refusal(
            "template-too-slow",
            f"the chat template worked for more than {rendering.CPU_SECONDS:g} s of processor time",
            fix="use a built-in template (data.template: llama-3, llama-2, alpaca or vicuna) or fix the checkpoint's",
        )
    return HalterError(f"the process that renders chat templates ended with code {code}")


sandbox = Sandbox()
"""The one of this Python process."""
