"""The process in which chat templates of strangers are rendered: kept between calls, killed when one goes too far.

Bounds per rendering: 1 s of processor time, 256 MiB of memory beyond what the process starts with, 1 MiB of text.
"""

from __future__ import annotations

import atexit
import os
import selectors
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from halter.errors import HalterError, Refusal
from halter.text.templates import rendering

PATIENCE_SECONDS = 60.0  # of wall time for one request; the processor clock inside is what bounds templates
_KEPT = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # no keys and tokens for a stranger's process

_START = (
    "import sys, runpy; sys.path[:] = {path!r}; sys.argv = [{file!r}]; runpy.run_path({file!r}, run_name='__main__')"
)


class Sandbox:
    """One worker process; safe between threads, replaced after a fork and after every death."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def run(self, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Jobs as rendering.serve takes them, one reply each. Refusal ``template-too-slow`` kills the worker."""
        if os.getpid() != self._owner:  # a fork's child shares the parent's pipes and must not speak through them
            self._lock, self._process, self._owner = threading.Lock(), None, os.getpid()
        with self._lock:
            process = self._worker()
            assert process.stdin is not None and process.stdout is not None
            try:
                rendering.send(process.stdin, list(jobs))
                replies: list[dict[str, Any]] = self._receive(process)
            except (EOFError, OSError):
                self._end()
                raise _death(process.returncode) from None
            if any(reply.get("kind") == "memory" for reply in replies):
                self._end()
            return replies

    def _receive(self, process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
        assert process.stdout is not None
        if os.name == "posix":
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                if not selector.select(PATIENCE_SECONDS):
                    process.kill()
            return rendering.receive(process.stdout)
        timer = threading.Timer(PATIENCE_SECONDS, process.kill)  # pipes of Windows cannot be waited for
        timer.start()
        try:
            return rendering.receive(process.stdout)
        finally:
            timer.cancel()

    def _worker(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            code = _START.format(path=[p for p in sys.path if p], file=rendering.__file__)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _KEPT if name in os.environ},
                start_new_session=os.name == "posix",  # Ctrl-C is for the person's process
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        try:
            process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End the worker, if this process started one."""
        if os.getpid() == self._owner:
            with self._lock:
                self._end()


def _death(code: int | None) -> Exception:
    if code is not None and code < 0:
        return Refusal(
            "template-too-slow",
            f"the chat template worked for more than {rendering.CPU_SECONDS:g} s of processor time",
            fix="use a built-in template (data.template: llama-3, llama-2, alpaca or vicuna) or fix the checkpoint's",
        )
    return HalterError(f"the process that renders chat templates ended with code {code}")


sandbox = Sandbox()
atexit.register(sandbox.close)
