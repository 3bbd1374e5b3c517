"""The adapters in memory: loaded when they are first asked for, kept as long as there is room, never taken from a row
that runs."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halter.adapters.adapter import Adapter
from halter.adapters.folder_files import CONFIG, FACTS, weights_file
from halter.adapters.ready import Ready, ready
from halter.adapters.stacked import Stacked
from halter.errors import HalterError, Refusal
from halter.files.manifest import MANIFEST, sha256_of
from halter.files.nearby import adapter_folder
from halter.model.decoder import Decoder
from halter.serve.wire.errors import Failure, broken, no_model, overloaded
from halter.text.chat.conversations import ChatTemplate

LOG = logging.getLogger("halter.serve")


@dataclass(frozen=True)
class OpenedAdapter:
    """An adapter on the base, and how it is asked."""

    adapter: Adapter
    template: ChatTemplate | None = None
    date: str | None = None


Open = Callable[[Path], OpenedAdapter]
"""From a folder to an adapter on the base; for threads. Refusals of opening."""


@dataclass(eq=False)
class HeldAdapter:
    """One version of one adapter in memory. ``pins``: requests that use it."""

    name: str
    digest: str
    opened: OpenedAdapter
    ready: Adapter | Stacked | Ready
    nbytes: int
    pins: int = field(default=0)

    @property
    def facts(self) -> dict[str, Any]:
        """What a client may know of it."""
        return {"digest": self.digest, "methods": [type(one).name() for one in self.opened.adapter.methods]}


class HeldAdapters:
    """Adapters by name. For the event loop alone; reading and binding happen in a thread of its own, one at a time.

    ``warm`` has the base answer one token with a new adapter, and raises HalterError where it cannot. ``gone`` is told
    the digest of a version that is no longer in memory, once no request uses it.
    """

    def __init__(
        self,
        base: Decoder,
        table: Mapping[str, Path],
        open: Open,
        warm: Callable[[Any], Awaitable[None]],
        budget: int,
        gone: Callable[[str], None],
    ) -> None:
        self.known: Mapping[str, Path] = dict(table)
        """Every adapter of the start's folders; ``table`` lacks those that were unloaded."""
        self.table, self.budget = dict(table), budget
        self._base, self._open, self._warm, self._gone = base, open, warm, gone
        self._held: OrderedDict[str, HeldAdapter] = OrderedDict()  # the one that was asked for last stands last
        self._leaving: set[HeldAdapter] = set()  # replaced or unloaded, and still in use
        self._loading: dict[str, asyncio.Task[HeldAdapter]] = {}
        self._broken: dict[str, str] = {}
        self._thread: Executor = ThreadPoolExecutor(1, "adapters")

    def held(self, name: str) -> HeldAdapter | None:
        """The adapter of that name where it is in memory."""
        return self._held.get(name)

    @property
    def every(self) -> list[HeldAdapter]:
        """Those in memory under their names, without versions that were replaced or unloaded."""
        return list(self._held.values())

    async def take(self, name: str, digest: str = "") -> HeldAdapter:
        """The adapter of that name, pinned until ``release``. Raises Failure: an unknown name or version, an adapter
        that cannot be used, or no room beside those that are in use."""
        if name not in self.table:
            raise no_model(name)
        if name in self._broken:
            raise broken(name, self._broken[name])
        resident = self._held.get(name)
        if resident is None:
            resident = await self._new(name)
        if not resident.digest.startswith(digest):
            raise no_model(f"{name}@{digest}")
        if self._held.setdefault(name, resident) is resident:
            self._held.move_to_end(name)
        else:  # a newer version has come meanwhile
            self._leaving.add(resident)
        resident.pins += 1
        return resident

    def release(self, resident: HeldAdapter) -> None:
        """One request less that uses it."""
        resident.pins -= 1
        if not resident.pins and resident in self._leaving:
            self._leaving.remove(resident)
            self._gone(resident.digest)

    async def load(self, name: str) -> HeldAdapter:
        """Read an adapter before it is asked for, also one that was unloaded or could not be used. Failure as
        ``take``."""
        self._refuse_unknown(name)
        self.table[name] = self.known[name]
        self._broken.pop(name, None)
        resident = await self.take(name)
        self.release(resident)
        return resident

    async def reload(self, name: str) -> HeldAdapter:
        """The version that lies in the folder now, for all requests from then on; those that run end with the version
        with which they began. Where it cannot be used, the old one goes on. Failure as ``take``."""
        self._refuse_unknown(name)
        if name in self._loading:  # which may have read the older files
            await asyncio.wait([self._loading[name]])
        self.table[name] = self.known[name]
        self._broken.pop(name, None)
        return await self._new(name)

    async def unload(self, name: str) -> None:
        """From now on it is as one that is not there; requests that run end with it."""
        self._refuse_unknown(name)
        self.table.pop(name, None)
        self._broken.pop(name, None)
        self._leave(self._held.pop(name, None))

    def row(self, name: str) -> dict[str, Any]:
        """What an administrator may know of it. ``leaving``: requests that run on versions which were replaced or
        unloaded."""
        here = self._held.get(name)
        states = {"loading": name in self._loading, "loaded": here, "broken": name in self._broken}
        state = next((word for word, is_so in states.items() if is_so), "known" if name in self.table else "unloaded")
        facts = {} if here is None else {**here.facts, "bytes": here.nbytes, "running": here.pins}
        why = {"why": self._broken[name]} if name in self._broken else {}
        return {"name": name, "state": state, **facts, **why, "leaving": self._running_on(name)}

    def _running_on(self, name: str) -> int:
        return sum(one.pins for one in self._leaving if one.name == name)

    def _refuse_unknown(self, name: str) -> None:
        if name not in self.known:
            raise no_model(name)

    def _leave(self, old: HeldAdapter | None) -> None:
        if old is not None and old.pins:
            self._leaving.add(old)
        elif old is not None:
            self._gone(old.digest)

    async def _new(self, name: str) -> HeldAdapter:
        task = self._loading.get(name)
        if task is None:
            task = self._loading[name] = asyncio.create_task(self._load(name))
            task.add_done_callback(lambda done: self._loaded(name, done))
        resident = await asyncio.shield(task)  # others may wait for it when this one has gone
        if name not in self.table:  # unloaded meanwhile
            raise no_model(name)
        return resident

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _loaded(self, name: str, done: asyncio.Task[HeldAdapter]) -> None:
        del self._loading[name]
        if not done.cancelled():
            done.exception()  # nobody may wait for it any more

    async def _load(self, name: str) -> HeldAdapter:
        try:
            resident = await asyncio.get_running_loop().run_in_executor(self._thread, self._read, name)
        except Refusal as refusal:
            raise self._unusable(name, refusal.id, refusal) from refusal
        try:
            await self._warm(resident.ready)
        except HalterError as error:
            raise self._unusable(name, "it cannot answer", error) from error
        if name not in self.table:
            return resident  # to be refused by who asked for it
        old = self._held.get(name)
        if old is not None and old.digest == resident.digest:
            return old
        self._make_room(resident)
        self._leave(self._held.pop(name, None))
        self._held[name] = resident
        return resident

    def _unusable(self, name: str, why: str, error: HalterError) -> Failure:
        """What is told of it from now on."""
        LOG.error("adapter %s cannot be used: %s", name, error)
        if name not in self._held:  # else the version that is there goes on
            self._broken[name] = why
        return broken(name, why)

    def _read(self, name: str) -> HeldAdapter:
        """The adapter, of the bytes that lay in its folder before and after it was read."""
        folder = adapter_folder(self.known[name])
        before = digest_of(folder)
        opened = self._open(self.known[name])
        if digest_of(folder) != before:
            what = "its files were changed while they were read"
            raise Refusal("adapter-damaged", what, where=str(folder), fix="write it into a folder of its own")
        bound = ready(self._base, opened.adapter) if self._base.residence.resident else opened.adapter
        size = sum(t.nbytes for t in (*opened.adapter.parameters(), *opened.adapter.buffers()))
        return HeldAdapter(name, before, opened, bound, size * (1 if bound is opened.adapter else 2))

    def _make_room(self, new: HeldAdapter) -> None:
        """Let go of those that were asked for longest ago. Failure where all that are left are in use."""
        for name, one in list(self._held.items()):
            if self.nbytes + new.nbytes <= self.budget:
                return
            if not one.pins:
                self._leave(self._held.pop(name))
        if self._held and self.nbytes + new.nbytes > self.budget:
            raise overloaded(f"no room for the adapter {new.name!r} beside those that are in use")

    @property
    def nbytes(self) -> int:
        """What the adapters in memory take, about."""
        return sum(one.nbytes for one in (*self._held.values(), *self._leaving))


def digest_of(folder: Path) -> str:
    """SHA-256 (hex) of an adapter folder's files: what tells one version from another."""
    names = (CONFIG, weights_file(folder).name, FACTS, MANIFEST)
    found = [(name, sha256_of(folder / name)) for name in names if (folder / name).is_file()]
    return hashlib.sha256(repr(found).encode()).hexdigest()
