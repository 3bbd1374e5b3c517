"""Trackers beside metrics.jsonl: TensorBoard and Weights & Biases, where the recipe asks for them (extra ``track``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from halter.errors import Refusal
from halter.files.extras import install

Track = Callable[[dict[str, Any]], None]


def open_trackers(names: Sequence[str], folder: Path, recipe: dict[str, Any]) -> list[Track]:
    """One function a tracker that takes a metrics record. Refusal ``missing-extra`` where its package is missing."""
    makers = {"tensorboard": _tensorboard, "wandb": _wandb}
    trackers, missing = [], []
    for name in names:
        try:
            trackers.append(makers[name](folder, recipe))
        except ImportError:
            missing.append(name)
    if missing:
        raise Refusal(
            "missing-extra",
            "report_to needs packages that are not installed",
            found=missing,
            fix=install("track"),
        )
    return trackers


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in record.items() if isinstance(value, (int, float)) and key != "step"}


def _tensorboard(folder: Path, recipe: dict[str, Any]) -> Track:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def track(record: dict[str, Any]) -> None:
        for key, value in _numbers(record).items():
            writer.add_scalar(f"train/{key}", value, record["step"])
        writer.flush()

    return track


def _wandb(folder: Path, recipe: dict[str, Any]) -> Track:
    import wandb

    run = wandb.init(dir=str(folder), name=folder.name, config=recipe)
    return lambda record: run.log(_numbers(record), step=record["step"])
