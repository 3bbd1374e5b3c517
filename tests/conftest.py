"""What every test may use, and what is told of those that were skipped."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import expected_skips
import one_thread  # noqa: F401  before own_data, which imports torch
import own_data
import pytest
from own_data import Data, Own, Real


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a test keeps goes to the user's cache, and nothing comes from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALTER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HALTER_MEASURE", "0")  # tests that compare bits get the same kernels in every process
        yield


@pytest.fixture(autouse=True)
def threads_of_its_own() -> Iterator[None]:
    """A command that is run within a test decides on threads for its process, which is that of the next test, too."""
    torch, threads = sys.modules.get("torch"), sys.modules.get("halter.numerics.threads")
    if torch is None or threads is None:
        yield
        return
    before, state = torch.get_num_threads(), replace(threads._state)
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
        threads._state = state


@pytest.fixture
def quickest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``quickest("packed")``: as if these ways had been measured to be the quick ones, wherever they are asked for."""
    from halter.numerics import choice

    def choose(*ways: str) -> None:
        choice.forget()
        monkeypatch.delenv("HALTER_MEASURE", raising=False)
        monkeypatch.setattr(choice, "times", lambda asked: {way: 1.0 if way in ways else 2.0 for way in asked.ways})

    yield choose
    choice.forget()


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of four patches in place of 64, so that tests take seconds; the one in the package has its own."""
    import sighted

    return sighted.encoder_folder(tmp_path_factory.mktemp("encoder") / "clip")


@pytest.fixture(scope="module")
def small_encoder(encoder_folder: Path) -> Iterator[None]:
    """The name that tests give methods that see (sighted.NAMED) means that encoder, for this file alone: the next file
    in the same process has the package's."""
    import sighted

    from halter.encoders import opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(opened.EMBEDDED, sighted.NAMED, encoder_folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def heard() -> None:
    """Ctrl-C is heard here and in what the tests start, also where the shell began this in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data: HALTER_SHARED, or shared beside the checkout. Without it the test is skipped."""
    if not own_data.has_shared():
        pytest.skip(expected_skips.NO_SHARED)
    return own_data.shared_folder()


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Own:
    """Models and rows that are ours: always there."""
    return Own(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="session")
def real(shared: Path) -> Real:
    """Models and rows of third parties."""
    return Real(shared / "data")


def _both(*marks: pytest.MarkDecorator) -> list[Any]:
    return ["own", *([pytest.param("real", marks=marks)] if own_data.has_shared() else [])]


@pytest.fixture(scope="session", params=_both())
def data(request: pytest.FixtureRequest) -> Data:
    """Ours, and then the real ones where they are."""
    found: Data = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session", params=_both(pytest.mark.nightly))
def heavy_data(request: pytest.FixtureRequest) -> Data:
    """Ours, and in `make nightly` the real ones where they are: for tests that take long."""
    found: Data = request.getfixturevalue(request.param)
    return found


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes do not name a test: packed ones hold the time, and xdist's processes would collect different tests."""
    return argname if isinstance(val, bytes) else None


# Skips are told, and in CI those that nobody expected are failures.


def _unexpected(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    if not (report.skipped and expected_skips.strict()) or hasattr(report, "wasxfail"):
        return None
    reason = expected_skips.reason_of(report.longrepr)
    if expected_skips.may(reason, own_data.has_shared()):
        return None
    return f"{report.nodeid} was skipped, and CI expects it to run: {reason} (tests/expected_skips.py)"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if told := _unexpected(report):
        report.outcome, report.longrepr = "failed", told
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if told := _unexpected(report):
        report.outcome, report.longrepr = "failed", told
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line before pytest's own last one. Under xdist this runs in the process that collects the results."""
    reports = [r for r in terminalreporter.stats.get("skipped", []) if not hasattr(r, "wasxfail")]
    terminalreporter.write_line(expected_skips.line(expected_skips.reason_of(r.longrepr) for r in reports))
