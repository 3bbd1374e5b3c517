"""Methods beside themselves with an encoder, a small encoder for them, and rows of which some have pictures.

Rows are made as those of files are: tokens expanded by who sees (pictures.tokens), features found by pictures.seen.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import seeing
import torch
from torch import Tensor

from halter.adapters.mixed import Mixed
from halter.adapters.sight import rules_of
from halter.contract.method import Method
from halter.contract.registry import find, names
from halter.data.example import Example
from halter.encoders.config import CLIP, EncoderConfig, Preparing
from halter.encoders.encoder import PictureEncoder
from halter.encoders.sight import AdapterSight
from halter.files.writing import write_tensors
from halter.model.decoder import Decoder
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.pictures.seen import LookedAt, features_of, look_at
from halter.pictures.sources import place_of
from halter.pictures.tokens import expanded

NAMED = "playground"
"""The encoder that laws name; in tests/laws it is the one of ``encoder_folder``."""
SIGHT = "+sight"
SHOWN = (None, 0, 1, 0, 2)
"""The picture of each row: one has none, two have the same."""
AT = 3
"""The token ahead of which a row has its picture."""


def sees(name: str) -> bool:
    """Whether a method has an encoder among its options."""
    return "encoder_facts" in {field.name for field in fields(find(name))}


CASES = [*names(), *(f"{name}{SIGHT}" for name in names() if sees(name) and find(name)().encoder is None)]
"""Every method, and once more with an encoder each that is blind without being told."""
SEEING = [case for case in CASES if case.endswith(SIGHT) or (sees(case) and find(case)().encoder is not None)]


OF_TEXT = [name for name in names() if not find(name)().equipped().picture_tokens]
"""Methods that have something to do with rows of text; the others leave these as they are."""


def name_of(case: str) -> str:
    return case.removesuffix(SIGHT)


def options_of(case: str) -> dict[str, Any]:
    return {"encoder": NAMED} if case.endswith(SIGHT) else {}


def method_of(case: str, **options: Any) -> Method:
    """The method of a case, with its encoder's sizes."""
    return find(name_of(case))(**options_of(case), **options).equipped()


def encoder_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """An encoder in Hugging Face's layout: CLIP's of four patches, or of other ``changes``, with drawn weights."""
    sizes: dict[str, Any] = {"dim": 24, "layers": 3, "heads": 4, "ffn_dim": 40, "image": 16, "patch": 8}
    config = EncoderConfig(**(sizes | {"projection": 16} | changes))
    encoder, drawn = PictureEncoder(config, Preparing()), torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in encoder.state_dict().items():
        numbers = torch.randn(tensor.shape, generator=drawn) * (0.5 if tensor.dim() == 1 else 0.2)
        tensors[name] = numbers + ("norm" in name and name.endswith("weight"))
    folder.mkdir(parents=True)
    write_tensors(folder / "model.safetensors", tensors)
    told = {"model_type": config.kind, "hidden_size": config.dim, "num_hidden_layers": config.layers}
    told |= {"num_attention_heads": config.heads, "intermediate_size": config.ffn_dim, "image_size": config.image}
    told |= {"patch_size": config.patch, "hidden_act": config.activation, "layer_norm_eps": config.norm_eps}
    told |= {"projection_dim": config.projection} if config.kind == CLIP else {"vision_use_head": config.pooling}
    (folder / "config.json").write_text(json.dumps(told), "utf-8")
    return folder


@functools.cache
def looked(number: int) -> LookedAt:
    """A drawn picture, as it is found in a file."""
    return look_at(AdapterSight(()), place_of(seeing.saved(seeing.pixels(number, 20, 24))))


def row(
    tokens: Sequence[int], learned: Sequence[bool], sight: AdapterSight | None, picture: int | None, at: int = AT
) -> Example:
    """A row with a picture ahead of token ``at``, for who sees it; None: for nobody, or without one."""
    if sight is None or picture is None:
        return Example(np.array(tokens, np.int32), np.array(learned, bool))
    with_place = [*tokens[:at], sight.token_id, *tokens[at:]]
    made, flags, pictures = expanded(with_place, [*learned[:at], False, *learned[at:]], [looked(picture)], sight)
    return Example(np.array(made, np.int32), np.array(flags, bool), pictures=pictures)


def rows_of(
    sight: AdapterSight | None, tokens: Tensor | Sequence[Sequence[int]], shown: Sequence[int | None] = SHOWN
) -> list[Example]:
    """Rows of these tokens, [rows, T] or of any lengths, of which the n-th has picture ``shown[n % len(shown)]``."""
    made = []
    for number, one in enumerate(tokens.tolist() if isinstance(tokens, Tensor) else tokens):
        made.append(row(one, [False] * len(one), sight, shown[number % len(shown)]))
    return made


def segments_of(
    model: Decoder, rows: Sequence[Example], owners: Sequence[Any], prompts: Sequence[int] | None = None
) -> Segments:
    """The rows end to end, each with what its owner takes of its pictures; who sees none reads the tokens alone."""
    made = Segments.packed([len(one.tokens) for one in rows], prompt_lengths=prompts)
    rules = [rules_of(model.config, own) for own in owners]
    parts = [(one, [() if one is None else row.pictures]) for one, row in zip(rules, rows, strict=True)]
    made.__dict__["features"] = features_of(parts, model.device)
    return made


def tokens_of(rows: Sequence[Example]) -> Tensor:
    return torch.from_numpy(np.concatenate([one.tokens for one in rows]).astype(np.int64))


def logits(
    model: Decoder, adapter: Any, rows: Sequence[Example], prompts: Sequence[int] | None = None
) -> tuple[Tensor, ...]:
    """Of each row [T, vocabulary], all in one pass. ``adapter``: of all rows, or a list with one, or None, for each."""
    owners = list(adapter) if isinstance(adapter, list) else [adapter] * len(rows)
    segments = segments_of(model, rows, owners, prompts)
    acts = None
    if isinstance(adapter, list):
        distinct = list({id(own): own for own in owners if own is not None}.values())
        numbers = [-1 if own is None else next(n for n, one in enumerate(distinct) if one is own) for own in owners]
        acts = Mixed(distinct, numbers).bind(model, segments)
    elif adapter is not None:
        acts = adapter.bind(model, segments)
    hidden = model.hidden(Pass(tokens_of(rows).to(model.device), segments, acts))
    found: tuple[Tensor, ...] = model.head(hidden, acts).split([len(one.tokens) for one in rows])
    return found
