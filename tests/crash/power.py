"""A disk that loses power: what was not flushed may be there, in part, in another order, or not at all.

The model is of names and bodies. Every folder's names and every file's bytes have a state that is on the disk for good,
and changes since that are only on their way. A flush of a file makes its bytes good, one of a folder its names.
"""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

from halter.files.disk import Disk


class Recorder:
    """Stands in the methods of Disk, lets every call through and notes it."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self._paths = root, [], {}

    def install(self, monkeypatch) -> None:
        real = {name: getattr(Disk, name) for name in vars(Disk) if not name.startswith("_")}

        def through(name):
            def call(disk, *arguments):
                result = real[name](disk, *arguments)
                self.note(name, arguments, result)
                return result

            return call

        for name in real:
            monkeypatch.setattr(Disk, name, through(name))

    def note(self, name, arguments, result) -> None:
        if name in ("create", "append"):
            self._paths[result] = arguments[0]
            self.calls.append((name, arguments[0]))
        elif name == "write":
            self.calls.append((name, self._paths[arguments[0]], bytes(arguments[1])[:result]))
        elif name == "seek":
            self.calls.append((name, self._paths[arguments[0]], arguments[1]))
        elif name == "fsync":
            self.calls.append((name, self._paths[arguments[0]]))
        elif name != "close":
            self.calls.append((name, *arguments))


class Model:
    """The state of a disk while recorded calls are played to it. Everything lies below one root."""

    def __init__(self, root: Path) -> None:
        self.root, self._new = root, itertools.count()
        self.good = {0: {}}  # folder -> {name: body}, on the disk for good
        self.coming: list[tuple[list[tuple[int, str, int | None]], set[int]]] = []  # changes of names, by folders
        self.now = {0: {}}
        self.bytes: dict[int, bytes] = {}  # good
        self.written: dict[int, list[tuple[int, bytes]]] = {}  # (offset, data) on their way
        self.at: dict[Path, int] = {}

    def _find(self, path: Path) -> int:
        body = 0
        for part in path.relative_to(self.root).parts:
            body = self.now[body][part]
        return body

    def _change(self, *changes: tuple[int, str, int | None]) -> None:
        for folder, name, body in changes:
            if body is None:
                del self.now[folder][name]
            else:
                self.now[folder][name] = body
        self.coming.append((list(changes), {folder for folder, *_ in changes}))

    def play(self, call) -> None:
        name, path, *more = call
        if name in ("create", "mkdir"):
            body = next(self._new) + 1
            if name == "mkdir":
                self.good[body], self.now[body] = {}, {}
            else:
                self.bytes[body], self.written[body] = b"", []
                self.at[path] = 0
            self._change((self._find(path.parent), path.name, body))
        elif name == "write":
            self.written[self._find(path)].append((self.at[path], more[0]))
            self.at[path] += len(more[0])
        elif name == "seek":
            self.at[path] = more[0]
        elif name == "fsync":
            body = self._find(path)
            self.bytes[body] = _laid(self.bytes[body], self.written[body])
            self.written[body] = []
        elif name == "rename":
            source, target = self._find(path.parent), self._find(more[0].parent)
            self._change((source, path.name, None), (target, more[0].name, self._find(path)))
        elif name == "unlink":
            self._change((self._find(path.parent), path.name, None))
        elif name == "fsync_folder":
            folder = self._find(path)
            for changes, folders in self.coming:
                if folder in folders:
                    self._settle(changes)
            self.coming = [entry for entry in self.coming if folder not in entry[1]]

    def _settle(self, changes) -> None:
        for folder, name, body in changes:
            if body is None:
                self.good[folder].pop(name, None)
            else:
                self.good[folder][name] = body

    def lose_power(self, draw: random.Random, target: Path) -> None:
        """Write what is found after the power is back: good state, and of what was coming any part in any order."""
        kept = [changes for changes, _ in self.coming if draw.random() < 0.5]
        if draw.random() < 0.5:
            draw.shuffle(kept)
        for changes in kept:
            self._settle(changes)
        self._restore(0, target, draw)

    def _restore(self, folder: int, target: Path, draw: random.Random) -> None:
        target.mkdir(exist_ok=True)
        for name, body in self.good[folder].items():
            if body in self.good:
                self._restore(body, target / name, draw)
            else:
                some = [
                    (at, data[: draw.randint(0, len(data))]) for at, data in self.written[body] if draw.random() < 0.5
                ]
                (target / name).write_bytes(_laid(self.bytes[body], some))


def _laid(data: bytes, writes) -> bytes:
    whole = bytearray(data)
    for at, piece in writes:
        whole.extend(bytes(max(0, at + len(piece) - len(whole))))
        whole[at : at + len(piece)] = piece
    return bytes(whole)


def removed(monkeypatch, recorder: Recorder) -> None:
    """Removing a tree goes past Disk; note its parts as calls, so that the model sees them."""
    import shutil

    real = shutil.rmtree

    def rmtree(path, *arguments, **how):
        for parent, folders, files in os.walk(path, topdown=False):
            recorder.calls += [("unlink", Path(parent) / name) for name in files + folders]
        recorder.calls.append(("unlink", Path(path)))
        real(path, *arguments, **how)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
