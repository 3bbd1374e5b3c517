"""A quick path is the one that was measured to be quick: planted wrong choices are corrected; nothing can fail."""

from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import replace

import pytest
import torch

from halter.files.measured import DAYS, MeasuredTimes
from halter.numerics import choice, int8_product, nf4_packed, products
from halter.numerics.choice import Choice, pick

HERE = "a machine"


@pytest.fixture(autouse=True)
def measuring(monkeypatch):
    monkeypatch.delenv("HALTER_MEASURE", raising=False)
    monkeypatch.setattr(choice, "machine", lambda: HERE)
    choice.forget()
    yield
    choice.forget()


def work(amount: float):
    """Something that takes about ``amount`` milliseconds of this thread."""

    def run():
        until = time.thread_time() + amount / 1000
        while time.thread_time() < until:
            pass

    return run


def asked(quick: float, usual: float, calls: list[int] | None = None) -> Choice:
    def trials():
        if calls is not None:
            calls.append(1)
        return {"usual": work(usual), "quick": work(quick)}

    return Choice("something", "usual", ("usual", "quick"), trials)


@pytest.mark.parametrize(("quick", "usual", "found"), [(1, 3, "quick"), (3, 1, "usual"), (1, 1.05, "usual")])
def test_the_quick_one_is_taken_and_the_default_left_only_for_what_is_clearly_quicker(quick, usual, found):
    assert pick(asked(quick, usual)) == found


def test_the_preferred_product_made_slow_is_left(monkeypatch):
    """Whatever one row prefers on this machine, with that kernel slowed down it prefers another."""
    monkeypatch.setattr(products, "_SHAPE", (512, 512))
    monkeypatch.setattr(products, "_BYTES", 2**20)
    products.question.cache_clear()
    was = pick(products.question(1))
    slow = dict(products.WAYS)
    slow[was] = lambda *args, run=slow[was]: (work(20)(), run(*args))[1]
    monkeypatch.setattr(products, "WAYS", slow)
    products.question.cache_clear()
    choice.forget()
    try:
        assert pick(products.question(1)) != was
    finally:
        products.question.cache_clear()


def test_what_cannot_run_here_is_never_taken():
    def missing():
        raise RuntimeError("not on this machine")

    assert pick(Choice("it", "usual", ("usual", "quick"), lambda: {"usual": work(1), "quick": missing})) == "usual"
    assert choice.times(Choice("it", "usual", ("usual", "quick"), dict))["quick"] == math.inf


def test_measured_once_a_process_and_once_a_machine(tmp_path):
    calls: list[int] = []
    store = MeasuredTimes(tmp_path / "deep" / "measured.json")
    choice.keep_on(store)
    assert [pick(asked(1, 3, calls)) for _ in range(3)] == ["quick"] * 3 and len(calls) == 1
    choice.forget()
    choice.keep_on(store)
    assert pick(asked(1, 3, calls)) == "quick" and len(calls) == 1
    choice.keep_on(MeasuredTimes(tmp_path / "other.json"))
    assert pick(asked(1, 3, calls)) == "quick" and len(calls) == 2


def entry(seconds, age=0.0):
    return {"something": {"seconds": seconds, "at": time.time() - age * 86_400}}


STALE = {
    "another machine's": {"another": entry({"usual": 1.0, "quick": 5.0})},
    "too old": {HERE: entry({"usual": 1.0, "quick": 5.0}, DAYS + 1)},
    "from the future": {HERE: entry({"usual": 1.0, "quick": 5.0}, -9)},
    "of other ways": {HERE: entry({"usual": 1.0, "gone": 5.0})},
    "no numbers": {HERE: entry({"usual": "a", "quick": 5.0})},
    "no times": {HERE: entry({"usual": 0.0, "quick": -5.0})},
    "no entry": {HERE: {"something": 3}},
    "no entries": {HERE: []},
    "a list": [1, 2],
}


@pytest.mark.parametrize("what", STALE)
def test_a_stale_or_spoilt_file_is_measured_over(what, tmp_path):
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(STALE[what]))
    choice.keep_on(MeasuredTimes(path))
    calls: list[int] = []
    assert pick(asked(1, 3, calls)) == "quick" and calls == [1]
    kept = json.loads(path.read_text())
    assert kept[HERE]["something"]["seconds"]["quick"] < kept[HERE]["something"]["seconds"]["usual"]
    if what == "another machine's":
        assert kept["another"] == STALE[what]["another"]


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"null"])
def test_a_torn_file_is_harmless(text, tmp_path):
    path = tmp_path / "measured.json"
    path.write_bytes(text)
    choice.keep_on(MeasuredTimes(path))
    assert pick(asked(1, 3)) == "quick" and MeasuredTimes(path).read(HERE)


def test_a_way_that_cannot_run_is_remembered_as_such(tmp_path):
    store = MeasuredTimes(tmp_path / "measured.json")
    store.add(HERE, "it", {"usual": 1.0, "quick": math.inf})
    assert store.read(HERE)["it"] == {"usual": 1.0, "quick": math.inf}


@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_folder_that_cannot_be_written_is_harmless(where, tmp_path):
    """A file stands where the folder would, and a folder where the file would: root writes past permissions."""
    path = tmp_path / "measured.json"
    if where == "file":
        path = path / "x.json"
        (tmp_path / "measured.json").write_text("")
    else:
        path.mkdir()
    choice.keep_on(MeasuredTimes(path))
    assert pick(asked(1, 3)) == "quick"


def test_switched_off_nothing_is_measured_and_every_default_is_plain(monkeypatch):
    monkeypatch.setenv("HALTER_MEASURE", "0")
    monkeypatch.setattr(choice, "measure", None)
    for rows in products.FEW:
        assert pick(products.question(rows)) == "plain"
    assert pick(int8_product.question(1)) == "cast" and not nf4_packed.pays(1)


def test_measuring_takes_one_thread_and_gives_the_others_back():
    threads, seen = torch.get_num_threads(), []
    torch.set_num_threads(threads + 1)
    try:
        choice.measure({"a": lambda: seen.append(torch.get_num_threads())})
        assert set(seen) == {1} and torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


def test_a_process_measures_for_a_second_and_then_takes_the_defaults(monkeypatch):
    """On a machine so slow that the clock moves by a tenth of a second whenever it is looked at."""
    looks = itertools.count()
    monkeypatch.setattr(choice, "clock", lambda: next(looks) / 10)
    questions = [replace(asked(0, 0), name=f"question {number}") for number in range(9)]
    measured = [bool(choice.times(question)) for question in questions]
    assert measured == sorted(measured, reverse=True) and measured[0] and not measured[-1]
    *before, last = choice._spent
    assert sum(before) < choice.BUDGET <= sum(choice._spent)  # the last one measured is the one that spent it
    assert last < choice.BUDGET + 0.5  # and it ended with the turn in which that happened
    assert pick(questions[-1]) == "usual"


def test_the_key_says_what_was_taken_from_the_processor(monkeypatch):
    monkeypatch.undo()
    plain = choice.machine()
    assert plain == choice.machine() and torch.__version__ in plain and torch.backends.cpu.get_cpu_capability() in plain
    seen = {plain}
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "HALTER_NF4"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "something else")
            seen.add(choice.machine())
    assert len(seen) == 5
