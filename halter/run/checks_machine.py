"""What can be said of a recipe before anything is read: device, packages, the place for the result."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch

from halter.errors import Refusal
from halter.files import folders
from halter.files.extras import install
from halter.files.nearby import similar
from halter.files.unwritten import Unwritten
from halter.numerics.nf4_kernels import import_bitsandbytes
from halter.pretrained.device import choose_device
from halter.recipe import Recipe
from halter.training.options import TrainOptions

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
REPEATABLE = (":4096:8", ":16:8")
"""Values of cuBLAS' workspace with which its products are the same bits every time (NVIDIA's cuBLAS documentation,
results reproducibility)."""
CHECKPOINTS = 3
"""So many checkpoints must find room: those kept, and one being written."""


def repeatable_workspace(recipe: Recipe) -> None:
    """Have cuBLAS give the same bits every time, which must be said before CUDA starts. Refusal ``cublas-workspace``
    where the environment says otherwise and the recipe asks for ``train.deterministic``."""
    if not recipe.train.deterministic:
        return
    value = os.environ.setdefault(WORKSPACE, REPEATABLE[0])
    if value not in REPEATABLE and torch.cuda.is_available():
        raise Refusal(
            "cublas-workspace",
            f"train.deterministic is asked for, and the environment has {WORKSPACE}={value}",
            expected=" or ".join(REPEATABLE),
            fix=f"unset {WORKSPACE}, and it is set here",
        )


def machine(recipe: Recipe) -> Iterator[Refusal]:
    """Refusals ``device-missing``, ``optimizer-unavailable``, ``missing-extra``, ``no-validation``."""
    device: torch.device | None = None
    try:
        device = choose_device(recipe.model.device)
    except Refusal as refusal:
        yield refusal
    options = recipe.train
    yield from _optimizer(options, "cpu" if device is None else device.type)
    packages = {"tensorboard": "tensorboard", "wandb": "wandb"}
    missing = [name for name in options.report_to if find_spec(packages[name]) is None]
    if missing:
        what = "train.report_to needs packages that are not installed"
        yield Refusal("missing-extra", what, found=missing, fix=f"{install('track')}, or leave them out")
    if options.early_stopping_patience is not None and recipe.data.validation is None:
        yield Refusal(
            "no-validation",
            "train.early_stopping_patience watches a held-out loss, and there are no rows for one",
            fix="give data.validation, a file or a share such as 0.1",
        )


def _optimizer(options: TrainOptions, device: str) -> Iterator[Refusal]:
    paged = options.optimizer == "paged_adamw_32bit"
    if options.optimizer == "adamw" or (paged and device != "cuda"):
        return
    try:
        if device == "mps":
            raise ImportError("it has no kernels for mps")
        import_bitsandbytes()
    except Exception as error:  # a broken native library raises what it likes
        yield Refusal(
            "optimizer-unavailable",
            f"{options.optimizer} needs bitsandbytes, which cannot be imported here: {str(error).splitlines()[0]}",
            fix="pip install bitsandbytes, or train.optimizer: adamw",
        )


def writable(folder: str | Path) -> Iterator[Refusal]:
    """Refusal ``output-not-writable`` where the folder could not be made, ``not-a-folder`` where a file stands in the
    way, ``writes-a-folder`` of a file's name; a small one is made beside it and removed."""
    place = Path(folder).expanduser()
    try:
        folders.refuse_file_name(place)
        with suppress(_ItWorks), folders.new_folder(nearest(place) / f".halter-{secrets.token_hex(4)}"):
            raise _ItWorks
        folders.try_out(place)
    except Refusal as refusal:
        yield refusal
    except Unwritten as error:
        why = error.what.partition(": ")[2]
        id = error.id if error.id == "not-a-folder" else "output-not-writable"
        yield Refusal(id, f"the run folder cannot be made: {why}", where=str(folder), fix=error.fix)


class _ItWorks(Exception):
    """Ends the trial, whose folder is then removed."""


def nearest(place: Path) -> Path:
    """The place itself or the nearest of its parents that exists."""
    place = place.absolute()
    return next((p for p in (place, *place.parents) if os.path.lexists(p)), place)


def disk_space(folder: str | Path, checkpoint_bytes: int, kept: int | None, best: bool = False) -> Iterator[Refusal]:
    """Refusal ``disk-space`` where ``kept`` checkpoints and the next one, or three, do not fit beside the result, and
    one more where the ``best`` is kept apart."""
    count = max(CHECKPOINTS, (kept or 0) + 1) + best
    try:
        free = shutil.disk_usage(nearest(Path(folder).expanduser())).free
    except OSError:
        return  # said by ``writable``
    needed = count * checkpoint_bytes
    if free < needed:
        yield Refusal(
            "disk-space",
            f"{count} checkpoints take {gib(needed)} and there are {gib(free)} free",
            where=str(folder),
            fix="make room, or give an --output on another disk",
            waivable=True,
        )


def gib(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def missing_files(named: Sequence[tuple[str, str | None]]) -> Iterator[Refusal]:
    """Refusal ``file-missing`` with every (key, path) that looks like a file or folder and is none."""
    lost = [(key, path) for key, path in named if path and not Path(path).expanduser().exists()]
    if lost:
        what = "the recipe names files that do not exist"
        near = [str(found[0]) for _, path in lost if (found := similar(Path(path), ("adapter", "run")))]
        fix = f"did you mean {', '.join(near)}?" if near else "correct the paths; they are read from where you are"
        yield Refusal("file-missing", what, found=[f"{key}: {path}" for key, path in lost], fix=fix)
