"""What laws need of the machine: the encoder that they name is a small one."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def named_by_laws(small_encoder: None) -> None:
    pass
