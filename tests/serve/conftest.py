from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    import serving

    return serving.World(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def served(world: Any) -> Iterator[Any]:
    """One server for all tests that leave it as it is."""
    with world.server() as server:
        yield server
