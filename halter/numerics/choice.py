"""Which of several ways to compute the same numbers is quick here: a short measurement on this machine decides, never
the name of a processor.

A ``Choice`` has a default, which is the way that is sound everywhere, and is left only for a way that takes at least
``MARGIN`` less time. Ways may round otherwise, so choices serve generation alone, where the promise is of tokens and
not of bits; training and evaluation always go the same way, and a resumed run computes what the whole one did.

Measured is on one thread by that thread's own clock, which programs beside it leave alone, in turns, and the shortest
time counts. What was measured stays for the process and, where somebody gave a shelf, for the next one.
HALTER_MEASURE=0 measures nothing and takes every default.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch

MARGIN = 0.15
ROUNDS, LEAST_ROUNDS, SECONDS = 7, 3, 0.03
"""Turns of every way, at most and at least; after ``SECONDS`` no further turn begins."""
BUDGET = 1.0
"""Seconds after which a process measures no further question: its default is taken, and the next process asks again."""
Times = Mapping[str, float]
_ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "HALTER_NF4",
)


@dataclass(frozen=True)
class Choice:
    """One question. ``trials()`` gives what to run for each way, on data of its own."""

    name: str
    default: str
    ways: tuple[str, ...]
    trials: Callable[[], Mapping[str, Callable[[], object]]]


class TimesStore(Protocol):
    """Where times outlive the process; neither of the two may raise."""

    def read(self, machine: str) -> Mapping[str, Times]: ...

    def add(self, machine: str, name: str, times: Times) -> None: ...


_known: dict[str, dict[str, Times]] = {}
_picked: dict[tuple[str, tuple[str, ...]], str] = {}
_FINE = time.get_clock_info("thread_time").resolution < 1e-5
_shelf: list[TimesStore] = []
_spent: list[float] = []
"""Seconds of each measurement of this process."""


def keep_on(store: TimesStore) -> None:
    """Look for times on ``store`` first, and put there what is measured from now on."""
    if _shelf != [store]:
        forget()
        _shelf[:] = [store]


def forget() -> None:
    """What was measured and picked, the time that took, and the shelf."""
    _shelf.clear()
    _known.clear()
    _picked.clear()
    _spent.clear()


def rows_of(x: torch.Tensor, most: int) -> int:
    """Rows of x [..., width] where there is a choice at all: 1 to ``most`` of bf16, on a CPU, in inference; else 0."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():  # in this order: a compiler asks no mode
        return 0
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return 0
    rows = x.numel() // max(1, x.shape[-1])
    return rows if rows <= most else 0


def pick(choice: Choice, *without: str) -> str:
    """The way to go, of those that are not in ``without``."""
    asked = choice.name, without
    if asked not in _picked:
        measured = {} if os.environ.get("HALTER_MEASURE") == "0" else times(choice)
        able = {way: seconds for way, seconds in measured.items() if way not in without}
        _picked[asked] = decide(able, choice.default)
    return _picked[asked]


def decide(found: Times, default: str) -> str:
    """The way of the shortest time, where that is worth leaving the default."""
    quickest = min(found, key=lambda way: found[way], default=default)
    return quickest if found.get(quickest, math.inf) < (1 - MARGIN) * found.get(default, math.inf) else default


def times(choice: Choice) -> Times:
    """Seconds of every way: known, from the shelf, or measured now; {} where ``BUDGET`` is spent. A way that cannot be
    gone takes for ever."""
    here = machine()
    if here not in _known:
        _known[here] = {name: found for store in _shelf for name, found in store.read(here).items()}
    found = _known[here].get(choice.name)
    if found is None or set(found) != set(choice.ways):
        if sum(_spent) >= BUDGET:
            return {}
        found = _known[here][choice.name] = measure(choice.trials())
        for store in _shelf:
            store.add(here, choice.name, found)
    return found


def measure(trials: Mapping[str, Callable[[], object]]) -> Times:
    """The shortest time of each, on one thread."""
    threads = torch.get_num_threads()
    best = dict.fromkeys(trials, math.inf)
    torch.set_num_threads(1)
    start = clock()
    try:
        with torch.inference_mode():
            able = [way for way, run in trials.items() if _runs(run)]
            began = clock()
            for turn in range(ROUNDS):
                if turn >= LEAST_ROUNDS and clock() - began > SECONDS or turn and clock() - start > BUDGET:
                    break
                for way in able:
                    before = clock()
                    trials[way]()
                    best[way] = min(best[way], clock() - before)
    finally:
        torch.set_num_threads(threads)
        _spent.append(clock() - start)
    return best


def clock() -> float:
    """Seconds of this thread's own time, where the system counts that finely."""
    return time.thread_time() if _FINE else time.perf_counter()


def _runs(run: Callable[[], object]) -> bool:
    """Whether a way can be gone here at all: inner functions of a library may be missing, or refuse this machine."""
    try:
        run()
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return True


def machine() -> str:
    """What a measurement depends on: the processor and what it can, torch, and what the environment takes from both."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return f"{_processor()} {json.dumps(environment, sort_keys=True)}"


@cache
def _processor() -> str:
    try:
        able: dict[str, Any] = dict(torch.cpu.get_capabilities())
    except (AttributeError, RuntimeError):  # an older torch, another kind of CPU
        able = {}
    name = able.get("cpu_name") or platform.processor() or platform.machine()
    digest = hashlib.sha256(json.dumps(able, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return f"{name} {digest} torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
