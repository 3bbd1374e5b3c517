"""One task done to many items in several processes, where there is enough of it to be worth them.

The processes are forked, so that a script needs no guard and nothing of the task is copied; they are not used where a
fork is not safe: beside other threads, after CUDA was started, or on systems without it. A process that dies costs
time, no item: what it did not answer is done by the caller. When the caller dies they end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")
CHUNK = 128
WORTH_BYTES = 8 << 20
"""Data from which on the processes' start is worth its time: some seconds of tokenising."""
MOST = 8


def useful(size: int) -> int:
    """How many processes to use on so many bytes of data; 0: none."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    torch = sys.modules.get("torch")
    alone = sum(not getattr(thread, "beside_forks", False) for thread in threading.enumerate()) == 1
    safe = alone and (torch is None or not torch.cuda.is_initialized())
    return min(cores, MOST) if size >= WORTH_BYTES and cores > 1 and safe else 0


def mapped(task: Callable[[T], Any], items: Iterator[T], count: int) -> Generator[tuple[T, Any], None, None]:
    """(item, ``task(item)``) in the order of the items; None in place of a result where the caller has to do it
    himself: without processes, where the task raised, or where its process died."""
    if not count:
        yield from ((item, None) for item in items)
        return
    links: list[Connection] = []
    processes = []
    try:
        for _ in range(count):
            here, there = get_context("fork").Pipe()
            process = get_context("fork").Process(target=_serve, args=(task, there, [*links, here]), daemon=True)
            with warnings.catch_warnings():  # of threads, which were looked for
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            there.close()
            links.append(here)
            processes.append(process)
        yield from _rounds(links, items)
    finally:
        for link in links:
            link.close()
        for process in processes:
            process.join(1.0)
            if process.is_alive():
                process.kill()
                process.join()


def _rounds(links: Sequence[Connection], items: Iterator[T]) -> Iterator[tuple[T, Any]]:
    """Every process has one chunk at a time, so that neither side can wait for the other to read."""
    chunks = iter(lambda: list(islice(items, CHUNK)), [])
    waiting: deque[tuple[Connection | None, list[T]]] = deque()
    for link in links:
        _send(link, next(chunks, []), waiting)
    ahead = next(chunks, [])
    while waiting:
        worker, chunk = waiting.popleft()
        results = [None] * len(chunk)
        try:
            if worker is not None:
                results = worker.recv()
        except (EOFError, OSError):
            worker = None
        _send(worker, ahead, waiting)
        ahead = next(chunks, []) if ahead else []
        yield from zip(chunk, results, strict=True)


def _send(link: Connection | None, chunk: list[T], waiting: deque[tuple[Connection | None, list[T]]]) -> None:
    if not chunk:
        return
    try:
        if link is not None:
            link.send(chunk)
    except OSError:
        link = None
    waiting.append((link, chunk))


def _serve(task: Callable[[Any], Any], link: Connection, others: Sequence[Connection]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the person's process, which ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:  # of the caller and its other processes: held open here they would never end
        other.close()
    try:
        while True:
            link.send([_attempt(task, item) for item in link.recv()])
    except (EOFError, OSError):
        return


def _attempt(task: Callable[[Any], Any], item: Any) -> Any:
    try:
        return task(item)
    except Exception:  # the caller meets it again and knows what to do
        return None
