"""What a base is: one SHA-256 over its tensors under their canonical names, however they are filed.

Each tensor is hashed by its bytes in Hugging Face's layout, so that one file, shards and Meta's folder of the same
weights are the same base. In which dtype and layout they are stored is noted beside the digest and is no part of it,
except as far as another dtype means other bytes. Reading a large model takes seconds to minutes, so the result is kept
in the user's cache folder (HALTER_CACHE, else ~/.cache/halter) under the path, size, time and inode of every file.

When is it checked? An adapter's base must be known before the first token, and hashing 16 GB must not delay that token.
So there are two digests. The full one is made in the background while an adapter is trained, and recorded. The
fingerprint is of the first row of every tensor (all of a norm): a few hundred small reads of what is loaded anyway. It
is taken at every load, and tells all bases apart that differ in training, be it by a merged adapter of low rank, which
moves the first row of every matrix that it touches. Where the full digest is in the cache it is compared; otherwise the
fingerprint is compared at once, and whoever opens a model has the full digest made in the background, for the next time
and to be told if it differs after all (a flipped bit, a trained token row).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from halter.errors import HalterError
from halter.files.caches import cache_folder
from halter.files.checkpoint import ModelFolder, open_checkpoint
from halter.files.names import storage_of, vocabulary
from halter.files.reading import read_json
from halter.files.tensors import tensor_sha256
from halter.files.writing import write_json
from halter.model.decoder import Decoder

_FORMAT = 2


@dataclass(frozen=True)
class BaseDigest:
    """``digest``: SHA-256 as hex. ``storage``: layout, {dtype: number of tensors}, and how quantised.
    ``fingerprint``: SHA-256 of the tensors' first rows."""

    digest: str
    storage: dict[str, Any]
    fingerprint: str

    def facts(self) -> dict[str, Any]:
        """What an adapter records of its base, and ``BaseIdentity.differences`` compares."""
        return asdict(self)


@dataclass(frozen=True)
class BaseIdentity:
    """Of which files a Decoder was read, and their fingerprint; ``key`` finds the full digest where it is kept."""

    folder: Path
    key: FileStamps
    fingerprint: str

    @classmethod
    def of(cls, checkpoint: ModelFolder) -> BaseIdentity:
        """Of an open checkpoint, at the cost of one small read a tensor."""
        specs = checkpoint.names()
        rows = {name: hashlib.sha256(checkpoint.first_row(name)).hexdigest() for name in specs}
        _drop_second_copy(checkpoint, rows)
        beside = (checkpoint.folder / name for name in ("config.json", "params.json"))
        fingerprint = combine((name, specs[name].shape, sha) for name, sha in rows.items())
        return cls(checkpoint.folder, _key([*checkpoint.files, *beside]), fingerprint)

    def kept(self) -> BaseDigest | None:
        """The full digest, if it was made before and no file has changed since. Takes milliseconds."""
        return _kept(self.key)

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Why these weights are not those whose ``BaseDigest.facts`` an adapter recorded; [] if nothing says so."""
        kept = self.kept()
        if kept is not None and recorded.get("digest"):
            what, here, there = "digest", kept.digest, str(recorded["digest"])
        elif recorded.get("fingerprint"):
            what, here, there = "fingerprint", self.fingerprint, str(recorded["fingerprint"])
        else:
            return []
        return [] if here == there else [f"the base's {what} is {here[:16]}..., the adapter's base had {there[:16]}..."]


def digest_base(folder: str | Path) -> BaseDigest:
    """The identity of the model in a local folder. Refusals as files.checkpoint.open_checkpoint's."""
    checkpoint = open_checkpoint(folder)
    identity = BaseIdentity.of(checkpoint)
    key, kept = identity.key, identity.kept()
    if kept is not None:
        checkpoint.close()
        return kept
    specs = checkpoint.names()
    hashes = {name: checkpoint.sha256(name) for name in specs}
    _drop_second_copy(checkpoint, hashes)
    checkpoint.close()
    dtypes = Counter(str(specs[name].dtype).removeprefix("torch.") for name in hashes)
    kinds = {storage_of(group) for group in checkpoint.quantized.values()}
    storage = {"layout": checkpoint.layout, "dtypes": dict(sorted(dtypes.items())), "quantised": sorted(kinds)}
    total = combine((name, specs[name].shape, sha) for name, sha in hashes.items())
    digest = BaseDigest(total, storage, identity.fingerprint)
    if _key([Path(f) for f, *_ in key]) == key:  # unless somebody wrote while we read
        with suppress(HalterError, OSError):  # a home without room or rights costs time, nothing else
            write_json(_cache_file(key), {"format": _FORMAT, "files": key, **asdict(digest)}, replace=True)
    return digest


def _drop_second_copy(checkpoint: ModelFolder, hashes: dict[str, str]) -> None:
    """A second copy of a tied matrix is filing, not content."""
    table, head = vocabulary(hashes)
    text = checkpoint.config.get("text_config") or checkpoint.config
    if text.get("tie_word_embeddings") and hashes.get(head) == hashes.get(table):
        hashes.pop(head, None)


def digest_in_background(folder: str | Path) -> Future[BaseDigest]:
    """digest_base in a thread of its own, which a program's end does not wait for; errors come out of ``result()``."""
    future: Future[BaseDigest] = Future()

    def work() -> None:
        try:
            future.set_result(digest_base(folder))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, name="digest", daemon=True).start()
    return future


def digest_model(model: Decoder) -> str:
    """A digest of everything a Decoder holds in memory, codes included; equal before and after means untouched.

    Of a dense model in its checkpoint's dtype it is digest_base's.
    """

    def held() -> Iterable[tuple[str, tuple[int, ...], str]]:
        for place, module in model.places():
            if place.tied:
                continue
            buffers = dict(module.named_buffers())
            dense = len([name for name in buffers if name != "bias"]) == 1
            for name, tensor in buffers.items():
                weight = place.weight_name if dense else f"{place.weight_name}.{name}"
                called = f"{place.path}.bias" if name == "bias" else weight
                yield called, tuple(tensor.shape), tensor_sha256(tensor)

    return combine(held())


def combine(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> str:
    """One SHA-256 from (canonical name, shape, SHA-256 of the bytes), in whatever order they come."""
    lines = sorted(f"{name} {list(shape)} {sha}\n" for name, shape, sha in tensors)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


FileStamps = list[tuple[str, int, int, int]]


def _key(files: Iterable[Path]) -> FileStamps:
    real = sorted({f.resolve() for f in files if f.is_file()})
    return [(str(f), (s := f.stat()).st_size, s.st_mtime_ns, s.st_ino) for f in real]


def _cache_file(key: FileStamps) -> Path:
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return cache_folder() / "digests" / f"{name}.json"


def _kept(key: FileStamps) -> BaseDigest | None:
    with suppress(HalterError, KeyError, TypeError, ValueError):  # a broken cache is no cache
        entry = read_json(_cache_file(key))
        if entry["format"] == _FORMAT and [tuple(f) for f in entry["files"]] == key:
            return BaseDigest(str(entry["digest"]), dict(entry["storage"]), str(entry["fingerprint"]))
    return None
