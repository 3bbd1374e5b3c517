"""Meta's original folders: params.json and consolidated.NN.pth, read as if they were Hugging Face's.

One ``.pth`` per model-parallel rank. The ranks' parts are joined into whole tensors under canonical names, and the rows
of wq and wk are permuted from Meta's interleaved rotary layout to the half-split one. These files
are pickles: they are opened by torch's weights-only reader, which builds tensors and nothing else, and mapped, so that
memory holds one joined tensor at a time.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halter.errors import Refusal
from halter.files.meta_archive import MAX_TENSORS, damaged, refuse_bombs, refuse_old_torch
from halter.files.meta_config import TIED_SHAPES, config_of, generation_config_of, read_params
from halter.files.names import EMBEDDING, HEAD, MetaName, from_meta, is_ignored
from halter.files.tensors import ROW_BYTES, TensorSpec, aligned_empty, bytes_of, tensor_sha256

AS_PUBLISHED = "fetch the folder's files again, every consolidated.*.pth and params.json as Meta published them"
_PART = re.compile(r"consolidated(?:\.(\d+))?\.pth")


def is_meta_folder(folder: Path) -> bool:
    """Whether a folder holds Meta's layout."""
    return (folder / "params.json").is_file() and any(folder.glob("consolidated*.pth"))


class MetaCheckpoint:
    """An open folder of Meta's; the same face as HFCheckpoint, with canonical names in Hugging Face's layout."""

    layout = "meta"
    skipped: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _ranks(folder)
        self._params = read_params(folder / "params.json")
        refuse_old_torch(torch.__version__)
        self._parts = [_open(path) for path in self.files]
        self._refuse_unequal_ranks()
        self._dim = int(self._params["dim"])
        self._head_dim = self._dim // int(self._params["n_heads"])
        first = self._parts[0]
        self._sources = {(n := from_meta(m) or MetaName(m, "copy")).hf: (m, n) for m in first if not is_ignored(m)}
        self._kv_step = self._kv_copies()
        self._specs = {hf: TensorSpec(self._shape(hf), first[m].dtype) for hf, (m, _) in self._sources.items()}
        tied = self._tied()
        if tied:
            self._specs.pop(HEAD, None)
        self.config = config_of(self._params, self._specs, tied)
        self.generation_config = generation_config_of(self._specs[EMBEDDING].shape[0])
        self._refuse_wrong_sums()

    @property
    def quantized(self) -> dict[str, dict[str, str]]:
        """Meta's folders hold no bitsandbytes tensors."""
        return {}

    def names(self) -> dict[str, TensorSpec]:
        """{canonical name: shape and dtype}; a name that Meta's table does not have stands as it is in the file."""
        return dict(self._specs)

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One whole tensor in fresh memory: ranks joined, rotary rows permuted, duplicated key heads dropped.

        ``dtype`` casts on the way; default as stored.
        """
        source, (_, merge) = self._sources[name]
        parts = [rank[source] for rank in self._parts]
        if merge in ("kv_heads", "kv_rows"):
            parts = self._distinct(parts, source)
        elif merge == "copy":
            parts = parts[:1]
        spec = self._specs[name]
        out, at = aligned_empty(TensorSpec(spec.shape, dtype or spec.dtype)), 0
        along = 1 if self._by_columns(name) else 0
        for part in parts:
            target = out.narrow(along, at, part.shape[along]) if out.ndim else out
            if merge in ("heads", "kv_heads"):
                _half_split(target, part, self._head_dim)
            else:
                target.copy_(part)
            at += part.shape[along] if part.ndim else 0
        return out

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """(canonical name, whole tensor), one in memory at a time."""
        for name in self._specs:
            yield name, self.read(name)

    def sha256(self, name: str) -> str:
        """SHA-256 of the whole tensor's bytes in Hugging Face's layout."""
        return tensor_sha256(self.read(name))

    def first_row(self, name: str) -> bytes:
        """The bytes of the whole tensor's first row (all of a vector), at most 16 KiB of them.

        The rotary permutation leaves row 0 where it is, so nothing is permuted here.
        """
        source = self._sources[name][0]
        parts = [rank[source] for rank in self._parts] if self._by_columns(name) else [self._parts[0][source]]
        row = torch.cat([part[0] for part in parts]) if parts[0].ndim > 1 else parts[0]
        return bytes(bytes_of(row)[:ROW_BYTES])

    def close(self) -> None:
        """Let go of the mapped files."""
        self._parts.clear()

    def _by_columns(self, name: str) -> bool:
        """Llama 1 and 2 cut the token table along dim, Llama 3 along the vocabulary: the parts' width tells."""
        source, (_, merge) = self._sources[name]
        return merge == "columns" or (merge == "embedding" and self._parts[0][source].shape[1] != self._dim)

    def _shape(self, name: str) -> tuple[int, ...]:
        source, (_, merge) = self._sources[name]
        parts = [rank[source] for rank in self._parts]
        if merge == "copy":
            return tuple(parts[0].shape)
        if merge in ("kv_heads", "kv_rows"):
            parts = parts[:: self._kv_step]
        rows, columns = parts[0].shape
        if self._by_columns(name):
            return rows, sum(p.shape[1] for p in parts)
        return sum(p.shape[0] for p in parts), columns

    def _kv_copies(self) -> int:
        """On how many neighbouring ranks each key head is stored: 2 in the 405B's folder of 16 ranks, else 1.

        That folder's params.json counts the copies as heads, so the tensors themselves are asked.
        """
        keys = [rank["layers.0.attention.wk.weight"] for rank in self._parts]
        if len(keys) == 1 or keys[0].shape[0] != self._head_dim:
            return 1
        copies = 1
        while copies < len(keys) and torch.equal(keys[0], keys[copies]):
            copies += 1
        if len(keys) % copies:
            what = f"the first key head is stored {copies} times, which does not divide {len(keys)} ranks"
            raise Refusal("meta-ranks-disagree", what, where=str(self.folder), fix=AS_PUBLISHED)
        return copies

    def _distinct(self, parts: list[Tensor], source: str) -> list[Tensor]:
        """One of every run of equal copies; Refusal ``meta-ranks-disagree`` if copies differ."""
        step = self._kv_step
        different = [r for r in range(len(parts)) if r % step and not torch.equal(parts[r], parts[r - r % step])]
        if different:
            raise Refusal(
                "meta-ranks-disagree",
                f"{source} should be stored {step} times over neighbouring ranks, and its copies differ",
                where=str(self.folder),
                found=[self.files[r].name for r in different],
                fix="fetch these files again",
            )
        return parts[::step]

    def _tied(self) -> bool:
        """Meta writes the vocabulary matrix twice even where the two are one; Refusal ``meta-tied-differ``."""
        if HEAD not in self._specs:
            return True
        ends = [(rank[self._sources[EMBEDDING][0]], rank[self._sources[HEAD][0]]) for rank in self._parts]
        # One row first: nearly every model is untied, and reading the whole costs seconds.
        equal = all(e.shape == h.shape and torch.equal(e[:1], h[:1]) for e, h in ends)
        equal = equal and all(torch.equal(e, h) for e, h in ends)
        if not equal and (self._dim, self._params["n_layers"]) in TIED_SHAPES:
            raise Refusal(
                "meta-tied-differ",
                "a model of this shape ties tok_embeddings and output, and the two copies stored here differ",
                where=str(self.folder),
                fix="fetch the files again",
            )
        return equal

    def _refuse_unequal_ranks(self) -> None:
        wanted = set(self._parts[0])
        bad = [f"{f.name}: {n}" for f, part in zip(self.files, self._parts) for n in sorted(wanted ^ set(part))]
        if bad:
            what = "the ranks of this folder do not hold the same tensors"
            raise Refusal("meta-ranks-disagree", what, where=str(self.folder), found=bad, fix=AS_PUBLISHED)
        flat = [
            m for m, t in self._parts[0].items() if (n := from_meta(m)) and t.ndim != (1 if n.merge == "copy" else 2)
        ]
        if flat:
            what = "this folder has tensors of other dimensions than a LLaMA's"
            raise Refusal("meta-params", what, where=str(self.folder), found=flat, fix=AS_PUBLISHED)
        needed = {"tok_embeddings.weight", "layers.0.attention.wk.weight", "layers.0.feed_forward.w1.weight"}
        if needed - wanted:
            what = "this folder lacks tensors that every LLaMA has"
            raise Refusal("meta-params", what, where=str(self.folder), found=sorted(needed - wanted), fix=AS_PUBLISHED)

    def _refuse_wrong_sums(self) -> None:
        """Parts that do not add up to the width in params.json: a rank's file is missing, or is another model's."""
        heads = [m for m, n in self._sources.values() if n.merge in ("heads", "kv_heads")]
        torn = [m for m in heads if any(rank[m].shape[0] % self._head_dim for rank in self._parts)]
        if torn:
            what = f"these tensors are not made of heads of {self._head_dim}"
            raise Refusal("meta-params", what, where=str(self.folder), found=torn, fix=AS_PUBLISHED)
        wrong = [
            f"{name} {list(spec.shape)}"
            for name, spec in self._specs.items()
            if (name == EMBEDDING and spec.shape[1] != self._dim)
            or (name.endswith((".q_proj.weight", ".o_proj.weight")) and spec.shape != (self._dim, self._dim))
        ]
        if wrong:
            raise Refusal(
                "meta-ranks-missing",
                f"the {len(self.files)} files do not add up to a width of {self._dim}",
                where=str(self.folder),
                found=wrong,
                fix="see that every consolidated.NN.pth of the download is there",
            )


