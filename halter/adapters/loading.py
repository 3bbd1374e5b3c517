"""Reading adapter folders, Halter's and PEFT's (adapters/saving.py says what is in one).

A folder of Halter's also has a manifest.json, against which every byte is compared before a tensor is handed out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halter.adapters import peft_together
from halter.adapters.adapter import Adapter
from halter.adapters.folder_files import CONFIG, TENSORS, checked_facts, shapes_in, stored_tensors
from halter.adapters.former import JOINED, as_recorded, join_as_recorded
from halter.adapters.misfit import misfit, of_other_layers, refuse_other_base, refuse_other_kind
from halter.adapters.unfit import refuse_slow, refuse_unfit_options
from halter.adapters.wrapped import Wrapping
from halter.arguments import checked
from halter.contract.method import PEFT_PREFIX as PREFIX
from halter.contract.method import Method
from halter.contract.registry import find, names
from halter.errors import Refusal
from halter.files.few_bits import unpack
from halter.files.nearby import adapter_folder
from halter.files.reading import junk_refused, read_json
from halter.files.tensors import read_tensors
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.telling import tell

TASKS = (None, "CAUSAL_LM")
OWN_FACTS = ("halter_version", "methods", "servable_by", "manifest", "packed", JOINED)
_FLOATS = {torch.float32, torch.float16, torch.bfloat16, torch.float64}
_BESIDE = re.compile(r"\.(token_adapter|base_layer|original_module)(?=\.)")
_PART = re.compile(r"part\d+\.")


@torch.no_grad()
def restore(adapter: Adapter, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into the adapter. One Refusal (``adapter-mismatch``) names every missing, unexpected, misshapen and
    non-finite one, and nothing is half applied."""
    wrong = faults(adapter, tensors)
    if wrong:
        fix = "give the base that it was trained on; halter adapters show FOLDER names it"
        raise Refusal("adapter-mismatch", "this adapter does not fit this model", where=where, found=wrong, fix=fix)
    for name, slot, attribute in adapter.named_tensors():
        slot.tensor(attribute).copy_(tensors[name])


def faults(adapter: Adapter, tensors: Mapping[str, Tensor]) -> list[str]:
    """Everything that keeps these tensors from being the adapter's, one line each; the adapter may be on meta."""
    shapes = {name: tuple(slot.tensor(a).shape) for name, slot, a in adapter.named_tensors()}
    wrong = [f"{name} is missing" for name in shapes if name not in tensors]
    for name, tensor in tensors.items():
        if name not in shapes:
            wrong.append(f"{name} is unexpected")
        elif tuple(tensor.shape) != shapes[name]:
            wrong.append(f"{name} is {tuple(tensor.shape)}, not {shapes[name]}")
        if tensor.dtype not in _FLOATS:
            wrong.append(f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}")
        elif not bool(torch.isfinite(tensor.float()).all()):  # as it will be held: 1e300 is not finite there
            wrong.append(f"{name} holds numbers that are not finite")
    return wrong


@checked('halter.load_adapter("runs/mine", model)')
def load_adapter(
    folder: str | Path, base: Decoder, allow: str | Collection[str] = (), say: Callable[[str], None] = tell
) -> Adapter:
    """Read an adapter folder, Halter's or PEFT's, or that of a finished run, and put it on ``base``.

    Nothing is built before every name, shape and number has passed. ``allow`` waives ``base-differs``: the adapter was
    trained on other weights than ``base`` was read from, and ``adapter-task``: to classify, say. Refusals without a
    waiver: ``not-an-adapter``,
    ``adapter-damaged`` (other bytes than Halter wrote), ``adapter-unreadable``, ``adapter-unsupported`` (needs what
    Halter lacks), ``adapter-mismatch`` (another model's, every tensor named), ``unknown-method``.

    An adapter of an earlier Halter, which lacks an option of today's, is read as what it was trained as
    (``Method.former``), another program's as what that computes (``Method.told``); where that is not today's default,
    ``say`` is told, and ``Adapter.notes`` keeps it.

    A base without weights (on meta) will do where the adapter is only looked at or rewritten; it lies on the CPU then.
    """
    allow = (allow,) if isinstance(allow, str) else allow
    folder = adapter_folder(folder)
    facts = checked_facts(folder)
    shapes_in(folder)  # a torn file is told before anything is made of its configuration
    here = getattr(base.identity, "folder", None)
    plan, notes = _planned(folder, facts, base.config, allow, here)
    if facts.get("packed"):
        shapes = {name: tuple(slot.tensor(a).shape) for name, slot, a in plan.named_tensors()}
        tensors, wrong = unpack(read_tensors(folder / TENSORS), shapes)
    else:
        tensors, wrong = _own_names(stored_tensors(folder), plan, base)
    wrong += faults(plan, tensors)
    if wrong:
        raise misfit(folder, wrong, plan.methods, here)
    refuse_other_base(facts, base, folder, allow)  # after what has no waiver
    adapter = Adapter(base.config, plan.methods)
    adapter = adapter if base.device.type == "meta" else adapter.to(base.device)
    adapter.facts = {k: v for k, v in facts.items() if k not in OWN_FACTS}
    adapter.notes = notes = notes + (join_as_recorded(adapter, facts) if facts.get("methods") else [])
    restore(adapter, tensors, str(folder))
    for note in notes:
        say(f"note: {folder}: {note}")
    return adapter


def planned(folder: str | Path, shape: ModelConfig, allow: Collection[str] = (), here: Path | None = None) -> Adapter:
    """The adapter of that folder on meta, by its configuration alone: what it would do to which places, no tensor read.
    ``here``: the model's folder. Refusals as of load_adapter, of what the configuration shows."""
    folder = adapter_folder(folder)
    return _planned(folder, checked_facts(folder), shape, allow, here)[0]


