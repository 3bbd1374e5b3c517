"""What does not fit into memory is refused, or cut into passes that fit, before anything is allocated: the plan of the
very setting is asked (its own accuracy is held in tests/plan). On a CPU the system would kill the process instead."""

from __future__ import annotations

import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from playground_run import recipe as made

from halter.cli.progress import CountLine, patiently
from halter.run import checks_machine, estimate
from halter.run.preflight import examine
from halter.training import memory

FREE = 8 * 10**9


@pytest.fixture(autouse=True)
def eight_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a disk with room for any checkpoint: what a full one says is held in tests/run/test_preflight.py."""
    have(monkeypatch, FREE)
    disk = namedtuple("disk", "total used free")(10**15, 0, 10**15)
    monkeypatch.setattr(checks_machine.shutil, "disk_usage", lambda place: disk)


def have(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(estimate, "free_bytes", lambda device: free)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: free)


def with_rank(folder: Path, r: int, **train: Any) -> dict[str, Any]:
    return made(folder, **train) | {"method": {"name": "lora", "r": r}}


def test_an_adapter_that_is_too_large_is_refused(tmp_path: Path) -> None:
    found = examine(with_rank(tmp_path, 100_000), planned=True)
    assert [problem.id for problem in found.problems] == ["row-memory"]
    assert "smaller --r" in str(found.problems[0]) and found.problems[0].waivable
    assert not examine(with_rank(tmp_path, 16), planned=True).problems
    waived = examine(with_rank(tmp_path, 100_000) | {"checks": {"allow": ["row-memory"]}})
    assert not waived.problems and [one["id"] for one in waived.waived] == ["row-memory"]


def test_a_pass_that_is_too_large_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 12,000: its numbers fit, a pass of all rows does not, since each token passes through 12,000 numbers at 28
    places; that the base's own activations are small says nothing."""
    have(monkeypatch, 3_600_000_000)
    said: list[str] = []
    rows = {"per_device_train_batch_size": 12}
    found = examine(with_rank(tmp_path, 12_000, **rows), say=said.append, planned=True)
    assert found.job is not None and not found.problems
    usual = examine(with_rank(tmp_path, 4, **rows)).job
    assert usual is not None and found.job.micro_tokens < usual.micro_tokens
    assert any(f"train.micro_tokens is {found.job.micro_tokens}" in line for line in said)
    assert found.job.recipe.train.micro_tokens == found.job.micro_tokens  # a resumed run has the same passes
    longest = max(found.job.data.train.lengths)
    passes = [micro for step in found.job.plan(0) for micro in step]
    assert max(sum(int(found.job.data.train.lengths[row]) for row in rows) for rows in passes) <= found.job.micro_tokens
    assert found.job.micro_tokens >= longest and found.job.steps == usual.steps
    # Whoever chose the passes is asked; the fix as it is printed goes through.
    chosen = examine(with_rank(tmp_path, 12_000, micro_tokens=usual.micro_tokens, **rows))
    assert [problem.id for problem in chosen.problems] == ["row-memory"]
    fix = str(chosen.problems[0]).partition("--micro-tokens ")[2].partition(";")[0]
    assert not examine(with_rank(tmp_path, 12_000, micro_tokens=int(fix), **rows)).problems


def test_checkpointing_counts_the_adapters_own_numbers(tmp_path: Path) -> None:
    from halter.methods.lora import Lora
    from halter.planning.dry import dry_adapter

    job = examine(with_rank(tmp_path, 4)).job
    assert job is not None
    width = job.config.dim
    thin, thick = (dry_adapter(job.config, [Lora(r=r)]) for r in (4, 4096))
    places = 7 * job.config.layers
    assert memory.own_numbers(thin) == 4 * places and memory.own_numbers(thick) == 4096 * places > width
    assert memory.own_numbers(dry_adapter(job.config, [_full()])) < 1024 * places
    cpu = memory.torch.device("cpu")
    assert not memory.needs_checkpointing(job.config, 8192, 4, cpu, [thin])
    assert memory.needs_checkpointing(job.config, 8192, 4, cpu, [thick])


def _full() -> Any:
    from halter.contract.registry import find

    return find("full")()


def test_doctor_says_what_it_looked_at(tmp_path: Path) -> None:
    looked = examine(made(tmp_path), planned=True).looked
    assert looked[:3] == ("recipe", "this machine", "output folder")
    assert any("names, shapes and numbers of the base's" in words for words in looked)
    assert any(words.startswith("memory (about ") and "7.5 GiB free" in words for words in looked)


def test_what_takes_long_says_so_after_two_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from halter.cli import progress

    assert progress.PATIENCE_SECONDS <= 2
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.05)
    with patiently("planning"):
        time.sleep(0.3)
    with patiently("never said"):
        pass
    with CountLine("methods tried", 1) as counter:
        counter.of(0, 4)
        time.sleep(0.1)
        counter.of(2, 4)
    err = capsys.readouterr().err
    assert "planning" in err and "never" not in err and "methods tried: 2 of 4" in err
