"""manifest.json: the names, sizes and SHA-256 of a folder's files, by which damage is told before a byte is used.

The manifest guards itself too: it must be, byte for byte, what Halter would write for its own content, and it carries
the SHA-256 of that content. So one flipped bit anywhere in a folder is found, and the damaged file is named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from halter.errors import Refusal
from halter.files.disk import DISK, Disk
from halter.files.reading import JUNK, plain_name, read_text
from halter.files.writing import write_text

MANIFEST = "manifest.json"
MAX_BYTES = 1 << 20
_FORMAT = 1


def write_manifest(folder: Path, names: Iterable[str], *, disk: Disk = DISK) -> None:
    """Write ``folder``'s manifest of these files, which are complete by now; it is to be the last file written."""
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}
    write_text(folder / MANIFEST, _rendered(files), disk=disk)


def check_manifest(folder: Path, id: str, fix: str, *, contents: bool = True) -> set[str]:
    """Compare every file with the manifest, which must be there; returns their names.

    Refusal ``id`` names every file that is missing, of another size, or of other bytes, and the manifest itself where
    that is not as it was written. Sizes come first: a truncated file is refused without reading the others. Without
    ``contents`` sizes are all that is compared, in no time.
    """
    listed = _read(folder / MANIFEST)
    if listed is None:
        raise _refusal(id, folder, [f"{MANIFEST} is not as it was written"], fix)
    wrong = [fault for name, entry in sorted(listed.items()) if (fault := _size_fault(folder / name, entry["bytes"]))]
    if not wrong and contents:
        changed = (name for name, entry in sorted(listed.items()) if sha256_of(folder / name) != entry["sha256"])
        wrong = [f"{name} holds other bytes than were written" for name in changed]
    if wrong:
        raise _refusal(id, folder, wrong, fix)
    return set(listed)


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_fault(path: Path, size: int) -> str:
    if not path.is_file():
        return f"{path.name} is missing"
    found = path.stat().st_size
    return "" if found == size else f"{path.name} is {found} bytes long, {size} were written"


def _rendered(files: Mapping[str, Mapping[str, Any]]) -> str:
    value: dict[str, Any] = {"format": _FORMAT, "files": {name: dict(files[name]) for name in sorted(files)}}
    value["sha256"] = hashlib.sha256(json.dumps(value).encode()).hexdigest()
    return json.dumps(value, indent=2) + "\n"


def _read(path: Path) -> dict[str, dict[str, Any]] | None:
    """{file name: {"bytes", "sha256"}}, or None for anything but a whole manifest of plain names."""
    try:
        text = read_text(path, MAX_BYTES)
        files = json.loads(text)["files"]
        whole = _rendered(files) == text
        names = all(plain_name(name) for name in files)
        kinds = all(
            entry.keys() == {"bytes", "sha256"} and type(entry["bytes"]) is int and isinstance(entry["sha256"], str)
            for entry in files.values()
        )
    except (Refusal, *JUNK):
        return None
    return dict(files) if whole and names and kinds else None


def _refusal(id: str, folder: Path, wrong: list[str], fix: str) -> Refusal:
    return Refusal(id, "files of this folder are not what was written", where=str(folder), found=wrong, fix=fix)
