"""What laws need of the machine: the encoder that they name is a small one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sighted

from halter.encoders import opened


@pytest.fixture(scope="session", autouse=True)
def small_encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Four patches in place of 64, so that laws take seconds; the one in the package has tests of its own."""
    folder = sighted.encoder_folder(tmp_path_factory.mktemp("encoder") / "clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(opened.EMBEDDED, sighted.NAMED, folder)
        yield
