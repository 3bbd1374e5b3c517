"""`halter merge` in Python: a run, an adapter's folder, or model and adapter that are loaded, as one model folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import torch

from halter.adapters.adapter import Adapter
from halter.adapters.loading import planned
from halter.arguments import checked
from halter.errors import Refusal
from halter.export import merge as folding
from halter.export.foldable import refuse_unfoldable
from halter.export.merge import MergeReport
from halter.export.requantise import Survival, merge_quantised
from halter.files.folders import refuse_unwritable
from halter.files.hub import resolve
from halter.files.nearby import no_adapter
from halter.model.decoder import Decoder
from halter.model.storages import Quantize
from halter.pretrained.load import load_config
from halter.run.keywords import sorted_out
from halter.run.opening import HowKeywords, OpenOptions, find, open_subject
from halter.telling import Say, tell

MergedAs = Literal["16bit", "int8", "nf4"]
MergeBase = Literal["original", "dequantised"]
CALL = 'halter.merge("runs/mine", output="merged")'
CALLS = f'{CALL}, or halter.merge(model, adapter, "merged") of what is loaded'


@dataclass(frozen=True)
class MergeOptions(OpenOptions):
    """How what is merged is opened; the flags of merge."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the merged weights are written in; auto: what the checkpoint has them in. The gap to base + adapter, which
    is told, has their rounding in it."""


class FoldKeywords(TypedDict, total=False):
    """As of export.merge."""

    source: str | Path | None
    allow_gap: bool
    max_shard_bytes: int


class MergeKeywords(FoldKeywords, HowKeywords, total=False):
    """And how a model or run that is named is opened."""


@overload
def merge(
    model: Decoder | str | Path,
    adapter: Adapter | str | Path | None = None,
    folder: str | Path | None = None,
    *,
    output: str | Path | None = None,
    base: MergeBase = "original",
    into: Literal["16bit"] = "16bit",
    say: Say = tell,
    **options: Unpack[MergeKeywords],
) -> MergeReport: ...


@overload
def merge(
    model: Decoder | str | Path,
    adapter: Adapter | str | Path | None = None,
    folder: str | Path | None = None,
    *,
    output: str | Path | None = None,
    base: MergeBase = "original",
    into: Quantize,
    say: Say = tell,
    **options: Unpack[MergeKeywords],
) -> Survival: ...


@checked(CALLS)
def merge(
    model: Decoder | str | Path,
    adapter: Adapter | str | Path | None = None,
    folder: str | Path | None = None,
    *,
    output: str | Path | None = None,
    base: MergeBase = "original",
    into: MergedAs = "16bit",
    say: Say = tell,
    **options: Unpack[MergeKeywords],
) -> MergeReport | Survival:
    """Write the merged model into a new folder, and prove that it answers as base + adapter does.

    As the command: ``merge("runs/mine", output="merged")``, of a run folder or an adapter's, whose base is found;
    ``merge(MODEL, "runs/mine", "merged")`` puts it on another. ``options`` then are the fields of MergeOptions, too. Or
    of what is loaded: ``merge(model, adapter, "merged")``; ``source``, ``allow_gap`` and ``max_shard_bytes`` as of
    export.merge. ``dtype``: what the weights are written in. ``folder`` and ``output`` are the same. ``into``: 16bit,
    or int8 and nf4, which say how much of the update is left.

    Refusals: ``wrong-argument``, ``cannot-merge``, ``merge-source``, ``already-exists``, and those of opening.
    """
    target = folder if output is None else output
    if target is None or (folder is not None and output is not None):
        what = "merge needs a folder to write" if target is None else "folder and output name the same thing"
        raise Refusal("wrong-argument", what, where="halter.merge", fix=f"such as {CALLS}")
    fold: Any = {name: value for name, value in options.items() if name in FoldKeywords.__annotations__}
    opening: Any = {name: value for name, value in options.items() if name not in fold}
    (chosen,) = sorted_out("halter.merge", opening, MergeOptions)
    if isinstance(model, Decoder) and isinstance(adapter, Adapter):
        if into == "16bit":
            fold["dtype"] = _written(opening.pop("dtype", "auto"))
        if opening:
            what = "the model is loaded already, as it was asked for then"
            raise Refusal("wrong-argument", what, where="halter.merge", found=opening, fix="leave these out")
        return _folded(model, adapter, target, base, into, **fold)
    if isinstance(model, Decoder) or isinstance(adapter, Adapter):
        what = "model and adapter are both loaded, or both named"
        raise Refusal("wrong-argument", what, where="halter.merge", fix=f"such as {CALLS}")
    return merge_named(model, chosen, target, adapter=adapter, base=base, into=into, say=say, **fold)


def merge_named(
    named: str | Path | None,
    opening: MergeOptions,
    output: str | Path,
    *,
    adapter: str | Path | None = None,
    base: MergeBase = "original",
    into: MergedAs = "16bit",
    say: Say = tell,
    **fold: Unpack[FoldKeywords],
) -> MergeReport | Survival:
    """What is named, opened and merged; what can be refused is, before the base is read, which may take minutes."""
    subject = find(named, model=opening.model, adapter=opening.adapter if adapter is None else adapter)
    if subject.adapter is None:
        if named is not None:
            raise no_adapter(Path(named))
        raise Refusal(
            "nothing-to-merge", "no adapter is named", fix="give a run folder, an adapter folder or --adapter"
        ).by_keyword()
    refuse_unwritable(str(output), folder=True)
    shape = load_config(subject.base, subject.revision)
    refuse_unfoldable(planned(subject.adapter, shape, opening.allow, Path(subject.base)))
    dense: Any = {"dtype": _written(opening.dtype)} if into == "16bit" else {}
    if dense and opening.dtype != "float32":  # what is rounded is told against the base as it is
        opening = replace(opening, dtype="auto")
    opened = open_subject(subject, say, opening)
    assert opened.adapter is not None
    if fold.get("source") is None:
        fold["source"] = resolve(subject.base, subject.revision)
    say(f"merging into {output} ...")
    return _folded(opened.model, opened.adapter, output, base, into, **fold, **dense)


def _written(dtype: str) -> torch.dtype | None:
    """The dtype of that name; None: the checkpoint's."""
    return None if dtype == "auto" else getattr(torch, dtype)


def _folded(
    model: Decoder, adapter: Adapter, output: str | Path, base: MergeBase, into: MergedAs, **fold: Any
) -> MergeReport | Survival:
    """``fold``: what export.merge takes."""
    if into != "16bit":
        return merge_quantised(model, adapter, output, into, base=base, source=fold.get("source"))
    return folding.merge(model, adapter, output, base=base, **fold)
