"""What a base is: one SHA-256 over its tensors under their canonical names, however they are filed.

Each tensor is hashed by its bytes in Hugging Face's layout, so that one file, shards and Meta's folder of the same
weights are the same base. In which dtype and layout they are stored is noted beside the digest and is no part of it,
except as far as another dtype means other bytes. Reading a large model takes seconds to minutes, so the result is kept
in the user's cache folder (HALTER_CACHE, else ~/.cache/halter) under the path, size, time and inode of every file.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from halter.errors import HalterError
from halter.files.caches import cache_folder
from halter.files.checkpoint import open_checkpoint
from halter.files.names import EMBEDDING, HEAD
from halter.files.reading import read_json
from halter.files.tensors import tensor_sha256
from halter.files.writing import write_json
from halter.model.decoder import Decoder
from halter.model.places import path

_FORMAT = 1


@dataclass(frozen=True)
class BaseDigest:
    """``digest``: SHA-256 as hex. ``storage``: layout, {dtype: number of tensors}, and whether stored in 4 bits."""

    digest: str
    storage: dict[str, Any]


def digest_base(folder: str | Path) -> BaseDigest:
    """The identity of the model in a local folder. Refusals as files.checkpoint.open_checkpoint's."""
    checkpoint = open_checkpoint(folder)
    key = _key([*checkpoint.files, *(Path(folder) / name for name in ("config.json", "params.json"))])
    kept = _kept(key)
    if kept is not None:
        checkpoint.close()
        return kept
    specs = checkpoint.names()
    hashes = {name: checkpoint.sha256(name) for name in specs}
    if checkpoint.config.get("tie_word_embeddings") and hashes.get(HEAD) == hashes.get(EMBEDDING):
        hashes.pop(HEAD, None)  # a second copy of the same matrix is filing, not content
    checkpoint.close()
    dtypes = Counter(str(specs[name].dtype).removeprefix("torch.") for name in hashes)
    storage = {"layout": checkpoint.layout, "dtypes": dict(sorted(dtypes.items())), "nf4": bool(checkpoint.quantized)}
    digest = BaseDigest(combine((name, specs[name].shape, sha) for name, sha in hashes.items()), storage)
    if _key([Path(f) for f, *_ in key]) == key:  # unless somebody wrote while we read
        with suppress(HalterError, OSError):  # a home without room or rights costs time, nothing else
            _cache_file(key).parent.mkdir(parents=True, exist_ok=True)
            write_json(_cache_file(key), {"format": _FORMAT, "files": key, **asdict(digest)}, replace=True)
    return digest


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
    """A digest of everything a Decoder holds in memory, 4-bit storage included; equal before and after means untouched.

    Of a dense model in its checkpoint's dtype it is digest_base's.
    """

    def held() -> Iterable[tuple[str, tuple[int, ...], str]]:
        for layer, place, module in model.places():
            if place == "lm_head" and model.config.tied:
                continue
            buffers = dict(module.named_buffers())
            dense = len([name for name in buffers if name != "bias"]) == 1
            for name, tensor in buffers.items():
                suffix = "bias" if name == "bias" else "weight" if dense else f"weight.{name}"
                yield f"{path(layer, place)}.{suffix}", tuple(tensor.shape), tensor_sha256(tensor)

    return combine(held())


def combine(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> str:
    """One SHA-256 from (canonical name, shape, SHA-256 of the bytes), in whatever order they come."""
    lines = sorted(f"{name} {list(shape)} {sha}\n" for name, shape, sha in tensors)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


Key = list[tuple[str, int, int, int]]


def _key(files: Iterable[Path]) -> Key:
    real = sorted({f.resolve() for f in files if f.is_file()})
    return [(str(f), (s := f.stat()).st_size, s.st_mtime_ns, s.st_ino) for f in real]


def _cache_file(key: Key) -> Path:
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return cache_folder() / "digests" / f"{name}.json"


def _kept(key: Key) -> BaseDigest | None:
    with suppress(HalterError, KeyError, TypeError, ValueError):  # a broken cache is no cache
        entry = read_json(_cache_file(key))
        if entry["format"] == _FORMAT and [tuple(f) for f in entry["files"]] == key:
            return BaseDigest(str(entry["digest"]), dict(entry["storage"]))
    return None
