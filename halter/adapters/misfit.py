"""Adapters that are not of the model at hand: what is said of shapes that differ, and of weights that do."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halter.contract.method import Method
from halter.errors import SHOWN_LINES, Refusal
from halter.files.nearby import base_name
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.layout import HEAD, TABLE

if TYPE_CHECKING:
    from halter.adapters.adapter import Adapter

_ROWS = re.compile(r"(?:part\d+\.)?\S*(?:embed_tokens|lm_head)\.\S+ is \((\d+), (\d+)\), not \((\d+), (\d+)\)")
_SHAPES = re.compile(r"\S+ is \(([\d, ]*)\), not \(([\d, ]*)\)")

SIZES = ("layers", "dim", "heads", "kv_heads", "head_dim", "ffn_dim")
"""What two models must have alike for an adapter of the one to fit the other."""


def refuse_unfit(adapter: Adapter, shape: ModelConfig) -> None:
    """Refusal ``adapter-mismatch`` where an adapter was made for a model of other sizes; of the vocabulary where it
    acts on tokens."""
    outer = any(slot.at.kind in (TABLE, HEAD) for slot in adapter.slots)
    sizes = [(n, getattr(adapter.shape, n), getattr(shape, n)) for n in (*SIZES, *(("vocab_size",) if outer else ()))]
    other = [f"{name} {made} (this model: {has})" for name, made, has in sizes if made != has]
    if other:
        fix = "halter.load_adapter(FOLDER, model) or halter.adapt(model, METHOD), with the model that is asked"
        raise Refusal("adapter-mismatch", "this adapter was made for another model", found=other, fix=fix)


def misfit(folder: Path, wrong: Sequence[str], methods: Sequence[Method], here: Path | None = None) -> Refusal:
    """Refusal ``adapter-mismatch`` of an adapter whose tensors are not those that its configuration asks for here.

    ``wrong`` are the lines of ``loading.faults``; ``here`` is the base's folder. There is no waiver for it.
    """
    what = "this adapter does not fit this model"
    rank = _other_rank(wrong, methods)
    if rank is not None:
        says, has = rank
        what = f"adapter_config.json says r {says}, and the tensors are of rank {has}"
        fix = f'write "r": {has} there, with the lora_alpha that it was trained with'
        return Refusal("adapter-mismatch", what, where=str(folder), found=wrong, fix=fix)
    name = base_name(folder)
    if rows := _other_vocabulary(wrong):
        has, wants = rows
        what = f"its vocabulary was enlarged by {has - wants} ({wants} to {has}) before it was trained"
        fix = (
            f"merge it with PEFT into {name or 'its base'} after resize_token_embeddings({has}), or give the base that "
        )
        fix += "was saved after the resize (--model)"
        return Refusal("adapter-mismatch", what, where=str(folder), found=wrong, fix=fix).calls(
            fix.removesuffix(" (--model)")
        )
    groups = [*wrong[:SHOWN_LINES], f"and {len(wrong) - SHOWN_LINES} more"] if len(wrong) > SHOWN_LINES + 1 else ()
    return _of_another(folder, here, what, wrong, groups)


def _of_another(
    folder: Path, here: Path | None, what: str, found: Sequence[str], groups: Sequence[str] = ()
) -> Refusal:
    """Refusal ``adapter-mismatch`` with the base that the adapter names, unless that is ``here``, the one that was
    given."""
    name = base_name(folder)
    told = f"it was trained on {name}: give that" if name else "give the model that it was trained on"
    call = _of_its_base(folder, name)
    if name and here is not None and is_named(here, name):
        told = (
            f"it names {name}, which is this very model and was another when it was trained: give that as it was then"
        )
        call = f"{told}, or train again on this one"
        told = f"{call}; --model gives another"
    else:
        told = f"{told} (--model)"
    refusal = Refusal("adapter-mismatch", what, where=str(folder), found=found, groups=groups, fix=told)
    return refusal.calls(call)


def is_named(folder: Path, name: str) -> bool:
    """Whether a base's folder is what an adapter calls its base: that path, or where the hub's cache keeps that id."""
    kept = f"models--{name.replace('/', '--')}"
    return Path(name).expanduser().resolve() == folder.resolve() or kept in folder.absolute().parts


def _other_vocabulary(wrong: Sequence[str]) -> tuple[int, int] | None:
    """(rows of the adapter's vocabulary, rows of the model's) where nothing but these differs, and those are more."""
    found = {match.groups() for line in wrong if (match := _ROWS.fullmatch(line))}
    if len(found) != 1 or not all(map(_ROWS.fullmatch, wrong)):
        return None
    has, width, wants, wide = map(int, found.pop())
    return (has, wants) if width == wide and has > wants else None


def _of_its_base(folder: Path, name: str) -> str:
    """What to call for an adapter on the base that it was trained on."""
    calls = f'model, tokenizer = halter.load("{name or "ITS/BASE"}"); halter.load_adapter("{folder}", model)'
    return f"it was trained on {name}: {calls}" if name else f"give the model that it was trained on: {calls}"


def refuse_other_kind(config: Mapping[str, Any], folder: Path) -> None:
    """Refusal ``adapter-unsupported`` of an adapter of GPT-2 and its kin, whose weights lie transposed."""
    if config.get("fan_in_fan_out"):
        raise other_kind(folder, ["fan_in_fan_out, as of GPT-2, whose weights lie transposed"])


def of_other_layers(
    folder: Path, refusal: Refusal, config: Mapping[str, Any], own: bool, here: Path | None = None
) -> Refusal:
    """The refusal of an adapter (``own``: Halter's) whose targets match nothing here, as one of an adapter: nobody who
    reads one chooses targets. ``refusal`` itself where only some of PEFT's targets are none."""
    if own:
        what = "this adapter acts on modules that this model has not"
        return _of_another(folder, here, what, refusal.found)
    targets = config.get("target_modules")
    named = {targets} if isinstance(targets, str) else set(targets or ())
    return other_kind(folder, refusal.found) if named and named <= set(refusal.found) else refusal


def other_kind(folder: Path, found: Sequence[str]) -> Refusal:
    """Refusal ``adapter-unsupported`` of an adapter of a model that is no LLaMA, by what its files say."""
    name = base_name(folder)
    what = "this adapter was trained on another kind of model" + (f", {name}" if name else "")
    fix = "here models are LLaMAs: open it with peft, on its own base"
    return Refusal("adapter-unsupported", what, where=str(folder), found=found, fix=fix)


def _other_rank(wrong: Sequence[str], methods: Sequence[Method]) -> tuple[int, int] | None:
    """(rank of the configuration, rank of the tensors) where nothing but one rank differs."""
    says = getattr(methods[0], "r", None) if len(methods) == 1 else None
    found: set[tuple[int, int]] = set()
    for line in wrong:
        match = _SHAPES.fullmatch(line)
        if match is None:
            return None
        here, there = ([int(n) for n in side.split(",") if n.strip()] for side in match.groups())
        differ = [(b, a) for a, b in zip(here, there) if a != b]
        if len(here) != len(there) or len(differ) != 1:
            return None
        found |= set(differ)
    return found.pop() if len(found) == 1 and {says} == {pair[0] for pair in found} else None


def refuse_other_base(facts: Mapping[str, Any], base: Decoder, folder: Path, allow: Collection[str]) -> None:
    """Refusal ``base-differs``; where neither the adapter nor the model says what its base is, there is no telling."""
    recorded = facts.get("base")
    if base.identity is None or not isinstance(recorded, dict) or "base-differs" in allow:
        return
    differences = base.identity.differences(recorded)
    if not differences:
        return
    name, then = recorded.get("name") or recorded.get("folder"), recorded.get("folder")
    what, expected = "this adapter was trained on other weights than these", f"the weights of {name}"
    fix = "give the model that it was trained on (--model), or train again on this one"
    here = getattr(base.identity, "folder", None)
    if then and here and (Path(here).resolve() == Path(then).resolve() or _moved(here, str(name), then)):
        what, expected = f"the weights in {name} have changed since this adapter was trained on them", ""
        fix = "put the earlier weights back, give a copy of them (--model), or train again"
    raise Refusal(
        "base-differs", what, where=str(folder), found=differences, expected=expected, fix=fix, waivable=True
    ).calls(fix.replace(" (--model)", "") if here and not expected else _of_its_base(folder, str(name or "")))


def _moved(here: Path, name: str, then: str) -> bool:
    """Whether ``here`` is what the adapter calls its base, by a name that counts from where one is, and no other is."""
    return Path(here).resolve() == Path(name).resolve() and not Path(then).exists()
