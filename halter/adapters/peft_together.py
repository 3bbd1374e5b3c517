"""What one PEFT folder holds beside its method, which Halter has as methods of their own in one list:

    trainable_token_indices   token_rows     a few rows of the tables                      (LoRA's family)
    modules_to_save           full           whole copies of the base's modules            (CARRIERS)
    bias: all, lora_only      bitfit         with biases: base, those that the base has    (LoRA's family)

PEFT names the rows ``embed_tokens.token_adapter.trainable_tokens_delta``, a copy's tensors as the base's own, and a
bias beside a pair ``q_proj.base_layer.bias``. What peft 0.21 does was read from its code and is compared by logits in
tests/methods/test_peft_together.py and test_peft_matrix.py.

The three methods are named here, and not asked by hooks of theirs: this reads PEFT's files, the three keys are a closed
list of PEFT's to which no method of ours adds, and each is read with an eye on the others (a copy takes its module from
the pairs and its bias from bias: all; rows of one table tie those of the other). Four hooks, of which each of three
files had its part, would be harder to hold against peft's code than this page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from halter.contract import targets
from halter.contract.method import PEFT_PREFIX, Method, built
from halter.contract.registry import find, names
from halter.errors import Refusal
from halter.methods.bitfit import Bitfit
from halter.methods.full import Full
from halter.methods.token_rows import TokenRowsMethod
from halter.model.config import ModelConfig
from halter.model.layout import HEAD, LINEAR, NORM, TABLE, Place

ROWS, SAVED, BIAS = "trainable_token_indices", "modules_to_save", "bias"
CARRIERS = ("LORA", "IA3", "LN_TUNING", "LOHA", "LOKR")
TABLES = ("embed_tokens", "lm_head")
WEIGHTS = (LINEAR, NORM, TABLE, HEAD)
_DELTA = "trainable_tokens_delta"
_PLAIN = re.compile(r"[\w.]+")


def together(methods: Sequence[Method], shape: ModelConfig) -> bool:
    """Whether PEFT has a folder for these: one method that carries, and beside it what it can carry, each at places of
    its own."""
    carriers = [method for method in methods if method.peft_type in CARRIERS]
    if len(carriers) != 1 or len(methods) == 1:
        return False
    carrier, beside = carriers[0], [method for method in methods if method is not carriers[0]]
    low_rank = carrier.peft_type == "LORA"
    taken = [place for method in methods if not isinstance(method, Bitfit) for place in _places(method, shape)]
    if len(set(taken)) != len(taken) or len([m for m in beside if isinstance(m, Full)]) > 1:
        return False
    if shape.tied and _ties_otherwise([method for method in beside if isinstance(method, TokenRowsMethod)], shape):
        return False
    biases = [method for method in beside if isinstance(method, Bitfit)]
    if len(biases) > 1 or (biases and methods.index(biases[0]) < methods.index(carrier)):
        return False
    return all(
        (isinstance(method, TokenRowsMethod) and low_rank)
        or (isinstance(method, Full) and not (method.keep_tied and _ties(method, shape)))
        or (isinstance(method, Bitfit) and low_rank and _scope(method, methods, shape) is not None)
        for method in beside
    )


def _ties_otherwise(rows: Sequence[TokenRowsMethod], shape: ModelConfig) -> bool:
    """Whether PEFT would tie the rows of two tied tables where these do not: it does wherever rows of the embeddings
    are trained and the head names none or the same."""
    loose = [method for method in rows if not method.keep_tied]
    apart = {place.name: method.ids(shape) for method in loose for place in _places(method, shape)}
    return "embed_tokens" in apart and apart.get("lm_head", apart["embed_tokens"]) == apart["embed_tokens"]


def to_peft(methods: Sequence[Method], shape: ModelConfig) -> dict[str, Any]:
    """The part of adapter_config.json that they make together."""
    config: dict[str, Any] = {}
    indices: dict[str, list[int]] = {}
    for method in methods:
        if isinstance(method, TokenRowsMethod):
            one = shape.tied and method.keep_tied
            tables = TABLES[:1] if one else [place.name for place in _places(method, shape)]  # of tied ones the first
            indices |= {name: method.ids(shape) for name in tables}
        elif isinstance(method, Full):
            config[SAVED] = ["model.norm" if name == "norm" else name for name in _short(_places(method, shape), shape)]
        elif isinstance(method, Bitfit):
            config[BIAS] = _scope(method, methods, shape)
        else:
            config = {"peft_type": method.peft_type, **method.to_peft(shape)} | config
    if indices:
        config[ROWS] = indices["embed_tokens"] if set(indices) == {"embed_tokens"} else indices
    return config


def to_peft_tensors(own: dict[str, Tensor], methods: Sequence[Method], shape: ModelConfig) -> dict[str, Tensor]:
    """{name in PEFT's file: tensor} from {partN.path.saved_name: tensor}."""
    file: dict[str, Tensor] = {}
    for part, method in enumerate(methods):
        lead = f"part{part}."
        mine = {name.removeprefix(lead): tensor for name, tensor in own.items() if name.startswith(lead)}
        if isinstance(method, TokenRowsMethod | Full | Bitfit):
            renamed = _names(method, methods, shape)
            file |= {PEFT_PREFIX + renamed.get(name, name): tensor for name, tensor in mine.items()}
        else:
            file |= method.to_peft_tensors(mine, shape)
    return file


def from_peft_tensors(stored: dict[str, Tensor], methods: Sequence[Method], shape: ModelConfig) -> dict[str, Tensor]:
    """The way back, names without PEFT's prefix; those that belong to nobody stay, to be told."""
    left = dict(stored)
    found: dict[str, Tensor] = {}
    for part, method in enumerate(methods):
        if isinstance(method, TokenRowsMethod | Full | Bitfit):
            for name, theirs in _names(method, methods, shape).items():
                if theirs not in left and isinstance(method, Bitfit):
                    theirs = name  # as peft before 0.6 wrote it
                if theirs in left:
                    found[f"part{part}.{name}"] = left.pop(theirs)
            if isinstance(method, Full):  # with bias: all PEFT files a copy's bias twice, and the unused original's
                _drop_twins(left, found, part)
    (part, carrier), *_ = [(n, m) for n, m in enumerate(methods) if m.peft_type in CARRIERS]
    own = carrier.from_peft_tensors(left, shape)
    return found | {f"part{part}.{name}": tensor for name, tensor in own.items()}


def read(config: dict[str, Any], shape: ModelConfig | None) -> list[Method] | None:
    """The methods that a PEFT configuration stands for, or None for a kind that Halter does not have.

    Without a ``shape`` only the method that carries is told. Refusal ``adapter-unsupported``: what is beside it is not
    Halter's.
    """
    kind = config.get("peft_type")
    rest = config
    if kind in CARRIERS:
        beside = (ROWS, SAVED, *((BIAS,) if config.get(BIAS) in ("all", "lora_only") else ()))
        rest = {key: value for key, value in config.items() if key not in beside}
    reader = next((find(name) for name in names() if find(name).reads(rest)), None)
    if reader is None:
        return None
    method = reader.from_peft(rest)
    if kind not in CARRIERS or shape is None:
        return [method]
    rows = _rows(config, shape) if kind == "LORA" else []
    saved = _saved(config, shape)
    if saved:
        method = _without(method, config[SAVED], shape)
    made: list[Method] = [method, *rows]
    if saved:
        made.append(Full(tuple(_short(saved, shape)), keep_tied=False))
    if kind == "LORA" and config.get(BIAS, "none") in ("all", "lora_only"):
        made += _biases(config[BIAS], method, saved, shape)
    return made


def _rows(config: dict[str, Any], shape: ModelConfig) -> list[Method]:
    """The methods that trainable_token_indices are; refused are rows of another module. Of two tables that the
    base ties PEFT ties the rows too, unless the head names others than the embeddings or the embeddings none."""
    asked = config.get(ROWS)
    if not asked:
        return []
    tables: dict[str, Any] = {"embed_tokens": asked} if isinstance(asked, list) else dict(asked)
    tables = {name.rsplit(".", 1)[-1]: tuple(int(id) for id in ids) for name, ids in tables.items()}
    wrong = [f"{ROWS} of {name}: rows are of embed_tokens and lm_head" for name in tables if name not in TABLES]
    table, head = tables.get("embed_tokens"), tables.get("lm_head")
    if wrong:
        raise Refusal(
            "adapter-unsupported",
            "these token rows are not Halter's",
            found=wrong,
            fix="merge it with PEFT (merge_and_unload)",
        )
    if table == head or (shape.tied and table is not None and head is None):
        return [TokenRowsMethod(tokens=table or ())]
    tied = not shape.tied  # of untied tables there is nothing to part
    rows: list[Method] = [] if table is None else [TokenRowsMethod(table, where="embeddings", keep_tied=tied)]
    return rows if head is None else [*rows, TokenRowsMethod(head, where="head", keep_tied=tied)]


def _saved(config: dict[str, Any], shape: ModelConfig) -> list[Place]:
    """The base's modules that modules_to_save names: PEFT asks whether a module's path, or that of one it lies in, ends
    in a name."""
    given = config.get(SAVED) or ()
    listed = [given] if isinstance(given, str) else list(given)
    strange = [str(name) for name in listed if not isinstance(name, str) or not _PLAIN.fullmatch(name)]
    if strange:
        raise Refusal(
            "adapter-unsupported",
            "modules_to_save names no modules",
            found=strange,
            fix='name modules, such as ["embed_tokens", "lm_head"]',
        )
    found: list[Place] = []
    for place in shape.layout.of(*WEIGHTS):
        parts = place.path.split(".")
        above = [".".join(parts[: n + 1]) for n in range(len(parts))]
        if any(whole.endswith(name) for whole in above for name in listed):
            found.append(place)
    return found


def _without(method: Any, named: Iterable[str], shape: ModelConfig) -> Method:
    """The method without the modules that are saved whole, which PEFT does not adapt."""
    inside = [f".{name}." for name in ([named] if isinstance(named, str) else named)]
    out = [place for place in shape.layout.of(*WEIGHTS) if any(part in f".{place.path}." for part in inside)]
    target, before = method.target_modules, method.exclude_modules
    if not isinstance(target, str) or target == "all-linear":
        out = [place for place in out if target is not None and targets.matches(target, place)]
    if not out:
        return method  # type: ignore[no-any-return]
    if isinstance(before, str):
        raise Refusal(
            "adapter-unsupported",
            "modules_to_save names modules that target_modules names too, and exclude_modules is a regular expression",
            found=[place.path for place in out],
            fix="write exclude_modules as a list of names",
        )
    return replace(method, exclude_modules=(*before, *(place.path for place in out)))


def _biases(scope: str, method: Method, saved: Sequence[Place], shape: ModelConfig) -> list[Method]:
    """The biases that the base has, all of them or those beside a pair; [] where it has none."""
    places = _places(method, shape) if scope == "lora_only" else shape.layout.of(LINEAR)
    chosen = [place for place in places if place.kind == LINEAR and place.bias and place not in saved]
    return [Bitfit(tuple(_short(chosen, shape)), biases="base")] if chosen else []


def _scope(biases: Bitfit, methods: Sequence[Method], shape: ModelConfig) -> str | None:
    """PEFT's word for these biases beside these methods, None where it has none."""
    if biases.biases != "base":
        return None
    (carrier,) = [method for method in methods if method.peft_type in CARRIERS]
    copies = [place for method in methods if isinstance(method, Full) for place in _places(method, shape)]
    mine = set(_places(biases, shape))
    for scope in ("all", "lora_only"):
        made = _biases(scope, carrier, copies, shape)
        if made and set(_places(made[0], shape)) == mine:
            return scope
    return None


def _names(method: Method, methods: Sequence[Method], shape: ModelConfig) -> dict[str, str]:
    """{a tensor's name in a folder of Halter's own: its name in PEFT's, without the prefix}."""
    if isinstance(method, TokenRowsMethod):
        own = [f"{place.path}.{_DELTA}" for place in _places(method, shape)]
        return {name: name.replace(f".{_DELTA}", f".token_adapter.{_DELTA}") for name in own}
    if isinstance(method, Full):
        names = [f"{place.path}.{kind}" for place in _places(method, shape) for kind in ("weight", "bias")]
        return {name: name for name in names}
    (carrier,) = [other for other in methods if other.peft_type in CARRIERS]
    paired = set(_places(carrier, shape))
    return {f"{p.path}.bias": f"{p.path}{'.base_layer' * (p in paired)}.bias" for p in _places(method, shape)}


def _drop_twins(left: dict[str, Tensor], found: dict[str, Tensor], part: int) -> None:
    for name in list(left):
        plain = name.replace(".modules_to_save.", ".").replace(".original_module.", ".")
        kept = found.get(f"part{part}.{plain}")
        if plain != name and kept is not None and (".original_module." in name or torch.equal(left[name], kept)):
            del left[name]


def _short(places: Iterable[Place], shape: ModelConfig) -> list[str]:
    """Names of places: one for those of every layer, whole paths for the others."""
    at: dict[str, list[Place]] = {}
    for place in places:
        at.setdefault(place.name, []).append(place)
    named: list[str] = []
    for name, here in at.items():
        every = here == [place for place in shape.layout.of(here[0].kind) if place.name == name]
        named += [name] if every else [place.path for place in here]
    return named


def _ties(method: Method, shape: ModelConfig) -> bool:
    return shape.tied and any(place.kind in (TABLE, HEAD) for place in _places(method, shape))


def _places(method: Method, shape: ModelConfig) -> list[Place]:
    with torch.device("meta"):
        layers = shape.layout.everywhere
        return [shape.layout.at(layer, name) for layer in layers for name in built(method, shape, layer)]
