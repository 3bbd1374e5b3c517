"""Who may ask a server: a file of keys, of which it holds digests alone, and what each key may ask for.

There is no way in without such a file once a server is given one: a file that is missing, empty or wrong keeps the
server from starting.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from halter.errors import Refusal
from halter.files.disk import DISK, Disk
from halter.files.reading import read_json
from halter.files.writing import json_text, write_text
from halter.serve.adapters.naming import NAME
from halter.serve.trust.secrecy import refuse_open
from halter.serve.trust.tenants import Tenant

ALL = "*"
"""Among the adapters of a key: every adapter, and the base."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BEGINNING = "halter-"
_MOST_RATE = 10**12


@dataclass(frozen=True)
class ServeKey:
    """One key, of which the digest alone is known. A rate of None has no limit."""

    id: str
    tenant: str
    sha256: str
    adapters: tuple[str, ...]
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    @property
    def owner(self) -> Tenant:
        """Who asks with this key, and what he may."""
        names = None if ALL in self.adapters else frozenset(self.adapters)
        rates = (self.requests_per_minute, self.tokens_per_minute)
        return Tenant(self.tenant, self.id, names, None, *rates)


class KeyRing:
    """The keys that are in force; ``admit`` is an Admit."""

    def __init__(self, keys: tuple[ServeKey, ...]) -> None:
        self.keys = keys

    def of(self, presented: str) -> ServeKey | None:
        """The key that was presented, None where nobody has it. All keys are compared, whichever fits, so the time that
        it takes tells nothing of them."""
        digest = digest_of(presented)
        found = None
        for key in self.keys:
            if secrets.compare_digest(key.sha256, digest):
                found = key
        return found

    def admit(self, shown: str | None) -> Tenant | None:
        """Who asks, by what a request shows as its key; None: nobody who is known."""
        key = None if shown is None else self.of(shown)
        return None if key is None else key.owner


def new_key() -> str:
    """A key that nobody can guess: 32 random bytes."""
    return _BEGINNING + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """What a file of keys holds of a key. No salt and no slow digest are needed: nobody tries out 32 random bytes."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: str | Path) -> KeyRing:
    """The keys of a file. Refusals ``keys-file``, ``secret-open`` where others may write to it, and those of
    ``read_json``."""
    path = Path(path)
    said = read_json(path)
    refuse_open(path, others=0o022)
    rows = said.get("keys")
    wrong = [f"{name}: unknown" for name in said if name != "keys"]
    if not isinstance(rows, list) or not rows:
        wrong.append("keys: a list with at least one key is needed")
        rows = []
    keys = tuple(_key(row, f"key {n}", wrong) for n, row in enumerate(rows, 1))
    for what in ("id", "sha256"):
        values = [getattr(key, what) for key in keys if key is not None]
        wrong += [f"{what} {value}: several keys have it" for value in dict.fromkeys(values) if values.count(value) > 1]
    if wrong:
        raise Refusal(
            "keys-file",
            "this file of keys cannot be used, and without it nobody is let in",
            where=str(path),
            found=wrong,
            fix="halter keys new TENANT --file FILE writes a key as it should be",
        )
    return KeyRing(tuple(key for key in keys if key is not None))


def write_keys(path: str | Path, keys: KeyRing, *, disk: Disk = DISK) -> None:
    """Write a file of keys, in place of the one that is there."""
    write_text(path, json_text({"keys": [asdict(key) for key in keys.keys]}), replace=True, private=True, disk=disk)


def _key(row: Any, where: str, wrong: list[str]) -> ServeKey | None:
    """One key of the file; everything that is wrong with it is added to ``wrong``."""
    if not isinstance(row, dict):
        wrong.append(f"{where}: not an object")
        return None
    known = ServeKey.__dataclass_fields__
    before = len(wrong)
    for name in row.keys() - known.keys():
        near = get_close_matches(str(name), known, 1)
        wrong.append(f"{where}: {name}: unknown{f' (did you mean {near[0]}?)' if near else ''}")
    for name, form, expected in (("id", NAME, "a name"), ("tenant", NAME, "a name"), ("sha256", _DIGEST, "a digest")):
        if not isinstance(row.get(name), str) or not form.fullmatch(row[name]):
            wrong.append(f"{where}: {name}: {expected} ({form.pattern}) is needed")
    adapters = row.get("adapters")
    if not isinstance(adapters, list) or not adapters or not all(isinstance(one, str) and one for one in adapters):
        wrong.append(f'{where}: adapters: a list of names is needed, ["{ALL}"] for all')
    for name in ("requests_per_minute", "tokens_per_minute"):
        rate = row.get(name)
        if rate is not None and not (type(rate) is int and 1 <= rate <= _MOST_RATE):
            wrong.append(f"{where}: {name}: a whole number from 1 on, or null for no limit")
    return ServeKey(**{**row, "adapters": tuple(row["adapters"])}) if len(wrong) == before else None
