"""Whether a run that goes on learns from the rows that it began with: their digests stand in its data.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from halter.data import seen
from halter.data.examples import Examples
from halter.data.fingerprint import PARTS, differences, fingerprint, same
from halter.errors import HalterError, Refusal
from halter.files.reading import read_json
from halter.files.runs import RunFolder
from halter.run.prepare import Job
from halter.telling import Say

FILE = "data.json"
BEGUN, NOW, ROWS = "learned_from", "now", "rows_learned"
"""Keys of data.json: the rows of the run's first step, and, where others were waived in, those of the last attempt; the
digest of every row of any attempt (data.seen)."""


def record(run: RunFolder, job: Job) -> dict[str, Any]:
    """data.json of this attempt. A run that has checkpoints keeps the digests of the rows with which it began."""
    facts = _facts(job)
    begun = _begun(run) if run.checkpoints() else None
    kept = {BEGUN: facts} if begun is None or begun == facts else {BEGUN: begun, NOW: facts}
    before = _kept(run).get(ROWS) if run.checkpoints() else None
    return job.data.report.as_dict() | kept | {ROWS: seen.packed(job.data.train, before)}


def learned_before(run: RunFolder, rows: Examples) -> int:
    """How many of these rows the run has learned from, as far as its data.json says."""
    return seen.again(rows, _kept(run).get(ROWS))


def _kept(run: RunFolder) -> dict[str, Any]:
    """What data.json says; {} where it is not there or no longer an object."""
    with suppress(HalterError, OSError):
        found = read_json(run.own.place(FILE))
        return found if isinstance(found, dict) else {}
    return {}


def _facts(job: Job) -> dict[str, Any]:
    template = None if job.template is None else job.template.digest
    return {**fingerprint(job.data), "tokenizer": job.tokenizer.digest, "template": template}


def _begun(run: RunFolder) -> dict[str, Any] | None:
    """The digests that a run wrote when it began; None where it is of before they were kept, or they cannot be read."""
    with suppress(HalterError, OSError, KeyError, TypeError, AttributeError):
        found = read_json(run.own.place(FILE))[BEGUN]
        whole = all(isinstance(found[part]["digest"], str) and found[part]["files"].items() for part in ("train",))
        return found if whole and all(part in found for part in PARTS) else None
    return None


def moved(run: RunFolder, old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of the recipe that say where rows lie and may change, as the digests of the rows tell what they are;
    ``old`` and ``new`` are the data sections."""
    if _begun(run) is None:
        return ()
    held = isinstance(old.get("validation"), str) and isinstance(new.get("validation"), str)
    return ("data.train", "data.validation") if held else ("data.train",)


def changes(job: Job, say: Say) -> Iterator[Refusal]:
    """Refusal ``run-data-differs`` where a run that is to go on has learned from other rows than the job has."""
    run = RunFolder(job.recipe.output_dir or "")
    if job.recipe.output_dir is None or not run.begun or not run.checkpoints():
        return
    begun = _begun(run)
    if begun is None:
        say("note: this run was begun before Halter kept digests of rows: whether the data is the same is not checked")
        return
    now = _facts(job)
    if same(begun, now):
        return
    found = [f"the {what} is another one" for what in ("tokenizer", "template") if begun.get(what) != now[what]]
    begin = f" --init-from {run.path}" if run.finished else ""  # a checkpoint alone is no adapter to start from
    yield Refusal(
        "run-data-differs",
        "the rows are not those that this run has learned from so far",
        where=str(run.path),
        found=[*found, *differences(begun, now, job.data)],
        fix="put the rows back as they were (where they lie elsewhere now: --data FILE); or learn the new ones in "
        f"another run:{begin} --output OTHER",
        waivable=True,
    )
