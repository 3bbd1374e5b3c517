"""Opening a model's folder, whatever its layout: what it holds by canonical name, and its tensors one at a time.

Hugging Face folders are read here (one safetensors file, or shards with an index), Meta's in files/meta.py; both have
the same face, ``ModelFolder``. Pickled weights of other layouts are refused: opening one can run code.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from halter.errors import Refusal
from halter.files.meta import MetaCheckpoint, is_meta_folder
from halter.files.names import bnb_groups, is_ignored, of_pictures, of_text, other_quantisation
from halter.files.nearby import no_model, no_such_folder
from halter.files.reading import plain_name, read_json
from halter.files.tensors import TensorFile, TensorSpec

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class ModelFolder(Protocol):
    """A model's folder, open for reading.

    ``config`` and ``generation_config`` are in Hugging Face's keys; ``files`` are those with tensors; ``layout`` is
    "huggingface" or "meta"; ``quantized`` groups the tensors of a quantised checkpoint by weight (names.bnb_groups).
    ``skipped``: the tensors that are left unread, those of a tower of pictures.
    """

    layout: str
    folder: Path
    files: tuple[Path, ...]
    config: dict[str, Any]
    generation_config: dict[str, Any]
    skipped: tuple[str, ...]

    @property
    def quantized(self) -> dict[str, dict[str, str]]: ...

    def names(self) -> dict[str, TensorSpec]: ...

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor: ...

    def read_one(self, name: str, number: int, dtype: torch.dtype | None = None) -> Tensor: ...

    def stream(self) -> Iterator[tuple[str, Tensor]]: ...

    def sha256(self, name: str) -> str: ...

    def first_row(self, name: str) -> bytes: ...

    def close(self) -> None: ...


class HFCheckpoint:
    """A Hugging Face folder: config.json and safetensors files whose headers, and index, have passed every check."""

    layout = "huggingface"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        self.generation_config = read_json(generation) if generation.is_file() else {}
        self.files = shards(folder)
        self._open = [TensorFile(path) for path in self.files]
        self._refuse_repeated()
        held = {name: file for file in self._open for name in file.specs if not is_ignored(name)}
        family, pictures = self.config.get("model_type"), any(map(of_pictures, held))
        if family == "llama4" and not pictures:  # its text alone was kept
            self.config.pop("vision_config", None)
        whole = family == "llama4" and bool(self.config.get("vision_config"))
        named = {name: of_text(name, family, whole) for name in held}
        self.skipped = tuple(name for name in held if named[name] is None)
        self._where = {as_text: (held[name], name) for name, as_text in named.items() if as_text is not None}
        self._refuse_halves(len(held) - len(self.skipped))
        self.quantized = bnb_groups(self._where)
        self._refuse_other_quantisation()

    def names(self) -> dict[str, TensorSpec]:
        """{name: shape and dtype} in the order of the files; parts of quantised weights under their own names."""
        return {name: file.specs[stored] for name, (file, stored) in self._where.items()}

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor in fresh aligned memory, cast on the way if asked. KeyError for a name that is not there."""
        file, stored = self._where[name]
        return file.read(stored, dtype)

    def read_one(self, name: str, number: int, dtype: torch.dtype | None = None) -> Tensor:
        """Entry ``number`` along a tensor's first dimension, as ``read`` gives the whole; no more of it is read."""
        file, stored = self._where[name]
        return file.read_one(stored, number, dtype)

    def map(self, name: str) -> Tensor:
        """One tensor as pages of its file (TensorFile.map)."""
        file, stored = self._where[name]
        return file.map(stored)

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) in the order of the files, one in memory at a time."""
        for name, (file, stored) in self._where.items():
            yield name, file.read(stored)

    def sha256(self, name: str) -> str:
        """SHA-256 of a tensor's bytes as stored."""
        file, stored = self._where[name]
        return file.sha256(stored)

    def stored_at(self, name: str) -> tuple[Path, str]:
        """The file of a tensor, and its name there. KeyError for a name that is not there."""
        file, stored = self._where[name]
        return file.path, stored

    def first_row(self, name: str) -> bytes:
        """The bytes of a tensor's first row (all of a vector), at most 16 KiB of them."""
        file, stored = self._where[name]
        return file.first_row(stored)

    def close(self) -> None:
        """Close the files."""
        for file in self._open:
            file.close()

    def _refuse_repeated(self) -> None:
        count = Counter(name for file in self._open for name in file.specs)
        twice = [name for name, times in count.items() if times > 1]
        if twice:
            what = "these tensors stand in more than one file"
            raise Refusal(
                "checkpoint-index",
                what,
                where=str(self.folder),
                found=twice,
                fix="keep one of the files: a folder holds one model",
            )

    def _refuse_halves(self, count: int) -> None:
        if len(self._where) < count:
            what = "some tensors stand here twice, with and without the text's prefix (language_model.)"
            fix = "keep one of each: fetch the checkpoint's files again"
            raise Refusal("checkpoint-index", what, where=str(self.folder), fix=fix)

    def _refuse_other_quantisation(self) -> None:
        rule = self.config.get("quantization_config")
        method = rule.get("quant_method") if isinstance(rule, dict) else None
        named = other_quantisation(self._where)
        if named or (rule and not self.quantized):
            raise Refusal(
                "quantisation-unsupported",
                f"this checkpoint is stored quantised ({method or 'method unknown'})",
                where=str(self.folder),
                found=named,
                expected="16- or 32-bit weights, or NF4, FP4 or 8 bits as bitsandbytes saves them",
                fix="take the unquantised checkpoint, and quantize: nf4 or int8 to quantise it while loading",
            )


