"""Meta's original folders: params.json and consolidated.NN.pth, read as if they were Hugging Face's.

One ``.pth`` per model-parallel rank. The ranks' parts are joined into whole tensors under canonical names, as the table
of their family says (meta_table.py). These files are pickles, opened for their tensors alone and mapped
(meta_archive.py), so that memory holds one joined tensor at a time, of experts one of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from halter.errors import Refusal
from halter.files.meta_archive import open_rank, refuse_old_torch
from halter.files.meta_families import read_family
from halter.files.meta_table import MetaName, places
from halter.files.names import is_ignored
from halter.files.tensors import ROW_BYTES, TensorSpec, aligned_empty, bytes_of, tensor_sha256

AS_PUBLISHED = "fetch the folder's files again, every consolidated.*.pth and params.json as Meta published them"
_PART = re.compile(r"consolidated(?:\.(\d+))?\.pth")


def is_meta_folder(folder: Path) -> bool:
    """Whether a folder holds Meta's layout."""
    return (folder / "params.json").is_file() and any(folder.glob("consolidated*.pth"))


class MetaSource(NamedTuple):
    """One tensor of Meta's, under its name there, and what of it goes where."""

    name: str
    how: MetaName


class MetaCheckpoint:
    """An open folder of Meta's; the same face as HFCheckpoint, with canonical names in Hugging Face's layout."""

    layout = "meta"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _ranks(folder)
        self.family, self._params = read_family(folder / "params.json")
        refuse_old_torch(torch.__version__)
        self._parts = [open_rank(path) for path in self.files]
        self._refuse_unequal_ranks()
        names = [name for name in self._parts[0] if not is_ignored(name)]
        self.skipped = tuple(name for name in names if name.startswith(self.family.unread or ("\0",)))
        self._sources = self._named([name for name in names if name not in {*self.skipped}])
        self._specs = self._joined()
        self._refuse_wrong_sums()
        tied = self._tied()
        if tied:
            self._specs.pop(self.family.head, None)
        self.config = self.family.config(self._params, self._specs, tied)
        self.generation_config = self.family.generation(self._specs[self.family.embedding].shape[0])

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
        spec = self._specs[name]
        out = aligned_empty(TensorSpec(spec.shape, dtype or spec.dtype))
        self._fill(out, name, None)
        return out

    def read_one(self, name: str, number: int, dtype: torch.dtype | None = None) -> Tensor:
        """Entry ``number`` along a tensor's first dimension, as ``read`` gives the whole; no more of it is read where
        every rank has a part of every entry, as of experts. IndexError where there is none."""
        spec = self._specs[name]
        if not spec.shape or not 0 <= number < spec.shape[0]:
            raise IndexError(f"{name} is {list(spec.shape)} and has no entry {number}")
        if any(how.along == 0 or how.side == 0 or how.put for _, how in self._sources[name]):
            return self.read(name, dtype)[number]
        out = aligned_empty(TensorSpec(spec.shape[1:], dtype or spec.dtype))
        self._fill(out, name, number)
        return out

    def _fill(self, out: Tensor, name: str, number: int | None) -> None:
        """Write a whole tensor, or one entry of it, into ``out``."""
        less, at = (0 if number is None else 1), 0  # an entry has one dimension less than the whole
        for source in self._sources[name]:
            how, parts = source.how, self._parts_of(source)
            parts = parts if number is None else [part[number] for part in parts]
            along = None if how.along is None else how.along - less
            mine = out
            if how.side is not None:
                side = how.side - less
                width = sum(part.shape[side] for part in parts) if side == along else parts[0].shape[side]
                mine, at = out.narrow(side, at, width), at + width
            begin = 0
            for part in parts:
                target = mine
                if along is not None:
                    target, begin = mine.narrow(along, begin, part.shape[along]), begin + part.shape[along]
                if how.put is None:
                    target.copy_(part)
                else:
                    how.put(target, part)

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """(canonical name, whole tensor), one in memory at a time."""
        for name in self._specs:
            yield name, self.read(name)

    def sha256(self, name: str) -> str:
        """SHA-256 of the whole tensor's bytes in Hugging Face's layout; of experts one is in memory at a time."""
        spec = self._specs[name]
        if len(spec.shape) < 3:
            return tensor_sha256(self.read(name))
        digest = hashlib.sha256()
        for number in range(spec.shape[0]):
            digest.update(bytes_of(self.read_one(name, number)))
        return digest.hexdigest()

    def first_row(self, name: str) -> bytes:
        """The bytes of the whole tensor's first row (all of a vector), at most 16 KiB of them.

        The rotary permutation leaves row 0 where it is, so nothing is permuted here.
        """
        spec = self._specs[name]
        if len(spec.shape) < 2:
            return bytes(bytes_of(self.read(name))[:ROW_BYTES])
        enough = 1 + ROW_BYTES // max(1, TensorSpec(spec.shape[2:], spec.dtype).nbytes)  # of an entry's own rows
        found = []
        for source in self._sources[name]:
            along = source.how.along
            parts = [part[0] for part in self._parts_of(source)[: None if along else 1]]
            parts = [part[:enough] if part.ndim > 1 else part for part in parts]
            found.append(torch.cat(parts, along - 1) if along else parts[0])
        side = self._sources[name][0].how.side
        row = torch.cat(found, side - 1) if side else found[0]
        return bytes(bytes_of(row)[:ROW_BYTES])

    def close(self) -> None:
        """Let go of the mapped files."""
        self._parts.clear()

    def _named(self, names: list[str]) -> dict[str, list[MetaSource]]:
        """{canonical name: what it is made of}. Refusal ``meta-params`` where two tensors claim the same place."""
        sources: dict[str, list[MetaSource]] = {}
        with _of_shapes(self.folder):
            table = self.family.table(self._params, self._parts)
        for name in names:
            for hf, how in places(table, name):
                sources.setdefault(hf, []).append(MetaSource(name, how))
        twice = [
            source.name for made in sources.values() if len({s.how.order for s in made}) < len(made) for source in made
        ]
        if twice:
            what = "these tensors of this folder claim the same place"
            raise Refusal("meta-params", what, where=str(self.folder), found=twice, fix=AS_PUBLISHED)
        return {hf: sorted(made, key=lambda source: source.how.order) for hf, made in sources.items()}

    def _joined(self) -> dict[str, TensorSpec]:
        """{canonical name: shape and dtype of the whole}."""
        specs = {}
        for name, made in self._sources.items():
            with _of_shapes(self.folder, [source.name for source in made]):
                parts = [self._parts_of(source, "meta") for source in made]
                whole = [_shape([p.shape for p in one], source.how.along) for one, source in zip(parts, made)]
                specs[name] = TensorSpec(_shape(whole, made[0].how.side), parts[0][0].dtype)
        return specs

    def _parts_of(self, source: MetaSource, device: str = "cpu") -> list[Tensor]:
        """Of every rank that counts, what of its tensor goes where ``source`` does; on "meta" nothing is read.
        Refusal ``meta-ranks-disagree`` if copies differ."""
        name, how = source
        parts = [rank[name] for rank in self._parts]
        if device == "meta":
            parts = [torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device=device) for part in parts]
        elif how.copies > 1:
            self._refuse_different(parts, source)
        parts = parts[:1] if how.along is None else parts[:: how.copies]
        return parts if how.view is None else [how.view(part) for part in parts]

    def _refuse_different(self, parts: list[Tensor], source: MetaSource) -> None:
        step = source.how.copies
        different = [r for r in range(len(parts)) if r % step and not torch.equal(parts[r], parts[r - r % step])]
        if different:
            raise Refusal(
                "meta-ranks-disagree",
                f"{source.name} should be stored {step} times over neighbouring ranks, and its copies differ",
                where=str(self.folder),
                found=[self.files[r].name for r in different],
                fix="fetch these files again",
            )

    def _tied(self) -> bool:
        """Meta writes the vocabulary matrix twice even where the two are one; Refusal ``meta-tied-differ``."""
        table, head = self.family.embedding, self.family.head
        if head not in self._specs:
            return True
        ends = [*zip(*(self._parts_of(self._sources[name][0]) for name in (table, head)), strict=False)]
        # One row first: nearly every model is untied, and reading the whole costs seconds.
        equal = self._specs[table] == self._specs[head]
        equal = equal and all(e.shape == h.shape and torch.equal(e[:1], h[:1]) for e, h in ends)
        equal = equal and all(torch.equal(e, h) for e, h in ends)
        if not equal and self.family.must_tie(self._params):
            raise Refusal(
                "meta-tied-differ",
                "a model of this shape ties tok_embeddings and output, and the two copies stored here differ",
                where=str(self.folder),
                fix="fetch the files again",
            )
        return equal

    def _refuse_unequal_ranks(self) -> None:
        first, needed = self._parts[0], self.family.needed
        bad = [f"{f.name}: {n}" for f, part in zip(self.files, self._parts) for n in sorted({*first} ^ {*part})]
        if bad:
            what = "the ranks of this folder do not hold the same tensors"
            raise Refusal("meta-ranks-disagree", what, where=str(self.folder), found=bad, fix=AS_PUBLISHED)
        if lacking := [name for name in needed if name not in first]:
            what = "this folder lacks tensors that every model of its family has"
            raise Refusal("meta-params", what, where=str(self.folder), found=lacking, fix=AS_PUBLISHED)
        if flat := [name for name in needed if any(rank[name].ndim != 2 for rank in self._parts)]:
            raise _other_shapes(self.folder, flat)

    def _refuse_wrong_sums(self) -> None:
        """Parts that do not add up to the width in params.json: a rank's file is missing, or is another model's."""
        with _of_shapes(self.folder):
            torn = self.family.torn(self._params, self._parts)
            wrong = self.family.misfits(self._params, self._parts, self._specs)
        if torn:
            what = "these tensors are not made of whole heads"
            raise Refusal("meta-params", what, where=str(self.folder), found=torn, fix=AS_PUBLISHED)
        if wrong:
            raise Refusal(
                "meta-ranks-missing",
                f"the {len(self.files)} files do not add up to a width of {self._params['dim']}",
                where=str(self.folder),
                found=wrong,
                fix="see that every consolidated.NN.pth of the download is there",
            )


def _shape(parts: Sequence[Sequence[int]], along: int | None) -> tuple[int, ...]:
    """Of parts joined along one dimension; None: of the first. ValueError where they do not fit together. By hand:
    torch loads 40 MB of itself to join tensors without memory."""
    if along is None:
        return tuple(parts[0])
    other = {(*part[:along], *part[along + 1 :]) for part in parts}
    if len(other) > 1:
        raise ValueError("parts of different shapes")
    return (*parts[0][:along], sum(part[along] for part in parts), *parts[0][along + 1 :])


@contextmanager
def _of_shapes(folder: Path, names: list[str] | None = None) -> Iterator[None]:
    """Within, shapes are asked for that a damaged or foreign folder may lack. Refusal ``meta-params``."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, KeyError) as error:
        raise _other_shapes(folder, names or [str(error).split("\n")[0][:200]]) from None


def _other_shapes(folder: Path, found: list[str]) -> Refusal:
    what = "this folder has tensors of other dimensions than its family's"
    return Refusal("meta-params", what, where=str(folder), found=found, fix=AS_PUBLISHED)


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
