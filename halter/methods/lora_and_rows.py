"""PEFT's LoRA with ``trainable_token_indices``: two methods in one folder, a low-rank one and token rows beside it.

PEFT names the rows ``embed_tokens.token_adapter.trainable_tokens_delta`` beside the pairs' own names. On a base whose
embeddings and head are one, rows of embed_tokens change both. What peft 0.21 does was read from its code and is
compared by logits in tests/methods/test_lora_and_rows.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from halter.errors import Refusal
from halter.methods.method import PEFT_PREFIX, Method, Piece
from halter.methods.token_rows import TokenRowsMethod
from halter.model.config import ModelConfig
from halter.model.places import path

KEY = "trainable_token_indices"
TABLES = ("embed_tokens", "lm_head")
_DELTA = "trainable_tokens_delta"


def together(methods: tuple[Method, ...], shape: ModelConfig) -> bool:
    """Whether PEFT has a folder for these: one of LoRA's family, and token rows where it has no pair of its own."""
    low_rank = [method for method in methods if method.peft_type == "LORA"]
    rows = [method for method in methods if isinstance(method, TokenRowsMethod)]
    if len(low_rank) != 1 or not rows or len(low_rank) + len(rows) != len(methods):
        return False
    taken = [place for method in methods for place in _outer(method, shape)]
    return len(set(taken)) == len(taken)


def to_peft(methods: tuple[Method, ...], shape: ModelConfig) -> dict[str, Any]:
    """The part of adapter_config.json that the two make together."""
    config: dict[str, Any] = {}
    indices: dict[str, list[int]] = {}
    for method in methods:
        if isinstance(method, TokenRowsMethod):
            tables = TABLES[:1] if shape.tied else _outer(method, shape)  # of tied tables PEFT names the first
            indices |= {place: method.ids(shape) for place in tables}
        else:
            config |= {"peft_type": method.peft_type, **method.to_peft(shape)}
    return config | {KEY: indices["embed_tokens"] if set(indices) == {"embed_tokens"} else indices}


def to_peft_tensors(own: dict[str, Tensor], methods: tuple[Method, ...], shape: ModelConfig) -> dict[str, Tensor]:
    """{name in PEFT's file: tensor} from {partN.path.saved_name: tensor}."""
    file: dict[str, Tensor] = {}
    for part, method in enumerate(methods):
        lead = f"part{part}."
        mine = {name.removeprefix(lead): tensor for name, tensor in own.items() if name.startswith(lead)}
        if isinstance(method, TokenRowsMethod):
            file |= {PEFT_PREFIX + _in_peft(name): tensor for name, tensor in mine.items()}
        else:
            file |= method.to_peft_tensors(mine, shape)
    return file


def from_peft_tensors(stored: dict[str, Tensor], methods: tuple[Method, ...], shape: ModelConfig) -> dict[str, Tensor]:
    """The way back, names without PEFT's prefix; those that belong to nobody stay, to be told."""
    left = dict(stored)
    found: dict[str, Tensor] = {}
    for part, method in enumerate(methods):
        if isinstance(method, TokenRowsMethod):
            names = [f"{path(None, place)}.{_DELTA}" for place in _outer(method, shape)]
            found |= {f"part{part}.{name}": left.pop(_in_peft(name)) for name in names if _in_peft(name) in left}
    (part, method), *_ = [(n, m) for n, m in enumerate(methods) if not isinstance(m, TokenRowsMethod)]
    own = method.from_peft_tensors(left, shape)
    return found | {f"part{part}.{name}": tensor for name, tensor in own.items()}


def split(config: dict[str, Any], shape: ModelConfig) -> tuple[dict[str, Any], list[Method]]:
    """A PEFT configuration without the rows, and the methods that the rows are ([] where there are none).

    Refusal ``adapter-unsupported``: rows of another module, or rows of one only of two tables that the base ties.
    """
    asked = config.get(KEY)
    if not asked:
        return config, []
    tables: dict[str, Any] = {"embed_tokens": asked} if isinstance(asked, list) else dict(asked)
    tables = {name.rsplit(".", 1)[-1]: tuple(int(id) for id in ids) for name, ids in tables.items()}
    wrong = [f"{KEY} of {name}: rows are of embed_tokens and lm_head" for name in tables if name not in TABLES]
    table, head = tables.get("embed_tokens"), tables.get("lm_head")
    if shape.tied and head is not None and head != table:
        wrong.append(f"{KEY} of lm_head apart from embed_tokens: this base ties the two")
    if wrong:
        raise Refusal("adapter-unsupported", "these token rows are not Halter's", offenders=wrong)
    rest = {key: value for key, value in config.items() if key != KEY}
    if table == head or (shape.tied and table is not None):
        return rest, [TokenRowsMethod(tokens=table or ())]
    rows: list[Method] = [] if table is None else [TokenRowsMethod(tokens=table, where="embeddings")]
    return rest, rows if head is None else [*rows, TokenRowsMethod(tokens=head, where="head")]


def _outer(method: Method, shape: ModelConfig) -> list[str]:
    built: dict[str, Piece] = method.build(shape, None)
    return [place for place in built if place in TABLES]


def _in_peft(name: str) -> str:
    return name.replace(f".{_DELTA}", f".token_adapter.{_DELTA}")
