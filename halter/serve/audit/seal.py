"""The secret of an audit log: what it is, where it is kept, and the HMACs that are made with it.

It is kept outside the log's folder, so that who may read or copy the log cannot make a line of it, nor try out which
prompt stands behind an HMAC.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from halter.errors import Refusal
from halter.files.disk import DISK, Disk
from halter.files.reading import read_text
from halter.files.writing import write_text
from halter.serve.trust.secrecy import refuse_open

SECRET = "secret"
_HEX = re.compile(r"[0-9a-f]{64}")


class Seal:
    """HMAC-SHA256 with one secret of 32 bytes, for two purposes with a key each.

    With one key for both, a client could send the words of a line as a prompt and would find the HMAC of a line that
    nobody wrote in the log.
    """

    def __init__(self, secret: bytes) -> None:
        self._lines, self._texts = (hmac.digest(secret, purpose, "sha256") for purpose in (b"lines", b"texts"))

    def of_line(self, line: bytes) -> str:
        """The HMAC of a line, in 64 hexadecimal digits."""
        return hmac.digest(self._lines, line, "sha256").hex()

    def of_text(self, text: str | Sequence[int]) -> str:
        """The HMAC of a prompt or an answer; of tokens, of their numbers with commas between."""
        words = text if isinstance(text, str) else ",".join(map(str, text))
        return hmac.digest(self._texts, words.encode("utf-8", "surrogatepass"), "sha256").hex()


def draw(folder: Path, *, disk: Disk = DISK) -> Seal:
    """A new secret, kept in a file of ``folder`` that its owner alone can read. Refusal ``already-exists``."""
    text = secrets.token_hex(32)
    write_text(folder / SECRET, f"{text}\n", private=True, disk=disk)
    return Seal(bytes.fromhex(text))


def read(folder: Path) -> Seal:
    """The secret that ``folder`` keeps. Refusals ``file-missing``, ``secret-open`` and ``audit-secret``."""
    path = folder / SECRET
    text = read_text(path, max_bytes=1024).strip()
    refuse_open(path)
    if not _HEX.fullmatch(text):
        raise Refusal(
            "audit-secret",
            "is not the secret of an audit log",
            where=str(path),
            expected="64 hexadecimal digits, as the server wrote them at its first start",
            fix="put the file back from a copy; without it the log can be read, and not verified",
        )
    return Seal(bytes.fromhex(text))
