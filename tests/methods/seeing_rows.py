"""Rows with pictures through Halter's own path, for adapters that see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import seeing
import seeing_reference as reference
import tiny
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipVisionConfig,
    SiglipVisionModel,
    logging,
)

from halter.adapters.adapter import Adapter, adapt
from halter.model.decoder import Decoder
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.pictures.seen import RowPicture, features, look_at
from halter.pictures.sources import place_of
from halter.pictures.tokens import expanded

SIDE = 16
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "image_size": SIDE, "patch_size": 8}
PICTURES = [seeing.pixels(40 + n, SIDE, SIDE) for n in range(3)]
LOOKED = [place_of(seeing.saved(one)) for one in PICTURES]


@dataclass(frozen=True)
class Eye:
    """A small encoder on disk and the same as transformers made it."""

    family: str
    folder: Path
    theirs: Any

    @cached_property
    def _every(self) -> list[reference.Sight]:
        return [reference.sight(self.theirs, self.family, one) for one in PICTURES]

    def sights(self, numbers: Sequence[int]) -> list[reference.Sight]:
        """What transformers makes of these of PICTURES."""
        return [self._every[n] for n in numbers]


def eye(family: str, folder: Path, layers: int = 8) -> Eye:
    """Every number drawn, so that no norm, bias or class token is too small to be seen."""
    if family == "clip":
        theirs = CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZES, num_hidden_layers=layers, projection_dim=12))
    else:
        theirs = SiglipVisionModel(SiglipVisionConfig(**SIZES, num_hidden_layers=layers))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in theirs.named_parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.5 if tensor.dim() == 1 else 0.2))
            if "norm" in name and name.endswith("weight"):
                tensor.add_(1)
    logging.disable_progress_bar()
    theirs.eval().save_pretrained(folder)
    return Eye(family, folder, theirs)


def eyes(folder: Path) -> dict[str, Eye]:
    """{family: an encoder of it}."""
    return {family: eye(family, folder / family) for family in ("clip", "siglip")}


@dataclass(frozen=True)
class Row:
    """Token ids, -1 where a picture stands, and which pictures, by number."""

    tokens: tuple[int, ...]
    shown: tuple[int, ...] = ()

    def words(self):
        return [token for token in self.tokens if token >= 0]


def drawn(count: int, seed: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(3, 96, count).tolist())


def rows(several: bool = False) -> list[Row]:
    """Blind beside seeing, with equal words too; two rows of one picture; several lengths. ``several``: a row of two
    pictures, and one of which nothing but its picture."""
    words = [drawn(n, 70 + n) for n in (6, 11, 1, 9)]
    made = [
        Row(words[0]),
        Row((*words[0][:2], -1, *words[0][2:]), (0,)),
        Row((-1, *words[1]), (1,)),
        Row((*words[2], -1), (0,)),
        Row(words[3]),
        Row((*words[3], -1, 5), (2,)),
    ]
    if several:
        made += [Row((4, -1, *words[3][:3], -1, 8), (1, 0)), Row((-1, -1), (2, 2)), Row((-1,), (1,))]
    return made


def made(rules: Any, row: Row) -> tuple[list[int], tuple[RowPicture, ...]]:
    """A row's tokens and pictures as these rules take them."""
    looked = [look_at(rules, LOOKED[n]) for n in row.shown]
    tokens, _, pictures = expanded(row.tokens, [False] * len(row.tokens), looked, rules)
    return tokens, pictures


def ours(model: Decoder, adapter: Adapter, rows: list[Row]) -> list[torch.Tensor]:
    """Logits of all rows in one pass, apart by row."""
    each = [made(adapter.sight, row) for row in rows]
    shown = features(adapter.sight, [pictures for _, pictures in each])
    segments = replace(Segments.packed([len(tokens) for tokens, _ in each]), features=shown)
    return _passed(model, [tokens for tokens, _ in each], segments, adapter.bind(model, segments))


def without(model: Decoder, rows: list[Row]) -> list[torch.Tensor]:
    """Logits of the rows' words by the base alone, as of ``ours``."""
    words = [row.words() for row in rows]
    return _passed(model, words, Segments.packed([len(one) for one in words]), None)