def _planned(
    folder: Path, facts: dict[str, Any], shape: ModelConfig, allow: Collection[str], here: Path | None
) -> tuple[Adapter, list[str]]:
    """The adapter that its options ask for, and what has to be said of how they were read.

    On meta: a rank of a billion costs nothing before it is refused.
    """
    with junk_refused("adapter-unreadable", "its configuration is not as it should be", folder):
        config = read_json(folder / CONFIG)
        _refuse_other_task(config, folder, allow)
        if not facts.get("methods"):
            inside = Wrapping(shapes_in(folder), shape.layout)
            refuse_slow(config, shape, folder, inside.theirs.values())
            refuse_other_kind(config, folder)
            config = inside.options(config)
        try:
            methods, notes = _methods(config, facts, folder, shape)
            refuse_unfit_options(methods, shape, folder)
            with torch.device("meta"):
                return Adapter(shape, methods), notes
        except Refusal as refusal:
            if refusal.id != "targets-match-nothing":
                raise
            raise of_other_layers(folder, refusal, config, bool(facts.get("methods")), here) from None
        except RuntimeError as error:
            what = f"asks for tensors that cannot be: {str(error).splitlines()[0][:200]}"
            raise Refusal("adapter-unreadable", what, where=str(folder), fix="copy the whole folder again") from None


def _refuse_other_task(config: Mapping[str, Any], folder: Path, allow: Collection[str]) -> None:
    """Refusal ``adapter-task`` where PEFT says that the adapter is a classifier's, or another model's."""
    task = config.get("task_type")
    if task not in TASKS and "adapter-task" not in allow:
        raise Refusal(
            "adapter-task",
            "this adapter was trained for another task than writing text, and Halter has no head for it",
            where=str(folder),
            found=[f"task_type {task}"],
            expected="CAUSAL_LM",
            fix="open it with peft",
            waivable=True,
        )


def _own_names(stored: Mapping[str, Tensor], plan: Adapter, base: Decoder) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by the adapter's own names, without copies of the base's vocabulary matrices; and what is wrong.

    PEFT saves embed_tokens and lm_head along where they are adapted (``save_embedding_layers``). Equal to the base's
    they are left out, otherwise the adapter is of another base.
    """
    own = {name for name, _, _ in plan.named_tensors()}
    tables = {place.weight_name: place.name for place in plan.shape.layout.vocabulary}
    inside = Wrapping(stored, plan.shape.layout)
    kept: dict[str, Tensor] = {}
    wrong: list[str] = []
    for full, tensor in stored.items():
        name = inside.own(full.removeprefix(PREFIX))
        if name in kept:
            wrong.append(f"{name} is there twice, with and without {PREFIX!r}")
        kept[name] = tensor
    if len(plan.methods) == 1:
        kept = plan.methods[0].from_peft_tensors(kept, plan.shape)
    elif peft_together.together(plan.methods, plan.shape) and not own & kept.keys():  # else an early Halter's
        kept = peft_together.from_peft_tensors(kept, plan.methods, plan.shape)
    for name in [name for name in kept if name not in own]:
        plain = _BESIDE.sub("", _PART.sub("", name))
        if plain not in tables:
            continue
        given, held = kept.pop(name), base.module(None, tables[plain]).weight()  # type: ignore[operator]
        if given.shape != held.shape:
            wrong.append(f"{_PART.sub('', name)} is {tuple(given.shape)}, not {tuple(held.shape)}")
        elif not _same(given, held):
            wrong.append(f"{_PART.sub('', name)} differs from the base's")
    return kept, wrong


def _same(stored: Tensor, held: Tensor) -> bool:
    """Whether one is the other, be it cast once: bases are held in other dtypes than they are stored in."""
    if held.is_meta:
        return True  # without weights there is no telling
    stored = stored.to(held.device)
    return torch.equal(stored.to(held.dtype), held) or torch.equal(stored, held.to(stored.dtype))


def _methods(
    config: dict[str, Any], facts: dict[str, Any], folder: Path, shape: ModelConfig
) -> tuple[list[Method], list[str]]:
    """The methods that the files tell of, and what has to be said of how they were read."""
    if facts.get("methods"):
        read = [_from_options(dict(options)) for options in facts["methods"]]
        return [method for method, _ in read], [note for _, notes in read for note in notes]
    kind = next((find(name) for name in names() if find(name).reads(config)), None)
    own = kind is not None and str(config.get("peft_type")).startswith("HALTER")  # whose halter.json is lost
    config, notes = as_recorded(kind, config) if own and kind is not None else (config, [])
    made = peft_together.read(config, shape)
    if made is None:
        raise Refusal(
            "adapter-unsupported",
            f"peft_type {config.get('peft_type')!r} is none that Halter has",
            where=str(folder),
            expected=", ".join(names()),
            fix="merge it into its base with PEFT (merge_and_unload), and give the merged model",
        )
    return made, notes if own else [note for method in made for note in method.told(shape)]


def _from_options(options: dict[str, Any]) -> tuple[Method, list[str]]:
    kind = find(options.pop("name"))
    known = kind.__dataclass_fields__
    strange = [name for name in options if name not in known]
    if strange:
        raise Refusal(
            "adapter-unsupported",
            f"{kind.name()} options of another Halter version",
            found=strange,
            fix="use the Halter version that wrote it, or a newer one",
        )
    options, notes = as_recorded(kind, options)
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}), notes
