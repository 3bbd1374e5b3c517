"""The sections of a recipe. data, train and each method's options are declared where they are used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from halter.contract.method import Method
from halter.contract.otherwise import in_words, spelt
from halter.contract.registry import find, names
from halter.data.options import DataOptions
from halter.errors import Refusal
from halter.pretrained.device import Offload
from halter.training.defaults import PRESETS, Default
from halter.training.options import TrainOptions

BLANK_MODEL, BLANK_DATA = "PATH_OR_HUB_ID", "FILE.jsonl"
"""What `halter init` writes where only the user knows."""


@dataclass(frozen=True)
class ModelOptions:
    """Which base, and how it is held in memory."""

    path: str
    """Folder of a LLaMA checkpoint (Hugging Face's or Meta's layout), or a hub id such as org/name."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; not given: the main branch. A run records the commit."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What weights are held and computed in; auto: the checkpoint's own, fp32 on a CPU without bf16 instructions."""
    quantize: Literal["nf4", "int8"] | None = None
    """nf4 holds linear layers and routed experts in 4 bits, quantised while they are read: about a quarter of the
    memory. int8 holds them in 8 bits: half of it, and an error a tenth as large."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; not given: the first accelerator there is."""
    offload: Offload = "none"
    """layers keeps the frozen layers in CPU memory, two of them at a time on the GPU: for a base larger than the GPU.
    Changes nothing where the device's memory is the CPU's."""


@dataclass(frozen=True)
class ChecksOptions:
    """Checks that are waived."""

    allow: tuple[str, ...] = ()
    """Ids of refusals that are waived, as they stand in square brackets at a refusal's end: base-differs,
    adapter-task, tokenizer-differs, template-differs, double-bos, pad-trained, untrained-tokens, row-memory,
    learning-rate, run-data-differs, pictures-unseen, disk-space."""


@dataclass(frozen=True)
class MethodChoice:
    """One method of a recipe."""

    name: str
    """The method: the name of a file in halter/methods."""
    options: Method
    """Its own frozen dataclass."""
    init_from: str | None = None
    """Folder of an adapter that training starts from: one of this method, or one that becomes it exactly (for LoRA a
    lower rank or another alpha, for DoRA also LoRA). Of several methods each takes its own, the others start afresh."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run. Made by ``load``; ``dump`` writes it back."""

    model: ModelOptions
    methods: tuple[MethodChoice, ...]
    """One, or several that are trained together."""
    data: DataOptions
    checks: ChecksOptions
    train: TrainOptions
    """With the method's defaults filled in."""
    output_dir: str | None = None
    """Run folder; not given: runs/NNN-name."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What was read under another name than its own, for the user to see."""
    defaults: Mapping[str, Default] = field(default_factory=dict, compare=False)
    """{"train.learning_rate": Default}: what was not given and came from the method's table, with its source."""
    given: frozenset[str] = field(default=frozenset(), compare=False)
    """What was given, by names such as train.learning_rate, and method.1.r for the second of several methods."""

    @property
    def method(self) -> MethodChoice:
        """The first method."""
        return self.methods[0]

    @property
    def dtype(self) -> str:
        """What the base is held and computed in: train.precision where it names one, else model.dtype, which may be
        auto; a recipe in which the two name different ones is refused."""
        return PRECISIONS.get(self.train.precision, self.model.dtype)


PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""train.precision in the words of model.dtype."""

SECTIONS: dict[str, type[Any]] = {
    "model": ModelOptions,
    "data": DataOptions,
    "checks": ChecksOptions,
    "train": TrainOptions,
}
"""Sections with one dataclass each; `method` has one per method."""

ORDER = ("model", "method", "data", "checks", "train")
DEFAULT_METHOD = "lora"
BESIDE_OPTIONS = ("name", "init_from")
"""Keys of the method section that are not the method's own options."""
OUTPUT_DOC = "Run folder. Not given: runs/NNN-name. A folder with a finished or a different run is refused."


USUAL = f"take one of these; {DEFAULT_METHOD} is the usual one"


def method_names() -> tuple[str, ...]:
    """Every name that `method` may have: the method files and the presets."""
    return tuple(sorted({*names(), *PRESETS}))


def meant_methods(word: str) -> str:
    """The method that a word which is no method's name was meant as; several as they are given: lora,excitor of
    lora+excitor. '' where none is near."""
    parts = [part for part in re.split(r"[\s+&,;/]+", word.strip()) if part]
    near = [get_close_matches(part.lower().replace("-", "_"), method_names(), 1) for part in parts]
    if parts and all(near):
        return ",".join(one[0] for one in near)
    return "".join(get_close_matches(word.lower(), method_names(), 1))


def method_class(name: str) -> type[Method]:
    """The options dataclass behind a method's or a preset's name. Refusal ``unknown-method``."""
    name = spelt(name, method_names())
    if name not in method_names():
        near = in_words(str(name))
        fix = near or (f"did you mean {meant}?" if (meant := meant_methods(str(name))) else USUAL)
        raise Refusal("unknown-method", f"no method is called {name!r}", expected=", ".join(method_names()), fix=fix)
    return find(PRESETS[name]["method"]["name"].value if name in PRESETS else name)