def _passed(model: Decoder, rows: list[list[int]], segments: Segments, acts: Any) -> list[torch.Tensor]:
    tokens = torch.tensor([token for one in rows for token in one])
    found = model.head(model.hidden(Pass(tokens, segments, acts)), acts)
    return list(found.split([len(one) for one in rows]))


@dataclass(frozen=True)
class Case:
    """One set of options of one method, on one shape of the base."""

    method: str
    options: dict[str, Any]
    family: str = "clip"
    shape: Any = ()

    def __str__(self) -> str:
        told = [f"{name}={value}" for name, value in (*self.options.items(), *self.shape)]
        return " ".join([self.method, self.family, *told])

    def built(self, eye: Eye, dtype: torch.dtype = torch.float32, moved: float = 0.3) -> tuple[Decoder, Adapter]:
        model = tiny.decoder(tiny.config(**{"layers": 3} | dict(self.shape)), dtype)
        adapter = adapt(model, self.method, encoder=str(eye.folder), **self.options)
        tiny.jitter(adapter, moved)
        return model, adapter

    def wanted(self, eye: Eye, model: Decoder, trained: dict[str, torch.Tensor], row: Row) -> torch.Tensor:
        weights = {name: getattr(module, buffer) for name, module, buffer in model.tensors()}
        tokens = row.tokens if self.method == "projector" else row.words()
        what = (self.method, trained, self.options, model.config, weights)
        return reference.logits(*what, tokens, eye.sights(row.shown), self.family)


def saved(adapter: Adapter) -> dict[str, torch.Tensor]:
    """{saved name: its float64 copy}, leaves of their own."""
    found = ((name, slot.tensor(attribute)) for name, slot, attribute in adapter.named_tensors())
    return {name: tensor.detach().double().requires_grad_() for name, tensor in found}


V1 = {"adapter_len": 5, "adapter_layers": 2, "visual_hidden": 7}
V2 = {"adapter_len": 4, "adapter_layers": 2, "query_len": 4, "v_depth": 2, "v_num_heads": 3}
LATE = V2 | {"fusion": "late"}
EARLY = V2 | {"fusion": "early", "query_len": 3}
EXCITOR = {"adapter_len": 6, "adapter_layers": 2, "r": 3, "visual_r": 2}
FIVE = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MHA, MQA = (("kv_heads", 4),), (("kv_heads", 1), ("head_dim", 12))
CASES = [
    Case("llama_adapter", V1),
    Case("llama_adapter", V1, "siglip", MHA),
    Case("llama_adapter", V1 | {"encoder_states": (3, -1), "gate_activation": "identity"}, shape=MQA),
    Case("llama_adapter", V1 | {"gate_scope": "layer", "adapter_layers": 9}),
    Case("llama_adapter_v2", LATE),
    Case("llama_adapter_v2", LATE | {"scale_side": "in"}, "siglip", MQA),
    Case("llama_adapter_v2", LATE | {"scale_side": "none", "bias_targets": FIVE, "branch_rank": 2}, shape=MHA),
    Case("llama_adapter_v2", LATE | {"prompts_through": "plain", "train_norm": False, "branch_rank": 2}),
    Case("llama_adapter_v2", EARLY),
    Case("llama_adapter_v2", EARLY | {"scale_side": "in", "fusion_layer": 1}, "siglip"),
    Case("llama_adapter_v2", EARLY | {"adapter_len": 0, "fusion_layer": 2, "gate_scope": "layer"}, shape=MQA),
    Case("llama_adapter_v2", EARLY | {"adapter_layers": 3, "branch_rank": 2, "gate_activation": "identity"}, shape=MHA),
    Case("excitor", EXCITOR),
    Case("excitor", EXCITOR | {"gate_scope": "kv_head"}, "siglip"),
    Case("excitor", EXCITOR | {"rope_extra_key": False}, shape=MQA),
    Case("excitor", EXCITOR | {"rope_extra_key": False, "gate_scope": "kv_head", "adapter_layers": 3}, shape=MHA),
    Case("projector", {}),
    Case("projector", {"projector_depth": 1}, "siglip", MHA),
]
"""Each method in its forms; heads that share keys, that have their own, and one key for all."""
