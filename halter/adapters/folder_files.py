"""What lies in an adapter folder, read as files: nothing is made of it here (adapters.loading does that)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from halter.errors import Refusal
from halter.files.manifest import MANIFEST, check_manifest
from halter.files.meta_archive import open_pth
from halter.files.nearby import no_adapter, refuse_mlx
from halter.files.reading import read_json
from halter.files.tensors import TensorFile, TensorSpec, read_tensors

CONFIG, TENSORS, FACTS = "adapter_config.json", "adapter_model.safetensors", "halter.json"
PICKLED = "adapter_model.bin"  # as peft before 0.7 wrote them
_FIX = "copy or fetch the folder again; another base is named with --model, not by editing"


def weights_file(folder: Path) -> Path:
    """The file of an adapter folder's tensors: safetensors, or where there is none the pickle of an older PEFT."""
    pickled = not (folder / TENSORS).is_file() and (folder / PICKLED).is_file()
    return folder / (PICKLED if pickled else TENSORS)


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter folder under the names in its file. Pickles go through the weights-only reader.

    Refusals ``tensor-file-damaged`` (hostile pickles too) and ``torch-too-old``.
    """
    file = weights_file(folder)
    return open_pth(file) if file.name == PICKLED else read_tensors(file)


def shapes_in(folder: Path) -> dict[str, TensorSpec]:
    """{name in the adapter's file: shape and dtype}. Refusals as stored_tensors'."""
    file = weights_file(folder)
    if file.name == PICKLED:
        return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in open_pth(file).items()}
    with TensorFile(file) as opened:
        return dict(opened.specs)


def checked_facts(folder: Path) -> dict[str, Any]:
    """halter.json, {} where there is none, after every file has been compared with the manifest.

    Refusals ``not-an-adapter`` and ``adapter-damaged``. A folder without halter.json is PEFT's, and has no digests.
    """
    refuse_mlx(folder)
    absent = [name for name in (CONFIG, weights_file(folder).name) if not (folder / name).is_file()]
    if absent and not (folder / MANIFEST).is_file():
        raise no_adapter(folder)
    if (folder / MANIFEST).is_file():
        check_manifest(folder, "adapter-damaged", _FIX)
    facts = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    if facts.get("manifest") and not (folder / MANIFEST).is_file():
        lost = [f"{MANIFEST} is missing"]
        raise Refusal("adapter-damaged", "this adapter is not whole", where=str(folder), found=lost, fix=_FIX)
    return facts


def base_config(folder: str | Path) -> dict[str, Any]:
    """What halter.json (or adapter_config.json) says of the base: at least ``name``; {} where nothing is said."""
    folder = Path(folder)
    facts = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    if facts.get("base"):
        return dict(facts["base"])
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    name = config.get("base_model_name_or_path")
    return {"name": name, "revision": config.get("revision")} if name else {}
