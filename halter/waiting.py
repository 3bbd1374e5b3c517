"""How long torch's threads wait for one another by spinning; told to their libraries before these are loaded.

An OpenMP team meets after every parallel piece of work, and whoever is there first spins: in GNU's library, which
torch's wheels for Linux bring along, for 300,000 turns (some milliseconds). Where another program has one of the cores,
the team waits for the thread that has none, and by waiting keeps busy the core on which that thread could run: beside
one busy core a run took 5 to 20 times as long. Threads that sleep at once cost a tenth of a quiet machine's speed, so
they spin for a tenth of a millisecond.

Variables are read when the library is loaded, so ``import halter`` sets them; where torch was imported before, it is
too late. Nothing is set against a variable of the user's. Imports nothing but what Python has loaded anyway.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping

TURNS = {"GenuineIntel": 2600, "aarch64": 100_000, "": 5000}
"""Turns of GNU's loop that take 0.12 ms: on a Zen 4 one takes 25 ns (measured), on Intel since Skylake 140 cycles (its
optimisation manual), on ARM about one ns (the library's loop is empty there; estimated)."""


def turns(cpuinfo: str = "/proc/cpuinfo") -> int:
    """Turns for this processor."""
    machine = os.uname().machine if sys.platform != "win32" else ""
    try:
        with open(cpuinfo, "rb", buffering=0) as lines:  # its first processor; all of them take longer
            begins = lines.read(512).decode("ascii", "replace")
    except OSError:
        begins = ""
    return next(count for name, count in TURNS.items() if name == machine or name in begins)


WANTED = {"GOMP_SPINCOUNT": str(turns()), "KMP_BLOCKTIME": "1"}
"""{variable: value}. GNU's, and LLVM's and Intel's, which torch has on macOS, on Windows or from conda: milliseconds,
200 where nobody sets it. Each is read by its own library alone."""
THEIRS = (*WANTED, "OMP_WAIT_POLICY", "KMP_LIBRARY")
"""Who sets one of these has decided how threads wait."""
MARK = "HALTER_WAITING"
"""What Halter set, for the processes that inherit it; `off` from outside: nothing is set."""


def shorten(environ: MutableMapping[str, str], loaded: bool) -> str:
    """Set WANTED where it is not too late (``loaded``: torch is there) and nobody has decided; returns ``how``."""
    found = how(environ, loaded)
    if found == "halter" and MARK not in environ:
        environ.update(WANTED)
        environ[MARK] = _marked(WANTED)
    return found


def how(environ: Mapping[str, str], loaded: bool) -> str:
    """Who decides how threads wait: "halter" (this process, or the one that started it), "user" or "late"."""
    if environ.get(MARK) == _marked(environ):
        return "halter"
    if MARK in environ or any(name in environ for name in THEIRS):
        return "user"
    return "late" if loaded else "halter"


def _marked(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={values.get(name, '')}" for name in WANTED)


HOW = shorten(os.environ, "torch" in sys.modules)
"""Who decided in this process."""
