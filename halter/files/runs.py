"""The run folder: append-only, and complete only where a manifest, written last, says so.

recipe.yaml  metrics.jsonl  checkpoints/step-0000123/{adapter-0, optimizer-0}.safetensors, state.json, manifest.json
adapter/     the result; its presence means that the run is finished
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halter.errors import HalterError, Refusal
from halter.files.disk import leftovers
from halter.files.folders import discard, new_folder, rename, set_aside
from halter.files.manifest import MANIFEST, check_manifest, write_manifest
from halter.files.own_files import BEGUN as BEGUN
from halter.files.own_files import OURS, RECIPE, OwnFiles
from halter.files.reading import read_json
from halter.files.writing import append_line, write_json, write_tensors

if TYPE_CHECKING:  # whoever only asks what a folder is need not wait for torch
    from torch import Tensor

THREADS = "threads.json"
_CHECKPOINT, _BEST = re.compile(r"step-(\d{7})"), re.compile(r"best-(\d{7})")
ADAPTER = "adapter-0"
"""Stem of the adapter's tensors in a checkpoint."""
_DAMAGED = "damaged-checkpoint"


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
        self.own = OwnFiles(self.path)
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
    def record(self) -> Path:
        """The recipe by which this run was trained last, as it was written; ``recipe`` where there is no record yet, or
        somebody has changed it."""
        kept = self.own.place(BEGUN)
        return kept if self.own.wrote(kept) else self.recipe

    @property
    def unrecorded(self) -> bool:
        """Whether the recipe was changed after the run wrote it, and nothing else says what it was."""
        return self.record == self.recipe and not self.own.wrote(self.recipe)

    def put_recipe(self, text: str) -> Path:
        """Write the recipe of this attempt, and its record; returns the recipe's file."""
        written = self.put(RECIPE, text)
        self.put(BEGUN, text)
        return written

    @property
    def begun(self) -> bool:
        """Whether a run was begun here; a recipe.yaml of the user's alone is none."""
        recipe = self.recipe
        return recipe.is_file() and (recipe.name != RECIPE or self.own.wrote(recipe) or self.own.has_traces())

    @property
    def users_recipe(self) -> Path | None:
        """A recipe.yaml that no run wrote, or that was changed since; it stays as it is."""
        there = self.path / RECIPE
        return there if there.is_file() and not self.own.wrote(there) else None

    def put(self, name: str, content: str | Mapping[str, Any] | list[Any]) -> Path:
        """Write a file of this run, over what this run wrote before and nothing else (files.own_files)."""
        return self.own.put(name, content)

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
        places = [(found[-1][1] / "state.json", "threads")] if found else [(self.own.place(THREADS), "count")]
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
        if self._whole(folder):
            return
        if folder.exists():  # damaged since
            set_aside(folder)
        with new_folder(folder) as temporary:
            write_tensors(temporary / f"{ADAPTER}.safetensors", adapter)
            write_manifest(temporary, [f"{ADAPTER}.safetensors"])
        self._seen[folder] = _signature(folder)

    def load_best(self, step: int) -> dict[str, Tensor]:
        """The adapter of ``save_best``. Refusal ``damaged-checkpoint``."""
        folder = self._best(step)
        from halter.files.tensors import read_tensors

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
                check_manifest(folder, _DAMAGED, self._instead_of(folder))
            except Refusal:
                return False
            self._seen[folder] = _signature(folder)
        return True

    def load_checkpoint(self, folder: Path) -> Checkpoint:
        """Read a checkpoint after checking every byte against its manifest. Refusal ``damaged-checkpoint`` names the
        files that are not what was written."""
        from halter.files.tensors import read_tensors

        names = check_manifest(folder, _DAMAGED, self._instead_of(folder))
        tensors = {Path(name).stem: read_tensors(folder / name) for name in names if name.endswith(".safetensors")}
        return Checkpoint(int(folder.name.removeprefix("step-")), tensors, read_json(folder / "state.json"))

    def _instead_of(self, folder: Path) -> str:
        """What to do about a checkpoint that is damaged: the one before, or where there is none, another run."""
        if not any(place < folder for _, place in self.checkpoints()):
            return f"begin again in a new folder: halter train {self.record} --output {self.path}-2"
        away = f"mv {shlex.quote(str(folder))} {shlex.quote(f'{self.path / folder.name}.damaged')}"
        return f"go on from the one before: {away} && halter train --resume --output {self.path}"

    def refuse_incomplete(self) -> None:
        """Refusal ``damaged-checkpoint`` where files of the newest checkpoint are missing or cut off; their bytes are
        compared where they are read."""
        for _, folder in self.checkpoints()[-1:]:
            check_manifest(folder, _DAMAGED, self._instead_of(folder), contents=False)

    def sweep(self) -> None:
        """Remove what an attempt that died was writing; it was never complete, and its names are ours alone."""
        for parent in (self.path, self.path / "checkpoints"):
            for left in leftovers(parent):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def refuse_unless_usable(self, resume: bool) -> None:
        """Refuse a folder that holds a finished run, or checkpoints, which only ``resume`` may continue."""
        if resume or not (self.finished or self.checkpoints()):
            return
        if lost := self.without_recipe():
            raise lost
        again = f"halter train --resume --output {self.path}"
        if self.finished:
            fix = f"give another --output; for more steps: {again} --max-steps {2 * max(1, self.planned_steps())}"
            raise Refusal("run-finished", "this folder holds a finished run", where=str(self.path), fix=fix)
        what = "this folder holds an unfinished run"
        raise Refusal("run-unfinished", what, where=str(self.path), fix=f"{again}, or give another --output")

    def without_recipe(self) -> Refusal | None:
        """Refusal ``run-without-recipe`` where a run's files are here and its recipe is gone, else None."""
        result = (self.adapter / "halter.json").is_file()
        if self.begun or not (result or self.checkpoints()):
            return None
        new = f"halter train --model DIR --data FILE --output {self.path}-2"
        kept = self.own.place(BEGUN)
        back = f": cp {kept} {self.path / RECIPE}" if self.own.wrote(kept) else " as the run wrote it"
        fix = f"put {RECIPE} back{back}, or begin a new one: {new}"
        fix += f"; the result is whole: halter chat {self.adapter}" if result else ""
        what = f"this folder holds a run whose {RECIPE} is missing"
        return Refusal("run-without-recipe", what, where=str(self.path), fix=fix)

    def planned_steps(self) -> int:
        """Steps that the result was to have in all; a result that does not say it: those of the newest checkpoint."""
        with suppress(HalterError, OSError):
            told = read_json(self.adapter / "halter.json").get("run")
            if isinstance(told, dict) and isinstance(told.get("planned"), int):
                return int(told["planned"])
        return max((step for step, _ in self.checkpoints()), default=0)

    def put_result_aside(self, step: int) -> None:
        """Give the result of ``step`` steps, if there is one, a name of its own: another takes its place."""
        if self.adapter.exists():
            folder = self.path / f"adapter-of-step-{step:07d}"
            set_aside(self.adapter) if folder.exists() else rename(self.adapter, folder)


def _signature(folder: Path) -> Any:
    """What changes when somebody writes to a file of the folder."""
    status = ((file.name, file.stat()) for file in sorted(folder.iterdir()))
    return [(name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in status]
