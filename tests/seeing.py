"""Small pictures, rules that make tokens of them, and a tokenizer that knows their tokens."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import tiny as tiny_models
import tiny_tokenizers as tiny
import torch
from PIL import Image
from tokenizers import AddedToken

from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.pictures import canvases, fitting
from halter.model.places import run_at
from halter.pictures.seen import RowPicture
from halter.pictures.sources import PictureBytes

NAMES = ("<|image|>", "<|patch|>", "<|image_start|>", "<|image_end|>")
PARTS_TEMPLATE = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\n"
    "    {%- if message['content'] is string %}\n"
    "        {{- message['content'] | trim }}\n"
    "    {%- else %}\n"
    "        {%- for part in message['content'] %}\n"
    "            {%- if part['type'] == 'image' %}{{- '<|image|>' }}{%- else %}{{- part['text'] | trim }}{%- endif %}\n"
    "        {%- endfor %}\n"
    "    {%- endif %}\n"
    "    {{- '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
    "{%- endif %}\n"
)


@dataclass(frozen=True)
class SquareRules:
    """Tiles of 8 by 8, at most four; each is two tokens, between a start and an end. ``first``: the id of NAMES[0]."""

    first: int = 90
    side: int = 8
    most: int = 4

    @property
    def token(self) -> str:
        return NAMES[0]

    @property
    def token_id(self) -> int:
        return self.first

    def prepare(self, pixels):
        grid = fitting(canvases(self.most), self.side, *pixels.shape[1:])
        whole = torch.nn.functional.interpolate(pixels[None].float(), (grid[0] * self.side, grid[1] * self.side))[0]
        cut = whole.unflatten(2, (grid[1], self.side)).unflatten(1, (grid[0], self.side))
        return cut.permute(1, 3, 0, 2, 4).flatten(0, 1) / 255, grid

    def tiles(self, grid):
        return grid[0] * grid[1], 3, self.side, self.side

    def ids(self, grid):
        return (self.first + 2, *([self.first + 1] * (2 * grid[0] * grid[1])), self.first + 3)


def folder(path: Path, template: str | None = PARTS_TEMPLATE) -> Path:
    """A tokenizer's folder like Llama 3's, with the tokens NAMES at the end of its vocabulary."""
    library = tiny.byte_level()
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in NAMES])
    names = {"bos_token": tiny.BOS, "eos_token": tiny.EOT, "pad_token": "<|finetune_right_pad_id|>"}
    return tiny.write(path, library, **(names if template is None else {**names, "chat_template": template}))


def pixels(seed: int = 0, height: int = 8, width: int = 8) -> np.ndarray:
    """Drawn colours, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(image: Any, kind: str = "PNG", **how: Any) -> bytes:
    """A picture's file."""
    held = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(held, kind, **how)
    return held.getvalue()


def placed(name: str, start: int, length: int) -> RowPicture:
    """A picture that only its name tells from others."""
    digest = sha256(name.encode()).hexdigest()
    return RowPicture(digest, start, length, (1, 1), (8, 8), PictureBytes(name.encode()))


@dataclass(frozen=True)
class SeeingConfig(ModelConfig):
    """A dense model whose vocabulary ends with the tokens NAMES."""

    @property
    def pictures(self) -> SquareRules:
        return SquareRules(self.vocab_size - len(NAMES))


class SeeingDecoder(Decoder):
    """To the embedding of each of a picture's tokens comes what its tile's first pixel, and its place, make of it."""

    def hidden_of(self, passes: Any) -> Any:
        return super().hidden_of([self._fused(one) for one in passes])

    def _fused(self, asked: Any) -> Any:
        segments = asked.segments
        if asked.entered is not None or segments.features is None:
            return asked
        states = run_at(asked.acts and asked.acts.embed_tokens, self.embed_tokens, asked.tokens).clone()
        colours = torch.randn(3, self.config.dim, generator=torch.Generator().manual_seed(7)).to(states)
        begins = segments.query_starts.tolist()
        for row, (first, length) in enumerate(zip(begins, segments.query_lengths.tolist(), strict=True)):
            for picture in segments.features[row] or ():
                for n in range(max(0, -picture.start), min(picture.length, length - picture.start)):
                    tile = picture.tiles[min(max(n - 1, 0) // 2, len(picture.tiles) - 1)].to(states)
                    states[first + picture.start + n] += (1 + n) * tile[:, 0, 0] @ colours
        return replace(asked, entered=(0, states))


def decoder(vocab_size: int = 96, seed: int = 0, dtype: torch.dtype = torch.float64) -> SeeingDecoder:
    """A small model that sees, with random weights."""
    sizes = {
        name: getattr(tiny_models.config(vocab_size=vocab_size), name) for name in ModelConfig.__dataclass_fields__
    }
    shape = SeeingConfig(**sizes)
    model = SeeingDecoder(shape, dtype)
    for name, module, buffer in tiny_models.decoder(shape, dtype, seed).tensors():
        model.set_tensor(name, getattr(module, buffer))
    return model
