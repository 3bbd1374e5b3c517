"""The key of a server's second port: drawn at each start, for whoever may read one file of this machine."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from halter.errors import Refusal
from halter.files.reading import read_json
from halter.files.writing import json_text, write_text
from halter.serve.trust.keys import new_key
from halter.serve.trust.tenants import Tenant

FIELDS = {"url", "key"}


class AdminKey:
    """A new key; ``admit`` is an Admit."""

    def __init__(self) -> None:
        self._key = new_key()

    def admit(self, shown: str | None) -> Tenant | None:
        """Who asks: the administrator, or nobody."""
        right = secrets.compare_digest((shown or "").encode("utf-8", "surrogatepass"), self._key.encode())
        return Tenant("admin", "admin") if right else None

    @contextmanager
    def told(self, path: Path, url: str) -> Iterator[None]:
        """Within, the file says where to ask and with which key; only its owner may read it (mode 0600)."""
        write_text(path, json_text({"url": url, "key": self._key}), replace=True, private=True)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def refuse_other(path: Path) -> None:
    """Refusal ``already-exists`` of a file that no server has left there, as after a kill: it would be lost."""
    if not path.exists() and not path.is_symlink():
        return
    try:
        ours = not path.is_symlink() and set(read_json(path)) == FIELDS
    except Refusal:
        ours = False
    if not ours:
        what = "this file is something else than what --admin would write there"
        raise Refusal("already-exists", what, where=str(path), fix="name a file that is not there: --admin admin.json")
