"""The kept process: one for all threads from the first moment, a new one after a death and for a fork's child."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from halter import bounded
from halter.bounded import BoundedProcess

ECHO = """
import os, sys
limit_this_process(64 << 20)
for line in sys.stdin:
    print(os.getpid(), line, end="", flush=True)
"""


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[BoundedProcess]:
    file = tmp_path / "echo.py"
    file.write_text(ECHO, "utf-8")
    one = BoundedProcess(str(file))
    yield one
    one.close()


def ask(one: BoundedProcess, word: str) -> tuple[int, str]:
    """The number of the process that answers, and what it says."""
    with one.taken() as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{word}\n".encode())
        process.stdin.flush()
        pid, said = process.stdout.readline().decode().split()
    return int(pid), said


def test_threads_that_are_first_together_share_one_process(echo: BoundedProcess) -> None:
    together = threading.Barrier(8)

    def first(at: int) -> tuple[int, str]:
        together.wait()
        return ask(echo, f"word-{at}")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(first, range(8)))
    assert [said for _, said in answers] == [f"word-{at}" for at in range(8)]
    assert len({pid for pid, _ in answers}) == 1


def test_a_dead_process_is_replaced(echo: BoundedProcess) -> None:
    before, _ = ask(echo, "x")
    assert echo.process is not None
    echo.process.kill()
    echo.process.wait()
    after, said = ask(echo, "y")
    assert said == "y" and after != before


def test_a_closed_process_has_ended_and_the_next_request_starts_another(echo: BoundedProcess) -> None:
    before, _ = ask(echo, "x")
    process = echo.process
    assert process is not None
    echo.close()
    assert process.returncode == 0
    assert ask(echo, "y")[0] != before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_the_child_of_a_fork_has_its_own_though_another_thread_held_it(echo: BoundedProcess) -> None:
    mine, _ = ask(echo, "mine")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with echo.taken():
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a lock that nobody holds any more is waited for in vain
        other, said = ask(echo, "child")
        echo.close()
        os._exit(0 if said == "child" and other != mine else 1)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done.set()
    thread.join()
    assert ended == 0
    assert ask(echo, "parent") == (mine, "parent")


def test_the_file_is_told_how_to_bound_itself(tmp_path: Path) -> None:
    """Memory beyond its bound is an error in it, files are not written, and the clock ends it by a signal."""
    if os.name != "posix":
        pytest.skip("forks")
    file, written = tmp_path / "bounded.py", tmp_path / "written"
    file.write_text(
        f"""
import signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
arm = limit_this_process(64 << 20)
try:
    b"x" * (1 << 28)
except MemoryError:
    print("memory", flush=True)
try:
    with open({str(written)!r}, "w") as file:
        file.write("x")
except OSError:
    print("file", flush=True)
arm(0.05)
while True:
    pass
""",
        "utf-8",
    )
    one = BoundedProcess(str(file))
    with one.taken() as process:
        assert process.stdout is not None
        assert process.stdout.read().split() == [b"memory", b"file"]
        one.end()
    assert process.returncode < 0 and written.read_text() == ""


def test_nothing_to_read_in_time_is_told() -> None:
    if os.name != "posix":
        pytest.skip("forks")
    here, there = os.pipe()
    with os.fdopen(here, "rb") as pipe:
        assert not bounded.ready(pipe, 0.0)
        os.write(there, b"x")
        assert bounded.ready(pipe, 0.0)
    os.close(there)