def _ranks(folder: Path) -> tuple[Path, ...]:
    """The ranks' files in order. Refusal ``meta-ranks-missing`` if their numbers leave a gap."""
    numbered = {int(m[1] or 0): p for p in folder.glob("consolidated*.pth") if (m := _PART.fullmatch(p.name))}
    gaps = sorted(set(range(max(numbered, default=-1) + 1)) - set(numbered))
    if gaps or not numbered:
        raise Refusal(
            "meta-ranks-missing",
            "not every file of this model is there",
            where=str(folder),
            found=[f"consolidated.{n:02d}.pth" for n in gaps],
            fix="fetch the missing files",
        )
    return tuple(numbered[n] for n in sorted(numbered))


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


def half_split_rows(vector: Tensor, head_dim: int) -> Tensor:
    """A vector [heads * head_dim] over Meta's rows of wq or wk, in Hugging Face's order."""
    out = torch.empty_like(vector)
    _half_split(out[:, None], vector[:, None], head_dim)
    return out


def _open(path: Path) -> dict[str, Tensor]:
    """A .pth file's tensors, mapped. Refusal ``tensor-file-damaged`` for anything but a dictionary of tensors."""
    return _tensors_only(path, _loaded(path))


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


def _half_split(target: Tensor, part: Tensor, head_dim: int) -> None:
    """Rows (2i, 2i + 1) of each head of ``part`` [heads * head_dim, dim] go to rows (i, i + head_dim / 2) of target."""
    heads, dim = part.shape[0] // head_dim, part.shape[1]
    pairs = part.view(heads, head_dim // 2, 2, dim).transpose(1, 2)
    target.view(heads, 2, head_dim // 2, dim).copy_(pairs)
