"""The order of CUDA's calls, on recorded stand-ins for them: no GPU is needed to see that a copy is waited for."""

from __future__ import annotations

import gc
from contextlib import contextmanager

import pytest
import torch
from torch.cuda import _pin_memory_utils as locking

from halter.model.copy_stream import PAGE, CopyStream, page_lock, paged


@pytest.fixture
def calls(monkeypatch):
    seen = []

    class Event:
        pass

    class Stream:
        def __init__(self, name):
            self.name = str(name)

        def wait_stream(self, other):
            seen.append((self.name, "waits for", other.name))

        def record_event(self):
            seen.append((self.name, "marks"))
            return Event()

        def wait_event(self, event):
            assert isinstance(event, Event)
            seen.append((self.name, "waits for the mark"))

    @contextmanager
    def on(stream):
        seen.append((stream.name, "begins"))
        yield
        seen.append((stream.name, "ends"))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    return seen


def test_a_copy_comes_after_what_was_asked_and_before_what_is_asked_next(calls):
    copy_stream = CopyStream(torch.device("cuda"))
    target, source = torch.zeros(3), torch.ones(3)
    copy = copy_stream.copy(target, source)
    assert calls == [("side", "waits for", "main"), ("side", "begins"), ("side", "marks"), ("side", "ends")]
    assert torch.equal(target, source)
    copy_stream.wait(copy)
    assert calls[4:] == [("main", "waits for the mark")]
    copy_stream.wait(None)  # nothing was ever copied
    assert len(calls) == 5


def test_elsewhere_a_copy_is_made_at_once():
    copy_stream = CopyStream(torch.device("cpu"))
    target = torch.zeros(3)
    copy_stream.wait(copy_stream.copy(target, torch.ones(3)))
    assert (
        torch.equal(target, torch.ones(3)) and copy_stream.room(5).shape == (5,) and not copy_stream.room(5).is_pinned()
    )


def test_memory_is_locked_as_long_as_it_lives(monkeypatch):
    locked: dict[int, int] = {}
    monkeypatch.setattr(locking, "pin_memory", locked.__setitem__)
    monkeypatch.setattr(locking, "unpin_memory", locked.__delitem__)
    memory = paged(PAGE + 1)
    assert page_lock(memory) and locked == {memory.data_ptr(): 2 * PAGE}
    view = memory[3:]
    del memory
    gc.collect()
    assert len(locked) == 1
    del view
    gc.collect()
    assert locked == {}


def test_a_system_that_locks_no_more_is_told_of(monkeypatch):
    def refuse(start, size):
        raise RuntimeError("Registering memory failed with cudaError: 2.")

    monkeypatch.setattr(locking, "pin_memory", refuse)
    assert not page_lock(paged(1))
