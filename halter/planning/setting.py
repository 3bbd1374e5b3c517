"""What is planned for: a shape, methods, and how base, optimizer and passes are held."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch

from halter.contract.method import Method
from halter.errors import Refusal, meant
from halter.files.checkpoint import read_config
from halter.files.hub import resolve
from halter.model import families
from halter.model.config import ModelConfig
from halter.model.families import published, published_names
from halter.model.layout import TEXT
from halter.model.pictures import Grid
from halter.model.storages import StorageName


@dataclass(frozen=True)
class Setting:
    """One way to train. ``rows`` rows of ``length`` tokens make a pass, ``passes`` passes a step."""

    name: str
    """The model, as it was named."""
    shape: ModelConfig
    methods: tuple[Method, ...]
    dtype: torch.dtype
    quantize: StorageName | None = None
    """How the linear layers are held; None: in ``dtype``."""
    experts_too: bool = True
    """Whether routed experts are held so as well: bitsandbytes' checkpoints have them in 16 bits."""
    optimizer: str = "adamw"
    checkpointing: bool = False
    rows: int = 1
    length: int = 2048
    passes: int = 1
    device: str = "cpu"
    offload: bool = False
    """Whether the layers lie in CPU memory and visit the device."""
    pictures: tuple[Grid, ...] = ()
    """Of the pictures that each row of ``length`` tokens brings, how many tiles each is high and wide; their tokens are
    among the row's."""

    @property
    def tokens(self) -> int:
        """Of one pass."""
        return self.rows * self.length


def of_pictures(shape: ModelConfig) -> str:
    """What a plan leaves out of a model that sees; '' of one that does not."""
    blocks = shape.layout.blocks
    if all(block.stack == TEXT for block in blocks):
        return ""
    return "planned for rows of text: its tower of pictures is counted, and what it makes of pictures comes on top"


def shape_of(name: str, revision: str | None = None) -> ModelConfig:
    """The shape behind a published model's name, a checkpoint folder or a hub id; weights are never read. Refusals
    ``no-model`` and as ModelConfig's and files.hub.resolve's."""
    if not name:
        raise Refusal(
            "no-model",
            "a plan needs a model",
            expected=f"a folder, a hub id, or {', '.join(published_names())}",
            fix="--model DIR or --model llama-3.1-8b",
        ).by_keyword()
    known = published_names()
    if name in known and not Path(name).exists():
        return published(name)
    if not Path(name).expanduser().exists() and "/" not in name:
        if (spelt := families.published_as(name)) in families.ANNOUNCED:
            raise families.not_released(spelt)
        raise Refusal(
            "no-model",
            "is neither a folder nor a preset, which are LLaMA's alone",
            where=name,
            expected=", ".join(known),
            fix=meant(name, known, "give a folder that is there, or a name of this list"),
        )
    try:
        folder = resolve(name, revision, weights=False)
    except Refusal as refusal:
        if close := get_close_matches(name.rsplit("/", 1)[-1].lower(), known, 1):
            fix = f"--model {close[0]} is a published shape that needs no hub; {refusal.fix}"
            raise Refusal(refusal.id, refusal.what, where=refusal.where, found=refusal.found, fix=fix) from None
        raise
    return families.read_config(read_config(folder), str(folder))
