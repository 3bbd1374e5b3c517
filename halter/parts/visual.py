"""What makes of an encoder's features the vectors that an adapter's prompts, keys or tokens are: one network a method.

A network is shared by all layers that use it (``Method.share``), and computed once in a forward.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.contract.method import Site
from halter.contract.seeing import SeenPictures, seen
from halter.encoders.sight import EncoderLook


class Visual(nn.Module):
    """A network from the features of pictures [D, tokens, width] to vectors [D, K, dim], float32."""

    def __init__(self, look: EncoderLook) -> None:
        super().__init__()
        self.look = look

    def forward(self, features: Tensor) -> Tensor:
        raise NotImplementedError

    def reset(self, generator: torch.Generator) -> None:
        """As torch begins a Linear, a LayerNorm and an Embedding."""
        for module in self.modules():
            for name, tensor in module.named_parameters(recurse=False):
                if isinstance(module, nn.LayerNorm):
                    nn.init.constant_(tensor, float(name == "weight"))
                elif isinstance(module, nn.Linear):
                    bound = 1 / math.sqrt(module.in_features)
                    nn.init.uniform_(tensor, -bound, bound, generator=generator)
                else:
                    nn.init.normal_(tensor, generator=generator)

    def made(self, site: Site) -> tuple[Tensor, SeenPictures] | None:
        """The vectors [D, K, dim] of the different pictures of a forward's rows, and where these are; None where no row
        has a picture."""

        def make() -> tuple[Tensor, SeenPictures] | None:
            pictures = seen(site, self.look)
            if pictures is None:
                return None
            features = pictures.features.to(next(self.parameters()).dtype)  # theirs, as Adapter.to has made it
            return self(features), pictures

        return site.once(self, make)


class GlobalVector(Visual):
    """LLaMA-Adapter's: the features of several scales side by side -> one vector of the model's width."""

    def __init__(self, look: EncoderLook, hidden: int, dim: int) -> None:
        super().__init__(look)
        self.enter, self.leave = nn.Linear(look.size[1], hidden), nn.Linear(hidden, dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.leave(F.gelu(self.enter(features)))  # type: ignore[no-any-return]


class VisualQuery(Visual):
    """The released LLaMA-Adapter V2's: learned queries ahead of the projected features, some blocks of a vision
    transformer over both, and what the queries have become, in the model's width (llama_adapter.py: clip_proj,
    visual_query, visual_blocks, visual_proj)."""

    def __init__(self, look: EncoderLook, queries: int, blocks: int, heads: int, dim: int) -> None:
        super().__init__(look)
        width = look.size[1]
        self.clip_proj, self.clip_proj_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.visual_query = nn.Parameter(torch.zeros(queries, width))
        self.visual_blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.visual_proj, self.visual_proj_norm = nn.Linear(width, dim), nn.LayerNorm(dim)

    def forward(self, features: Tensor) -> Tensor:
        h = self.clip_proj_norm(self.clip_proj(features))
        h = torch.cat((self.visual_query.expand(len(h), -1, -1), h), 1)
        for block in self.visual_blocks:
            h = block(h)
        return self.visual_proj_norm(self.visual_proj(h[:, : len(self.visual_query)]))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """timm's: h += attention(norm(h)); h += mlp(norm(h))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = h + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + self.fc2(F.gelu(self.fc1(self.norm2(h))))  # type: ignore[no-any-return]


class Perceptron(Visual):
    """LLaVA's: each patch by itself through one linear layer, or through two with a GELU between."""

    def __init__(self, look: EncoderLook, depth: int, dim: int) -> None:
        super().__init__(look)
        sizes = [look.size[1], *[dim] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, features: Tensor) -> Tensor:
        h: Tensor = self.layers[0](features)
        for layer in self.layers[1:]:
            h = layer(F.gelu(h))
        return h


def names_of(visual: Visual | None) -> dict[str, str]:
    """{name of a parameter in a piece that holds it as ``visual``: its name in the adapter's file}."""
    return {} if visual is None else {f"visual.{name}": f"visual.{name}" for name, _ in visual.named_parameters()}