def open_checkpoint(folder: str | Path) -> ModelFolder:
    """Open a model's folder for reading; nothing but headers is read yet.

    Refusals, each with all that is wrong: ``folder-missing``, ``no-weights``, ``pickle-weights``, ``checkpoint-index``,
    ``quantisation-unsupported``, ``file-...`` for config files, ``tensor-file-damaged``, ``meta-...``.
    """
    folder = _existing(folder)
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return HFCheckpoint(folder)
    if is_meta_folder(folder):
        return MetaCheckpoint(folder)
    raise _no_weights(folder)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The model's configuration in Hugging Face's keys; weights are opened only in Meta's layout, which needs them."""
    folder = _existing(folder)
    if (folder / "config.json").is_file():
        return read_json(folder / "config.json")
    if is_meta_folder(folder):
        checkpoint = MetaCheckpoint(folder)
        checkpoint.close()
        return checkpoint.config
    raise _no_weights(folder)


def dtype_of(checkpoint: ModelFolder) -> torch.dtype:
    """The dtype of most of a checkpoint's floating-point bytes, which config.json may state wrongly or not at all."""
    sizes: Counter[torch.dtype] = Counter()
    for spec in checkpoint.names().values():
        if spec.dtype.is_floating_point:
            sizes[spec.dtype] += spec.nbytes
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def _existing(folder: str | Path) -> Path:
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise no_such_folder("folder-missing", folder, ("model",))
    return folder


def shards(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a folder; an index must agree with them, both ways."""
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    if not (folder / INDEX).is_file():
        found = sorted(p.name for p in folder.glob("*.safetensors"))
        if found == ["adapter_model.safetensors"]:
            raise no_model(folder)
        what = f"there are weights here, and neither {SINGLE} nor {INDEX}"
        raise Refusal("checkpoint-index", what, where=str(folder), found=found, fix="fetch the missing files")
    table = read_json(folder / INDEX).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(f, str) for f in table.values()):
        raise Refusal(
            "checkpoint-index",
            "has no weight_map from names to files",
            where=str(folder / INDEX),
            fix="fetch the checkpoint's files again",
        )
    files = sorted(set(table.values()))
    bad = [f[:255] for f in files if not plain_name(f) or not f.endswith(".safetensors")]
    absent = [] if bad else [f for f in files if not (folder / f).is_file()]
    if bad or absent:
        what = "names files that are not in this folder" if absent else "names files outside its folder"
        raise Refusal(
            "checkpoint-index", what, where=str(folder / INDEX), found=bad + absent, fix="fetch the missing files"
        )
    promised: dict[str, set[str]] = {f: set() for f in files}
    for name, file in table.items():
        promised[file].add(name)
    wrong = []
    for file in files:
        with TensorFile(folder / file) as tensors:
            held = set(tensors.specs)
        wrong += [f"{file} lacks {n}" for n in sorted(promised[file] - held)]
        wrong += [f"{file} holds {n}, which the index does not know" for n in sorted(held - promised[file])]
    if wrong:
        raise Refusal(
            "checkpoint-index",
            "the index and the files disagree",
            where=str(folder),
            found=wrong,
            fix="fetch the checkpoint's files again",
        )
    return tuple(folder / f for f in files)


def _without_pickles(folder: Path, pickles: list[str]) -> str:
    fix = "take the model's safetensors files, or convert with a program that you trust to open these"
    if not any(name.startswith("pytorch_model") for name in pickles):
        return fix
    turn = "import sys; from transformers import AutoModelForCausalLM as M; M.from_pretrained(sys.argv[1])"
    turn += ".save_pretrained(sys.argv[1])"
    return f"{fix}: python -c '{turn}' {shlex.quote(str(folder))} writes safetensors beside them"


def _no_weights(folder: Path) -> Refusal:
    pickles = sorted({p.name for pattern in _PICKLES for p in folder.glob(pattern)})
    if pickles:
        return Refusal(
            "pickle-weights",
            "these weights are pickle files, and opening one can run whatever code it carries",
            where=str(folder),
            found=pickles,
            expected="safetensors, or Meta's consolidated.NN.pth with params.json",
            fix=_without_pickles(folder, pickles),
        )
    if is_meta_folder(folder / "original"):
        fix = f"give {folder / 'original'}, which holds Meta's files"
    elif any(folder.glob("*.gguf")):
        fix = "GGUF is an export format: take the checkpoint that it was made from"
    else:
        return no_model(folder)
    return Refusal("no-weights", "this folder holds no model", where=str(folder), fix=fix)
