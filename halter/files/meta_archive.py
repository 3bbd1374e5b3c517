"""What is checked of a pickled file (.pth, .bin) before torch opens it: torch's version, and that it is no bomb."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from halter.errors import Refusal

SAFE_TORCH = (2, 10)
MAX_TENSORS = 1 << 16
MAX_PICKLE_BYTES = 2 << 20
"""Of the description of one file's tensors; the 405B's has 0.3 MB."""


def refuse_old_torch(version: str) -> None:
    """Refusal ``torch-too-old`` below 2.10.

    Until 2.5 a pickle could run code though weights_only was said (CVE-2025-32434), until 2.9 it could corrupt memory
    (CVE-2026-24747).
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < SAFE_TORCH:
        raise Refusal(
            "torch-too-old",
            f"torch {version} opens pickled files (.pth, .bin) with known holes",
            expected="torch {}.{} or later".format(*SAFE_TORCH),
            fix="upgrade torch, or take safetensors files",
        )


def refuse_bombs(path: Path) -> None:
    """Refusal ``tensor-file-damaged`` for an archive that would unpack to more than it holds, or goes on after its end.

    torch stores its archives without compression, so no member can be larger than the file, and nothing follows
    their end record, which has 22 bytes."""
    with path.open("rb") as file:
        file.seek(-22, 2)
        end = file.read()
    if not end.startswith(b"PK\5\6"):
        raise damaged(path, "has bytes after its end")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    size = path.stat().st_size
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED or m.file_size > size]
    pickle_bytes = sum(m.file_size for m in members if m.filename.endswith(".pkl"))
    if packed or len(members) > 2 * MAX_TENSORS or pickle_bytes > MAX_PICKLE_BYTES:
        raise damaged(path, "is an archive that would unpack to more than it holds", packed)


def damaged(path: Path, what: str, found: Iterable[str] = ()) -> Refusal:
    """The refusal of a file that is not what Meta wrote."""
    fix = "fetch the file again"
    return Refusal("tensor-file-damaged", f"this file {what}", where=str(path), found=found, fix=fix)
