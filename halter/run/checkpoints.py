"""The checkpoints of one run in training: what goes into them, which are spared, and how a run goes on from one."""

from __future__ import annotations

from typing import Any

import torch

from halter.adapters.loading import restore
from halter.adapters.saving import state_of
from halter.errors import SHOWN_FOUND as SHOWN
from halter.errors import Refusal
from halter.files.runs import RunFolder
from halter.pretrained.digest import BaseIdentity
from halter.run.watch import Watch
from halter.telling import Say
from halter.training.loop import Alarm
from halter.training.trainee import Trainee


class Checkpointer:
    """Saves and resumes one trainee. ``spared`` are steps whose checkpoints stay whatever the limit says: the last good
    one before each alarm."""

    def __init__(self, run: RunFolder, trainee: Trainee, watch: Watch, say: Say, base: Any) -> None:
        self.run, self.trainee, self.watch, self.say = run, trainee, watch, say
        self.base = base.fingerprint if isinstance(base, BaseIdentity) else None
        self.spared: list[int] = []
        self.best_of: dict[int, int] = {}

    def save(self, step: int, limit: int | None) -> None:
        """Write the checkpoint after ``step`` steps; the newest ``limit`` and the spared ones are kept."""
        tensors, values = self.trainee.state()
        named = {"adapter-0": state_of(self.trainee.adapter), "optimizer-0": tensors}
        if self.watch.found.kept:
            named["best-0"] = self.watch.found.kept
        values |= {"watch": self.watch.state(), "spared": self.spared, "base": self.base}
        values["threads"] = torch.get_num_threads()
        self.run.save_checkpoint(step, named, values, limit, self.spared)
        self.best_of[step] = self.watch.found.step
        there = [at for at, _ in self.run.checkpoints()]
        # A run may go on from any checkpoint, and then wants the best adapter that this one knew.
        self.run.drop_best_but({self.watch.found.step, *(self._best_of(at) for at in there)})

    def _best_of(self, step: int) -> int:
        """After which step the best evaluation was that the checkpoint of ``step`` knew."""
        if step not in self.best_of:
            self.best_of[step] = int(self.run.state_of_checkpoint(step).get("watch", {}).get("step", 0))
        return self.best_of[step]

    def stop(self) -> None:
        """A checkpoint of where training stands, unless there is one."""
        step = self.trainee.step
        if step:
            if step not in (at for at, _ in self.run.checkpoints()):
                self.save(step, None)
            self.say(
                f"stopped after step {step}, which is kept; go on with: halter train --resume --output {self.run.path}"
            )

    def alarm(self, alarm: Alarm) -> None:
        """Name the rows of a step that went wrong, and spare the checkpoint before a spike."""
        rows = ", ".join(alarm.rows[:SHOWN]) + (f" and {len(alarm.rows) - SHOWN} more" * (len(alarm.rows) > SHOWN))
        if alarm.record.trouble == "non-finite":
            self.say(f"step {alarm.step}: loss or gradient is not finite, the step is left out; rows: {rows}")
            return
        before = [step for step, _ in self.run.checkpoints() if step < alarm.step]
        self.spared = sorted({*self.spared, *before[-1:]})
        kept = f"the checkpoint of step {before[-1]} is kept" if before else "there is no checkpoint before it"
        self.say(f"step {alarm.step}: the loss leapt to {alarm.record.loss:.4f}; {kept}; rows: {rows}")

    def carry_on(self, steps: int, say: Say) -> None:
        """What a finished run needs to go on to more ``steps``; nothing for one that was stopped."""
        if not self.run.finished:
            return
        self.watch.patient_again()
        done, rate = self.run.planned_steps(), self.trainee.learning_rate()
        say(
            f"note: this run was finished at {done} steps and goes on to {steps}; the learning rate follows the "
            f"schedule of {steps} steps, {rate:.2e} at step {self.trainee.step + 1}"
        )

    def resume(self, say: Say) -> None:
        """Go on from the newest checkpoint. Refusals ``damaged-checkpoint``, ``base-differs``."""
        found = self.run.checkpoints()
        if not found:
            say("resume: no complete checkpoint, starting at step 0")
            return
        where = found[-1][1]
        saved = self.run.load_checkpoint(where)
        base = saved.state["base"]
        if base and self.base and base != self.base and "base-differs" not in self.watch.job.recipe.checks.allow:
            raise Refusal(
                "base-differs",
                "the base is not the one that this run was begun on",
                where=str(where),
                found=[f"its fingerprint is {self.base[:16]}..., the run's base had {base[:16]}..."],
                fix="give back the base's files, or begin another run",
                waivable=True,
            )
        restore(self.trainee.adapter, saved.tensors["adapter-0"], str(where))
        self.trainee.restore(saved.tensors["optimizer-0"], saved.state)
        self.watch.restore(saved.tensors.get("best-0", {}), saved.state["watch"])
        self.spared = [int(step) for step in saved.state["spared"]]
        say(f"resume: from {where}")
