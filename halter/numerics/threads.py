"""How many threads compute: chosen at a run's start from the load seen, kept by all that belongs to the run.

A team of threads waits for the one whose core another program has, so beside other programs fewer are faster. The last
bits of a result depend on the number (sums are taken in other pieces), so a run records it, and whoever goes on with it
takes it again whatever the load is then. What the user has decided is never changed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

DECIDING = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_THREAD_LIMIT",
    "OMP_DYNAMIC",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
)
"""Variables by which a user decides about threads."""
LOOK_SECONDS, STALE_SECONDS = 0.3, 10.0
"""A look at the load takes at least so long; what was seen longer ago than that does not count."""
LEAST = 4
"""A run takes its share of a machine on which everything is taken: at least one thread for so many cores."""
By = Literal["given", "user", "record", "load", "all"]


@dataclass(frozen=True)
class Threads:
    """A number of threads, and why."""

    count: int
    by: By
    """given: by a recipe or flag; user: variables or torch.set_num_threads; record: the run's; load: what others left
    free at the start; all: one for each core, whatever the load."""
    top: int
    """What torch takes by itself."""
    cores: float
    """Cores that this process may use: its affinity and its group's quota."""
    others: float | None = None
    """Cores that other programs kept busy, where that was looked at."""
    variable: str = ""
    """What the user decided by."""
    recorded: int | None = None
    """The run's number, where it has one."""

    def facts(self) -> dict[str, Any]:
        """For a run folder."""
        return asdict(self)

    def words(self) -> str:
        """The choice in one line."""
        why = {
            "given": "as asked",
            "user": f"by {self.variable}",
            "record": "as at the run's start: results depend on it",
            "load": "no other program is busy",
            "all": "one for each core",
        }[self.by]
        if self.by == "load" and self.others is None:
            why = "the load cannot be seen here"
        elif self.by == "load" and (self.count < self.top or round(self.others or 0.0, 1)):
            why = f"other programs keep {self.others:.1f} cores busy"
            why += f"; --threads {self.top} takes all" if self.count < self.top else ""
        if self.by == "user" and self.recorded not in (None, self.count):
            why += f"; the run began with {self.recorded}, so its last bits will differ (--threads {self.recorded})"
        if self.count > self.cores + 0.5:
            why += f"; only {self.cores:g} cores are there for them, so this will be slow"
        return f"threads: {self.count} of {self.top} ({why})"

    def remarkable(self) -> bool:
        """Whether a user should be told."""
        differs = self.recorded not in (None, self.count)
        return differs or self.count > self.cores + 0.5 or (self.by in ("load", "record") and self.count != self.top)


@dataclass(frozen=True)
class Snapshot:
    """Seconds since the system's start: of work on this process's cores by anybody, and by this process."""

    at: float
    work: float
    own: float


@dataclass
class _State:
    set: int | None = None
    """The number that Halter set, while it stands."""
    top: int = 0
    """What torch had before."""
    seen: Snapshot | None = None


def snapshot(counted: Path = Path("/proc/stat")) -> Snapshot | None:
    """What the system counted; None where it does not (no /proc/stat)."""
    own = os.times()
    spent = own.user + own.system + own.children_user + own.children_system
    try:
        mine, work = {f"cpu{number}" for number in os.sched_getaffinity(0)}, 0.0
        for line in counted.read_text("ascii").splitlines():
            name, *ticks = line.split()
            if name in mine:  # user nice system idle iowait irq softirq steal; stolen by the host is taken too
                work += sum(int(ticks[place]) for place in (0, 1, 2, 5, 6, 7)) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return None
    return Snapshot(time.monotonic(), work, spent)


_state = _State(seen=snapshot())


def others_busy() -> float | None:
    """Cores that other programs keep busy now, of those that this process may use; None where that cannot be seen."""
    before, now = _state.seen, snapshot()
    if now is None:
        return _load_average()
    if before is None or not LOOK_SECONDS <= now.at - before.at <= STALE_SECONDS:
        before = now
        time.sleep(LOOK_SECONDS)
        now = snapshot()
        assert now is not None
    _state.seen = now
    return between(before, now)


