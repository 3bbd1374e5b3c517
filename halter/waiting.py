"""Who decides how long torch's threads spin when they wait, and what has to be said before torch is loaded.

GNU's OpenMP library, which torch's wheels for Linux bring along, is told while it runs (``numerics/spinning.py``).
LLVM's and Intel's, which torch has on macOS, on Windows or from conda, read a variable when they are loaded: ``import
halter`` sets it, so threads there sleep after a millisecond; where torch was imported before, it is too late. Nothing
is done against a variable of the user's. Imports nothing but what Python has loaded anyway.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping

WANTED = {"KMP_BLOCKTIME": "1"}
"""{variable: value}. Milliseconds, 200 where nobody sets it; GNU's library does not know it."""
THEIRS = (*WANTED, "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_LIBRARY")
"""Who sets one of these has decided how threads wait."""
MARK = "HALTER_WAITING"
"""What Halter set, for the processes that inherit it; `off` from outside: nothing is set, nothing is watched."""


def shorten(environ: MutableMapping[str, str], loaded: bool) -> str:
    """Set WANTED where it is not too late (``loaded``: torch is there) and nobody has decided; returns ``how``."""
    found = how(environ, loaded)
    if found == "halter" and MARK not in environ:
        environ.update(WANTED)
        environ[MARK] = _marked(WANTED)
    return found


def how(environ: Mapping[str, str], loaded: bool) -> str:
    """Who decides how threads wait: "halter" (this process, or the one that started it), "user" or "late"."""
    if environ.get(MARK) == _marked(environ) and not any(environ.get(name) for name in THEIRS if name not in WANTED):
        return "halter"
    if MARK in environ or any(name in environ for name in THEIRS):
        return "user"
    return "late" if loaded else "halter"


def _marked(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={values.get(name, '')}" for name in WANTED)


HOW = shorten(os.environ, "torch" in sys.modules)
"""Who decided in this process."""
