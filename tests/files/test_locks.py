"""One process at a time in a folder; a death leaves nothing that locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import threading

import pytest

from halter.errors import Refusal
from halter.files import locks
from halter.files.locks import LOCK, held


def forked(work):
    """(pid, reader): a child that runs ``work(say)``, whose words come through the pipe, and then waits."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            work(lambda text: os.write(writer, text.encode()))
        finally:
            os._exit(0)
    os.close(writer)
    return child, reader


def hold(folder):
    def work(say):
        with held(folder):
            say("held")
            signal.pause()

    return work


def killed(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_held_folder_is_refused_by_its_holder_and_free_after_kill(tmp_path):
    folder = tmp_path / "runs" / "001"
    child, reader = forked(hold(folder))
    assert os.read(reader, 10) == b"held"
    for _ in range(2):  # a refusal does not loosen it
        with pytest.raises(Refusal) as refusal, held(folder):
            raise AssertionError
        assert refusal.value.id == "run-in-use" and f"process {child} on {os.uname().nodename}" in str(refusal.value)
    killed(child)
    assert json.loads((folder / LOCK).read_text())["pid"] == child  # left, and no lock
    with held(folder):
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
    assert not folder.exists() or list(folder.iterdir()) == []


def test_one_process_does_not_hold_it_twice(tmp_path):
    with held(tmp_path), pytest.raises(Refusal, match=rf"process {os.getpid()} on .*\[run-in-use\]"), held(tmp_path):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


def test_a_helper_that_outlives_its_parent_keeps_no_lock(tmp_path):
    def parent(say):
        with held(tmp_path):
            if (helper := os.fork()) == 0:
                signal.pause()
            say(str(helper))
            signal.pause()

    child, reader = forked(parent)
    helper = int(os.read(reader, 10))
    try:
        with pytest.raises(Refusal), held(tmp_path):
            raise AssertionError
        killed(child)
        with held(tmp_path):
            pass
    finally:
        os.kill(helper, signal.SIGKILL)


def test_many_who_come_and_go_are_never_two_at_once(tmp_path):
    """The lock's file is removed at every end; whoever opened it before must not count as its holder."""
    inside, most, turns = [0], [0], [0]

    def visitor():
        for _ in range(200):
            try:
                with held(tmp_path):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    turns[0] += 1
                    os.sched_yield()
                    inside[0] -= 1
            except Refusal:
                pass

    threads = [threading.Thread(target=visitor) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and turns[0] > 10


def test_a_removed_name_is_opened_again(tmp_path, monkeypatch):
    """Between opening and locking the holder ends and removes the file: that lock is of no file any more."""
    real, once = fcntl.flock, []

    def late(descriptor, how):
        real(descriptor, how)
        if not once:
            once.append((tmp_path / LOCK).unlink())

    monkeypatch.setattr(fcntl, "flock", late)
    with held(tmp_path):
        assert (tmp_path / LOCK).is_file()
        with pytest.raises(Refusal), held(tmp_path):
            raise AssertionError


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, None])
def test_without_locks_it_says_so_and_goes_on(tmp_path, monkeypatch, error):
    def none(*_):
        raise OSError(error, "no locks")

    if error is None:
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", none)
    said = []
    with held(tmp_path, said.append):
        pass
    assert len(said) == 1 and str(tmp_path) in said[0] and "no locks" in said[0]