def between(before: Snapshot, now: Snapshot) -> float:
    """Cores that other programs kept busy between two looks."""
    return max(0.0, (now.work - before.work) - (now.own - before.own)) / (now.at - before.at)


def _load_average() -> float | None:
    """The last minute's, less what this process used of it."""
    try:
        load = os.getloadavg()[0]
    except (OSError, AttributeError):  # Windows has none
        return None
    return max(0.0, load - min(torch.get_num_threads(), time.process_time() / 60.0))


def usable_cores() -> float:
    """Cores that this process may use: what it is bound to, and no more than its control group's quota."""
    return min([float(bound_cores()), *_quotas()])


def bound_cores() -> int:
    """Cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _quotas(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> Iterator[float]:
    """Cores by the quotas of this process's group and those above it, of both versions of control groups."""
    with suppress(OSError, ValueError):
        for line in groups.read_text("utf-8").splitlines():
            _, kinds, name = line.split(":", 2)
            top = root if not kinds else root / "cpu"
            if kinds and "cpu" not in kinds.split(","):
                continue
            place = top / name.strip("/")
            for folder in (place, *(above for above in place.parents if above.is_relative_to(top))):
                yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text("ascii").split()
        yield int(quota) / int(period)  # ValueError: "max"
    with suppress(OSError, ValueError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period"))
        if int(quota) > 0:
            yield int(quota) / int(period)


def _top() -> int:
    """The number that torch takes by itself."""
    now = torch.get_num_threads()
    return _state.top if _state.set == now else now


def _users_choice() -> str:
    """The variable or call by which the user decided; "" where nobody did. A call that asked for one thread a core is
    not to be told from none."""
    for name in DECIDING:
        if name in os.environ:
            return name
    now = torch.get_num_threads()
    return "" if _state.set == now or now in _by_itself() else "torch.set_num_threads"


def _by_itself() -> set[int]:
    """What torch may take without being told: one thread a core, hyper-threads counted or not."""
    if sys.platform != "linux":
        count = os.cpu_count() or 1
        return {count, max(1, count // 2)}
    mine, siblings = os.sched_getaffinity(0), set()
    for number in mine:
        with suppress(OSError):
            place = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
            siblings.add(place.read_text("ascii").strip())
    return {len(mine), len(siblings), os.cpu_count() or 1}


def choose(given: int | None = None, recorded: int | None = None, look: bool = True) -> Threads:
    """The number for what begins now: ``given`` by recipe or flag, else the user's variables, else the run's own
    (``recorded``), else as many as others leave free; all where ``look`` is false."""
    top, cores, variable = _top(), usable_cores(), _users_choice()
    if given is not None:
        return Threads(given, "given", top, cores, recorded=recorded)
    if variable:
        return Threads(torch.get_num_threads(), "user", top, cores, variable=variable, recorded=recorded)
    if recorded is not None:
        return Threads(recorded, "record", top, cores, recorded=recorded)
    if not look:
        return Threads(top, "all", top, cores)
    others = others_busy()
    free = min(cores, bound_cores() - (others or 0.0))
    count = max(1, min(top, max(int(free + 0.5), int(cores) // LEAST)))
    return Threads(count, "load", top, cores, others)


def put(chosen: Threads) -> None:
    """Compute with so many threads from here on."""
    if chosen.count != torch.get_num_threads():
        torch.set_num_threads(chosen.count)
        _state.set, _state.top = chosen.count, chosen.top


@contextmanager
def taken(chosen: Threads) -> Iterator[Threads]:
    """``put`` for a while; afterwards torch has the number that it had."""
    before, state = torch.get_num_threads(), (_state.set, _state.top)
    put(chosen)
    try:
        yield chosen
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
        _state.set, _state.top = state
