"""Libraries that fetch data sets, where there is no network: they try for half a minute unless they are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ANSWER_SECONDS = 3.0
"""In which the hub answers one question, if there is a way to it."""


@contextmanager
def quick_offline(repository: str) -> Iterator[None]:
    """One question about ``repository``; where it gets no answer, datasets and huggingface_hub look at what is kept on
    this machine alone while the block runs."""
    import datasets
    import huggingface_hub

    constants: Any = huggingface_hub.constants
    try:
        huggingface_hub.HfApi().dataset_info(repository, timeout=ANSWER_SECONDS)
        offline = False
    except huggingface_hub.errors.HfHubHTTPError:  # it has answered
        offline = False
    except Exception:  # a transport's own
        offline = True
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = (offline or one for one in before)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
