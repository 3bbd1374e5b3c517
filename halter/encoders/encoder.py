"""An encoder of pictures: one vision transformer, frozen, of which every layer's states can be asked for.

Source: arXiv 2103.00020 (CLIP), arXiv 2303.15343 (SigLIP), and transformers' modeling_clip and modeling_siglip, whose
names of modules stand here, so that the names of tensors are a checkpoint's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.encoders.config import CLIP, EncoderConfig, Preparing
from halter.errors import Refusal


class PictureEncoder(nn.Module):
    """Pixels to states. Nothing of it is trained.

    The numbers of states are transformers' ``hidden_states``: 0 is what enters the first block, ``layers`` (or -1) what
    leaves the last, before the norm behind it.
    """

    def __init__(self, config: EncoderConfig, preparing: Preparing) -> None:
        super().__init__()
        self.config, self.preparing = config, preparing
        self.digest = ""
        """SHA-256, in hex, of its weights and of how pixels are prepared; '' of one that was not loaded."""
        self.embeddings = _Embeddings(config)
        if config.kind == CLIP:
            self.pre_layrnorm = _norm(config)  # spelt as in every checkpoint
        self.encoder = _Blocks(config)
        self.post_layernorm = _norm(config)
        if config.pooling:
            self.head = _Pooling(config)
        if config.projection:
            self.visual_projection = nn.Linear(config.dim, config.projection, bias=False)
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.post_layernorm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.post_layernorm.weight.device

    def prepare(self, pixels: Tensor) -> Tensor:
        """``pixels`` uint8 [3, height, width], RGB -> float32 [3, image, image], normalised."""
        how = self.preparing
        height, width = pixels.shape[1:]
        size = (how.square, how.square)
        if how.shortest:
            short, long = sorted((height, width))
            longer = max(how.square, how.shortest * long // short)
            size = (how.shortest, longer) if height <= width else (longer, how.shortest)
        mode = "bicubic" if how.bicubic else "bilinear"
        if size != (height, width):
            pixels = F.interpolate(pixels[None], size, mode=mode, align_corners=False, antialias=True)[0]
        top, left = (size[0] - how.square) // 2, (size[1] - how.square) // 2
        cut = pixels[:, top : top + how.square, left : left + how.square].float() / 255
        return (cut - torch.tensor(how.mean)[:, None, None]) / torch.tensor(how.std)[:, None, None]

    @torch.no_grad()
    def states(self, pixels: Tensor, numbers: Sequence[int] = (-1,)) -> list[Tensor]:
        """``pixels`` [B, 3, image, image] as ``prepare`` makes them -> the states of these numbers, in the order asked,
        each [B, tokens, dim]; of CLIP's tokens the first is the class token. Refusal ``encoder-layer`` for numbers that
        there are not."""
        last = self.config.layers
        wanted = [number + last + 1 if number < 0 else number for number in numbers]
        if wrong := [number for number, place in zip(numbers, wanted, strict=True) if not 0 <= place <= last]:
            raise Refusal(
                "encoder-layer",
                "the encoder has no such states",
                found=wrong,
                expected=f"0 (what enters the first of its {last} blocks) to {last}, or -1 for the last",
                fix="ask for numbers in this range",
            )
        h = self.embeddings(pixels.to(self.device, self.dtype))
        if self.config.kind == CLIP:
            h = self.pre_layrnorm(h)
        kept = {0: h}
        for number, block in enumerate(self.encoder.layers, 1):
            if number > max(wanted):
                break
            h = block(h)
            if number in wanted:
                kept[number] = h
        return [kept[place] for place in wanted]

    @torch.no_grad()
    def finished(self, last: Tensor) -> Tensor:
        """The last states [..., dim] behind the norm that follows them."""
        found: Tensor = self.post_layernorm(last)
        return found

    @torch.no_grad()
    def projected(self, finished: Tensor) -> Tensor:
        """Finished states [..., dim] in the space that pictures and texts share, [..., projection]; where the
        checkpoint has no such space, as they are."""
        return self.visual_projection(finished) if self.config.projection else finished

    @torch.no_grad()
    def whole(self, last: Tensor) -> Tensor:
        """One vector for each picture, [B, projection or dim], of its last states [B, tokens, dim]: CLIP's class token,
        SigLIP's pooling; of a SigLIP without pooling the mean of its patches."""
        finished = self.finished(last)
        if self.config.pooling:
            return self.head(finished)  # type: ignore[no-any-return]
        return self.projected(finished[:, 0]) if self.config.kind == CLIP else finished.mean(1)


def _norm(config: EncoderConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.dim, eps=config.norm_eps)


class _Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        clip = config.kind == CLIP
        if clip:
            self.class_embedding = nn.Parameter(torch.empty(config.dim))
        self.patch_embedding = nn.Conv2d(3, config.dim, config.patch, config.patch, bias=not clip)
        self.position_embedding = nn.Embedding(config.tokens, config.dim)
        self.clip = clip

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, image, image] -> [B, tokens, dim]."""
        h = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        if self.clip:
            h = torch.cat((self.class_embedding.expand(len(h), 1, -1), h), 1)
        return h + self.position_embedding.weight  # type: ignore[no-any-return]


class _Blocks(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.layers))


class _Block(nn.Module):
    """h += attention(norm(h)); h += mlp(norm(h))."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layer_norm1, self.self_attn = _norm(config), _Attention(config)
        self.layer_norm2, self.mlp = _norm(config), _Mlp(config)

    def forward(self, h: Tensor) -> Tensor:
        """[B, tokens, dim] -> the same."""
        h = h + self.self_attn(self.layer_norm1(h))
        return h + self.mlp(self.layer_norm2(h))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(config.dim, config.dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, dim] -> the same."""
        q, k, v = (
            made(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for made in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Mlp(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(config.dim, config.ffn_dim), nn.Linear(config.ffn_dim, config.dim)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> the same."""
        return self.fc2(_activated(self.fc1(x), self.activation))  # type: ignore[no-any-return]


def _activated(x: Tensor, name: str) -> Tensor:
    if name == "quick_gelu":  # of the original CLIP
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if name == "gelu_pytorch_tanh" else "none")


class _Pooling(nn.Module):
    """SigLIP's: a learned question that looks at all patches, and an MLP."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.dim))
        self.attention = nn.MultiheadAttention(config.dim, config.heads, batch_first=True)
        self.layernorm, self.mlp = _norm(config), _Mlp(config)

    def forward(self, h: Tensor) -> Tensor:
        """[B, tokens, dim] -> [B, dim]."""
        h = self.attention(self.probe.expand(len(h), -1, -1), h, h, need_weights=False)[0]
        return (h + self.mlp(self.layernorm(h)))[:, 0]  # type: ignore[no-any-return]
