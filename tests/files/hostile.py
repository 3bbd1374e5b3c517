"""Seeded damage to files, of bytes and of structure, and a stopwatch for those who read them."""

from __future__ import annotations

import copy
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halter.errors import Refusal

JUNK: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    1.5,
    -0.0,
    2**31,
    2**53 + 1,
    2**63,
    -(2**63),
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x00",
    "\ud800",
    "..",
    "../../etc/passwd",
    "(.*)*x",
    "a" * 5000,
    [],
    {},
    [[]],
    {"a": 1},
    [0] * 2000,
    [None],
    {"": {}},
    [[[[[[[[]]]]]]]],
)
ALPHABET = b'0123456789[]{}",:.-+eE \x00\xff\\ntfalsru\n'


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to four small wounds."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at, kind = rng.randrange(len(out) + 1), rng.randrange(8)
        to = min(len(out), at + rng.choice((1, 2, 8, 100, 3000)))
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice(ALPHABET)
        elif kind == 2:
            del out[at:to]
        elif kind == 3:
            out[at:at] = out[at:to] * rng.randrange(1, 4)
        elif kind == 4:
            out[at:at] = bytes(rng.choice(ALPHABET) for _ in range(rng.randrange(1, 20)))
        elif kind == 5:
            del out[at:]
        elif kind == 6:
            out[at:to] = rng.randbytes(to - at)
        else:
            source = rng.randrange(len(out) + 1)
            out[at:at] = out[source : source + to - at]
    return bytes(out)


def damaged_value(rng: random.Random, value: Any) -> Any:
    """A copy of a nest of dicts and lists with one to three places changed, dropped, doubled, renamed or nested."""
    value = copy.deepcopy(value)
    for _ in range(rng.randrange(1, 4)):
        if not isinstance(value, dict | list) or not value:
            return value
        at: Any = value
        key = _key(rng, at)
        while isinstance(at[key], dict | list) and at[key] and rng.random() < 0.75:
            at = at[key]
            key = _key(rng, at)
        kind = rng.randrange(7)
        if kind == 0:
            del at[key]
        elif kind == 1 and isinstance(at, dict):
            at[rng.choice(("", "a", "../x", str(key) + "x", str(key)[:-1], str(key).upper()))] = at.pop(key)
        elif kind == 2 and isinstance(at, list):
            at.insert(rng.randrange(len(at) + 1), copy.deepcopy(at[key]))
        elif kind == 3:
            at[key] = [at[key]]
        elif kind == 4 and isinstance(at[key], int | float) and not isinstance(at[key], bool):
            n = at[key]
            at[key] = rng.choice((n + 1, n - 1, -n, n * 2, n * 2**20, n * 0.3 if abs(n) < 1e300 else 0.3))
        elif kind == 5 and isinstance(at[key], str):
            at[key] = rng.choice((at[key][1:], at[key] * 50, at[key].upper(), at[key] + "\x00", "(" + at[key]))
        else:
            at[key] = copy.deepcopy(rng.choice(JUNK))
    return value


def _key(rng: random.Random, at: Any) -> Any:
    return rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))


def damaged_json(rng: random.Random, data: bytes) -> bytes:
    """A JSON file, damaged in its structure three times out of four, in its bytes otherwise."""
    if rng.random() < 0.25:
        return damaged_bytes(rng, data)
    if rng.random() < 0.01:
        return rng.choice((b'{"a":' * 3000, b"[" * 200_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}", b"{}"))
    return json.dumps(damaged_value(rng, json.loads(data))).encode()


def damaged_safetensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file, damaged in its header's structure, its header's bytes, its length field or anywhere."""
    length = int.from_bytes(data[:8], "little")
    header, body, kind = data[8 : 8 + length], data[8 + length :], rng.randrange(8)
    if kind < 4:
        header = damaged_json(rng, header)
    elif kind == 4:
        header = damaged_bytes(rng, header)
    elif kind == 5:
        return damaged_bytes(rng, data)
    elif kind == 6:
        return rng.choice((0, 1, length + 1, 2**31, 2**63, 100_000_001)).to_bytes(8, "little") + header + body
    else:
        body = damaged_bytes(rng, body)
    return len(header).to_bytes(8, "little") + header + body


class Hang(BaseException):
    """A second of processor time passed over one file."""


@dataclass
class Tally:
    """What became of the cases: read or refused by id; crashes with the case that caused them."""

    outcomes: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def cases(self) -> int:
        return sum(self.outcomes.values()) + len(self.crashes)

    def feed(self, case: str, read: Callable[[], object]) -> None:
        """Read one damaged file under a clock of one second of processor time."""
        begun = time.process_time()
        try:
            with _clock(1.0):
                read()
            self.outcomes["read"] += 1
        except Refusal as refusal:
            self.outcomes[refusal.id] += 1
        except (Exception, Hang) as error:
            self.crashes.append(f"{case}: {type(error).__name__}: {str(error)[:300]}")
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # Rust's, which is no Exception
                raise
            self.crashes.append(f"{case}: panic: {str(error)[:300]}")
        self.slowest = max(self.slowest, time.process_time() - begun)


@contextmanager
def _clock(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def memory(field_name: str = "VmRSS") -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since ``forget_peak``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field_name + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"no {field_name} in /proc/self/status")


def forget_peak() -> None:
    """Let VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")
