"""Adapter files of other programs, brought into Halter's layout: the LLaMA-Adapter authors' .pth and litgpt's .pth.

PEFT's folders need no import (adapters.loading reads them). Files are opened by torch's weights-only reader. Every name
has to be used up: one Refusal (``import-mismatch``) names all that are missing, misshapen or unknown. What a conversion
cannot carry over is said in ``Imported.notes``, never passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from halter.adapters.importing import authors, litgpt
from halter.adapters.importing.taking import Imported, ImportOptions, Taking
from halter.adapters.importing.whose import opened
from halter.model.config import ModelConfig


def import_adapter(
    files: str | Path | Sequence[str | Path], shape: ModelConfig, options: ImportOptions | None = None
) -> Imported:
    """One adapter from another program's file; several files where the authors' 65B parts lie in one each, in order.

    Refusals: ``import-unknown`` (no known format's names), ``import-mismatch``, ``import-unsaid`` (an option that the
    file does not say is needed), ``tensor-file-damaged``.
    """
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(f) for f in files]
    options = options or ImportOptions()
    kind, parts = opened(paths)
    where = ", ".join(map(str, paths))
    if kind == "litgpt":
        made = litgpt.read(Taking(parts[0], where), paths[0], shape, options)
    elif kind == "authors-v2":
        made = authors.read_v2(Taking(authors.joined(parts, where), where), shape)
    else:
        made = authors.read_v1(Taking(parts[0], where), shape, options)
    made.adapter.facts["imported"] = {
        "format": made.format,
        "from": [p.name for p in paths],
        "notes": [*made.notes, *made.told],
    }
    return made
