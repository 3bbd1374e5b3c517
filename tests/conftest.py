"""What every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import halter.waiting  # noqa: F401  before a test imports torch: threads spin a little while only

os.environ.setdefault("OMP_NUM_THREADS", "1")  # equal bits need an equal number of threads, whatever the machine


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a test keeps goes to the user's cache, and nothing comes from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALTER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def heard() -> None:
    """Ctrl-C is heard here and in what the tests start, also where the shell began this in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data: HALTER_SHARED, or shared beside the checkout."""
    folder = Path(os.environ.get("HALTER_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data at {folder}; set HALTER_SHARED")
    return folder
