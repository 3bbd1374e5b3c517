"""Opening pickled files (.pth, .bin) for their tensors alone: what is checked before torch reads them, and after.

They are opened by torch's weights-only reader, which builds tensors and nothing else, and mapped.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halter.errors import Refusal

SAFE_TORCH = (2, 10)
MAX_TENSORS = 1 << 16
MAX_PICKLE_BYTES = 2 << 20
"""Of the description of one file's tensors; the 405B's has 0.3 MB."""
STATE = "_extra_state"
"""How names end under which Llama 4's files have bytes of the library that trained it, and no tensor."""


def open_pth(path: Path) -> dict[str, Tensor]:
    """A pickled file's tensors, mapped, those under the key ``model`` where it has one, as training programs save them:
    Meta's .pth, PEFT's adapter_model.bin.

    Refusals ``file-missing``, ``torch-too-old`` and ``tensor-file-damaged``.
    """
    if not path.is_file():
        raise Refusal("file-missing", "there is no such file", where=str(path), fix="check the path")
    refuse_old_torch(torch.__version__)
    state = _loaded(path)
    inner = state.get("model") if isinstance(state, dict) else None
    return _tensors_only(path, inner if isinstance(inner, dict) else state)


def open_rank(path: Path) -> dict[str, Tensor]:
    """The tensors of one of Meta's files, mapped. Refusal ``tensor-file-damaged`` for anything but a dictionary of
    tensors, and of bytes under names that end in ``STATE``, which are left out."""
    with torch.serialization.safe_globals([io.BytesIO]):
        state = _loaded(path)
    if isinstance(state, dict):
        state = {name: held for name, held in state.items() if not _is_state(name, held)}
    return _tensors_only(path, state)


def _is_state(name: Any, held: Any) -> bool:
    return isinstance(held, io.BytesIO) and isinstance(name, str) and name.endswith(STATE)


def _loaded(path: Path) -> Any:
    try:
        archive = zipfile.is_zipfile(path)
        if archive:
            refuse_bombs(path)
        # Files from before torch 1.6 are no zip archives, and only those can be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Refusal:
        raise
    except Exception as error:  # the reader raises half a dozen kinds, down to bare ones
        reason = str(error).split("\n")[0].split(". ")[0]
        raise damaged(path, f"is damaged or holds more than tensors: {reason or type(error).__name__}") from error


def _tensors_only(path: Path, state: Any) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise damaged(path, "is no dictionary of tensors")
    if len(state) > MAX_TENSORS or not all(isinstance(name, str) for name in state):
        raise damaged(path, f"names its tensors by other things than text, or has more than {MAX_TENSORS}")
    wrong = [name for name, t in state.items() if t.layout != torch.strided or t.is_quantized]
    held = sum(t.numel() * t.element_size() for t in state.values())
    if wrong or held > 2 * path.stat().st_size:  # twice: two names may be one matrix
        raise damaged(path, "describes tensors that it does not hold", wrong)
    return state


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
