"""The run folder: append-only, and complete only where a manifest, written last, says so.

recipe.yaml  metrics.jsonl  checkpoints/step-0000123/{adapter-0, optimizer-0}.safetensors, state.json, manifest.json
adapter/     the result; its presence means that the run is finished

A file of another hand is never written to: what Halter wrote is known by its digest (``.written.json``), and where a
name is taken by something else ours gets ``halter-`` before it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from halter.errors import HalterError, Refusal
from halter.files.disk import leftovers
from halter.files.folders import discard, new_folder, set_aside
from halter.files.manifest import MANIFEST, check_manifest, write_manifest
from halter.files.reading import read_json
from halter.files.tensors import read_tensors
from halter.files.writing import append_line, json_text, write_json, write_tensors, write_text

RECIPE, WRITTEN, OURS, THREADS = "recipe.yaml", ".written.json", "halter-", "threads.json"
HEADED = "# A resolved Halter recipe: every value that decided this run."
"""The first line of every recipe that a run writes."""
_TRACES = ("metrics.jsonl", "checkpoints", "adapter")
_CHECKPOINT, _BEST = re.compile(r"step-(\d{7})"), re.compile(r"best-(\d{7})")
ADAPTER = "adapter-0"
"""Stem of the adapter's tensors in a checkpoint."""
_DAMAGED, _REMEDY = "damaged-checkpoint", "move this checkpoint's folder away and resume from the one before"


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint holds: {file stem: tensors} and plain values."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class RunFolder:
    """One run's files. Nothing that is complete is written to again, but metrics.jsonl grows."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._seen: dict[Path, Any] = {}  # signatures of checkpoints that were found whole

    @classmethod
    def next(cls, parent: str | Path, name: str) -> RunFolder:
        """The next free ``parent/NNN-name``."""
        parent = Path(parent)
        taken = [int(p.name[:3]) for p in parent.glob("[0-9][0-9][0-9]-*")] if parent.is_dir() else []
        return cls(parent / f"{max(taken, default=0) + 1:03d}-{name}")

    @property
    def recipe(self) -> Path:
        """This run's recipe: halter-recipe.yaml where recipe.yaml is somebody else's, else recipe.yaml."""
        beside = self.path / f"{OURS}{RECIPE}"
        return beside if beside.is_file() else self.path / RECIPE

    @property
    def begun(self) -> bool:
        """Whether a run was begun here; a recipe.yaml of the user's alone is none."""
        recipe = self.recipe
        return recipe.is_file() and (recipe.name != RECIPE or self._wrote(recipe) or self._has_traces())

    @property
    def users_recipe(self) -> Path | None:
        """A recipe.yaml that no run wrote, or that was changed since; it stays as it is."""
        there = self.path / RECIPE
        return there if there.is_file() and not self._wrote(there) else None

    def put(self, name: str, content: str | Mapping[str, Any] | list[Any]) -> Path:
        """Write a file of this run, text or one JSON value, over what this run wrote before and nothing else."""
        place = self._place(name)
        if place.exists() and not self._wrote(place):
            set_aside(place)
        text = content if isinstance(content, str) else json_text(content)
        known = self._written()
        # Beside the last one's digest, and before the file: whichever of the two a crash leaves is known as ours.
        digests = [*known.get(place.name, [])[-1:], hashlib.sha256(text.encode("utf-8")).hexdigest()]
        write_json(self.path / WRITTEN, {**known, place.name: digests}, replace=True)
        write_text(place, text, replace=True)
        return place

    def _place(self, name: str) -> Path:
        """Where this run's file of that name lies or is to lie."""
        plain, beside = self.path / name, self.path / f"{OURS}{name}"
        return beside if beside.exists() or (plain.exists() and not self._wrote(plain)) else plain

    def _wrote(self, file: Path) -> bool:
        """Whether a run wrote this file, and it is still what was written."""
        if not file.is_file():
            return False
        if not (self.path / WRITTEN).is_file():
            return self._of_old()
        return hashlib.sha256(file.read_bytes()).hexdigest() in self._written().get(file.name, ())

    def _written(self) -> dict[str, Any]:
        with suppress(HalterError, OSError):
            found = read_json(self.path / WRITTEN)
            return found if isinstance(found, dict) else {}
        return {}

    def _of_old(self) -> bool:
        """Whether this is a run of before ``.written.json``: its recipe's first line, and something that came of it."""
        recipe = self.path / RECIPE
        headed = recipe.is_file() and recipe.read_bytes().startswith(HEADED.encode())
        return headed and (self._has_traces() or _is_report(self.path / "data.json"))

    def _has_traces(self) -> bool:
        return any((self.path / name).exists() for name in _TRACES)

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def finished(self) -> bool:
        """Whether the run's result is there."""
        return self.adapter.exists()

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one object to metrics.jsonl."""
        append_line(self.metrics, record)

    def attempt(self) -> int:
        """The number of this attempt: one more than the highest in metrics.jsonl, counted from 1."""
        if not self.metrics.is_file():
            return 1
        highest = 0
        with self.metrics.open("rb") as lines:
            for line in lines:
                try:
                    highest = max(highest, int(json.loads(line).get("attempt", 0)))
                except (ValueError, AttributeError):  # a torn last line of a crashed attempt
                    continue
        return highest + 1

    def threads(self) -> int | None:
        """The number of threads with which the newest checkpoint was made, else the run began; None where it is not
        recorded."""
        found = self.checkpoints()
        places = [(found[-1][1] / "state.json", "threads")] if found else [(self._place(THREADS), "count")]
        for place, key in places:
            with suppress(HalterError, OSError):
                count = read_json(place).get(key)
                return count if isinstance(count, int) and count > 0 else None
        return None

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of every complete checkpoint, oldest first. Other folders are not ours and never touched."""
        found = []
        for folder in (self.path / "checkpoints").glob("step-*"):
            match = _CHECKPOINT.fullmatch(folder.name)
            if match and (folder / MANIFEST).is_file():
                found.append((int(match[1]), folder))
        return sorted(found)

    def save_checkpoint(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        keep: int | None,
        spared: Collection[int] = (),
    ) -> Path:
        """Write checkpoints/step-NNNNNNN, manifest last, renamed into place once; then drop the oldest beyond ``keep``,
        those of ``spared`` steps neither counted nor dropped, nor any that is not whole.

        A step whose checkpoint is already whole (the same bits, after a resume) is left as it is; anything else of that
        name is moved aside.
        """
        folder = self.path / "checkpoints" / f"step-{step:07d}"
        if folder.exists() and not self._whole(folder):
            set_aside(folder)
        if not folder.exists():
            with new_folder(folder) as temporary:
                for stem, named in tensors.items():
                    write_tensors(temporary / f"{stem}.safetensors", named)
                write_json(temporary / "state.json", dict(state))
                write_manifest(temporary, [file.name for file in temporary.iterdir()])
            self._seen[folder] = _signature(folder)
        if keep is not None:
            whole = [folder for at, folder in self.checkpoints() if at not in spared and self._whole(folder)]
            for old in whole[: -max(1, keep)]:
                discard(old)
        return folder

    def save_best(self, step: int, adapter: Mapping[str, Tensor]) -> None:
        """Write checkpoints/best-NNNNNNN, the adapter of an evaluation that no earlier one beat."""
        folder = self._best(step)
        if folder.exists() and not self._whole(folder):
            set_aside(folder)
        if not folder.exists():
            with new_folder(folder) as temporary:
                write_tensors(temporary / f"{ADAPTER}.safetensors", adapter)
                write_manifest(temporary, [file.name for file in temporary.iterdir()])
            self._seen[folder] = _signature(folder)

    def load_best(self, step: int) -> dict[str, Tensor]:
        """The adapter of ``save_best``. Refusal ``damaged-checkpoint``."""
        folder = self._best(step)
        check_manifest(folder, _DAMAGED, "train.load_best_model_at_end=false does without it")
        return read_tensors(folder / f"{ADAPTER}.safetensors")

    def drop_best_but(self, steps: Collection[int]) -> None:
        """Remove what ``save_best`` wrote after other steps than these."""
        for folder in sorted((self.path / "checkpoints").glob("best-*")):
            match = _BEST.fullmatch(folder.name)
            if match and int(match[1]) not in steps and self._whole(folder):
                discard(folder)

    def _best(self, step: int) -> Path:
        return self.path / "checkpoints" / f"best-{step:07d}"

    def state_of_checkpoint(self, step: int) -> dict[str, Any]:
        """The plain values of a checkpoint, {} where they cannot be read."""
        with suppress(HalterError, OSError):
            found = read_json(self.path / "checkpoints" / f"step-{step:07d}" / "state.json")
            return found if isinstance(found, dict) else {}
        return {}

    def _whole(self, folder: Path) -> bool:
        """Whether every byte is as it was written; read again only where size or time of a file have changed."""
        if not (folder / MANIFEST).is_file():
            return False
        if self._seen.get(folder) != _signature(folder):
            try:
                check_manifest(folder, _DAMAGED, _REMEDY)
            except Refusal:
                return False
            self._seen[folder] = _signature(folder)
        return True

    def load_checkpoint(self, folder: Path) -> Checkpoint:
        """Read a checkpoint after checking every byte against its manifest. Refusal ``damaged-checkpoint`` names the
        files that are not what was written."""
        names = check_manifest(folder, _DAMAGED, _REMEDY)
        tensors = {Path(name).stem: read_tensors(folder / name) for name in names if name.endswith(".safetensors")}
        return Checkpoint(int(folder.name.removeprefix("step-")), tensors, read_json(folder / "state.json"))

    def sweep(self) -> None:
        """Remove what an attempt that died was writing; it was never complete, and its names are ours alone."""
        for parent in (self.path, self.path / "checkpoints"):
            for left in leftovers(parent):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def refuse_unless_usable(self, resume: bool) -> None:
        """Refuse a folder that holds a finished run, or checkpoints that only ``resume`` may continue."""
        if self.finished:
            raise Refusal(
                "run-finished", "this folder holds a finished run", where=str(self.path), fix="give another --output"
            )
        if self.checkpoints() and not resume:
            raise Refusal(
                "run-unfinished",
                "this folder holds an unfinished run",
                where=str(self.path),
                fix="continue it with --resume, or give another --output",
            )


def _is_report(file: Path) -> bool:
    """Whether data.json is a run's account of its rows."""
    with suppress(HalterError, OSError):
        found = read_json(file)
        return isinstance(found, dict) and {"rows", "sources"} <= found.keys()
    return False


def _signature(folder: Path) -> Any:
    """What changes when somebody writes to a file of the folder."""
    status = ((file.name, file.stat()) for file in sorted(folder.iterdir()))
    return [(name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in status]
