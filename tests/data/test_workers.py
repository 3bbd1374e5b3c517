"""Several processes: the same rows in the same order, whatever raises or dies, and nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers as tiny

from halter.data import load, workers
from halter.data.load import load_examples
from halter.data.options import DataOptions
from halter.data.workers import CHUNK, mapped, useful
from halter.numerics import spinning
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("size", [0, 1, CHUNK, 5 * CHUNK + 7])
def test_results_in_the_order_of_the_items(count: int, size: int) -> None:
    def task(item: int) -> str:
        if item % 10 == 3:
            raise ValueError(item)
        return f"{item}" * (10_000 if item == 5 else 1)  # more than a pipe holds

    pairs = list(mapped(task, iter(range(size)), count))
    wanted = [None if not count or n % 10 == 3 else f"{n}" * (10_000 if n == 5 else 1) for n in range(size)]
    assert pairs == list(zip(range(size), wanted))


def test_what_a_dead_process_did_not_answer_is_left_to_the_caller() -> None:
    def task(item: int) -> int:
        if item == 2 * CHUNK:
            os._exit(1)
        return item

    pairs = list(mapped(task, iter(range(10 * CHUNK)), 2))
    assert [item for item, _ in pairs] == list(range(10 * CHUNK))
    lost = [item for item, result in pairs if result is None]
    assert 2 * CHUNK in lost and CHUNK <= len(lost) < 10 * CHUNK
    assert all(result in (None, item) for item, result in pairs)


def test_nobody_is_left_behind() -> None:
    """Neither when the caller stops early, nor when the items raise, nor when the caller is killed."""

    def children() -> list[int]:
        out = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(os.getpid())], capture_output=True, text=True)
        return [int(line.split()[0]) for line in out.stdout.splitlines() if "Z" not in line.split()[1]]

    before = len(children())
    with closing(mapped(str, iter(range(10**9)), 2)) as pairs:
        assert next(pairs) == (0, "0")
        assert len(children()) >= before + 2
    assert len(children()) <= before + 1  # ps itself

    def failing() -> Any:
        yield from range(3 * CHUNK)
        raise KeyError("gone")

    with pytest.raises(KeyError):
        list(mapped(str, failing(), 2))
    assert len(children()) <= before + 1
    code = (
        "import multiprocessing, time\nfrom halter.data.workers import mapped\n"
        "pairs = mapped(str, iter(range(10**9)), 2)\nnext(pairs)\n"
        "print(*[p.pid for p in multiprocessing.active_children()], flush=True)\ntime.sleep(60)\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    processes = [int(pid) for pid in caller.stdout.readline().split()]
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in processes) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(processes) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in processes)


@pytest.mark.parametrize("own", [False, True], ids=["built-in template", "template in its own process"])
def test_rows_are_the_same_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    """Bad rows, long rows and split ones among them."""
    tokenizer = Tokenizer.from_folder(tiny.llama3(tmp_path / "llama3"))
    template = tokenizer.chat_template if own else ChatTemplate.builtin("alpaca")
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for n in range(4 * CHUNK):
            row: dict[str, Any] = {"instruction": f"Say {n}", "output": "word " * (n % 60 + 1)}
            if n % 50 == 7:
                row["output"] = ["", 3, "\ud800"][n % 3]
            file.write(json.dumps(row) + "\n")
    told = []
    for count in (0, 3):
        monkeypatch.setattr(load, "useful", lambda size, count=count: count)
        options = DataOptions(train=str(path), on_bad="skip", on_long="cut", max_length=120, cache=False)
        loaded = load_examples(options, tokenizer, template)
        rows = [(e.tokens.tolist(), e.supervised.tolist(), e.origin) for e in loaded.train]
        told.append((rows, loaded.report.as_dict()))
    assert told[0] == told[1] and told[0][1]["bad"] > 5 and told[0][1]["long_cut"] > 20


def test_where_processes_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def running(*threads: threading.Thread) -> None:
        monkeypatch.setattr(workers.threading, "enumerate", lambda: [threading.main_thread(), *threads])

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    running()
    assert useful(workers.WORTH_BYTES) == 4 and useful(workers.WORTH_BYTES - 1) == 0
    running(threading.Thread())
    assert useful(1 << 30) == 0
    running(spinning._Beside(print))  # the watcher of the load holds no lock
    assert useful(1 << 30) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert useful(1 << 30) == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert useful(1 << 30) == workers.MOST
