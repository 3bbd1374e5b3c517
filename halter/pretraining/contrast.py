"""How the encoder of pictures that comes with the package is made: CLIP in small, on the playground's pictures.

A vision transformer and a transformer of texts learn together, from nothing, by the one contrastive objective: of the
pictures of a step, find the one that a text was written for, and of the texts the one of a picture. The text's half is
then thrown away. Source: arXiv 2103.00020, figure 3.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from halter.encoders.config import EncoderConfig, Preparing
from halter.encoders.encoder import PictureEncoder
from halter.encoders.load import load_encoder
from halter.files.folders import new_folder
from halter.files.writing import append_line, write_json, write_tensors
from halter.playground.base import HELD_OUT_SEED, SEED
from halter.pretraining import pairs, probes
from halter.pretraining.making import FIGURES
from halter.pretraining.pairs import Told
from halter.run.watch import Log
from halter.training import schedule
from halter.training.memory import peak_memory_bytes

HOTTEST = math.log(100.0)
"""The largest logarithm of the temperature's inverse, as CLIP bounds it."""
READ_FOR_WORDS, OFTEN = 10, 24
"""Steps whose texts give the text's half its words, of those that are in several of them."""


@dataclass(frozen=True)
class Contrast:
    """The recipe."""

    dim: int = 128
    layers: int = 5
    heads: int = 4
    ffn_dim: int = 256
    image: int = 64
    patch: int = 8
    projection: int = 128
    text_dim: int = 96
    text_layers: int = 2
    steps: int = 4000
    pictures_per_step: int = 64
    family: int = 4
    """Pictures that differ from the first of them in one fact."""
    papers: float = 0.3
    """The share of papers among families."""
    forms: float = 0.25
    """The share of forms among the others; their digits are harder to tell apart than things."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 50
    betas: tuple[float, float] = (0.9, 0.98)
    temperature: float = 0.05
    """At the beginning; it is learned."""
    probe_drawings: tuple[int, int] = (4000, 1000)
    """Of things, of forms and of papers each, that probes learn from and are asked about."""
    seed: int = SEED

    @property
    def config(self) -> EncoderConfig:
        sizes = (self.dim, self.layers, self.heads, self.ffn_dim, self.image, self.patch)
        return EncoderConfig("clip_vision_model", *sizes, projection=self.projection)

    @property
    def preparing(self) -> Preparing:
        return Preparing(self.image, self.image, mean=(0.5,) * 3, std=(0.5,) * 3)

    def batch(self, step: int, seed: object = None) -> list[Told]:
        seed = self.seed if seed is None else seed
        return pairs.batch(seed, step, self.pictures_per_step, self.family, self.forms, self.papers)


class TextHalf(nn.Module):
    """Words to one vector in the space that pictures share."""

    def __init__(self, known: Sequence[str], dim: int, layers: int, projection: int, longest: int = 64) -> None:
        super().__init__()
        self.numbers = {word: number for number, word in enumerate(known, 1)}  # 0 pads
        self.longest = longest
        self.embedding = nn.Embedding(len(known) + 1, dim)
        self.position = nn.Embedding(longest, dim)
        block = nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, projection, bias=False)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """-> [texts, projection]."""
        cut = [[*self._read(one)][: self.longest] for one in texts]
        rows = torch.zeros(len(cut), max(map(len, cut)), dtype=torch.int64)
        for row, one in zip(rows, cut, strict=True):
            row[: len(one)] = torch.tensor(one)
        h = self.embedding(rows) + self.position.weight[: rows.shape[1]]
        there = rows != 0
        h = self.blocks(h, src_key_padding_mask=~there) * there[..., None]
        return self.projection(self.norm(h.sum(1) / there.sum(1, keepdim=True)))  # type: ignore[no-any-return]

    def _read(self, text: str) -> Iterator[int]:
        """The numbers of a text's words; a word that is unknown, as an invented name, is read by its letters."""
        for word in pairs.words(text):
            if word in self.numbers:
                yield self.numbers[word]
            else:
                yield from (self.numbers[letter] for letter in word if letter in self.numbers)


class Halves(nn.Module):
    """Both halves and their temperature, while they learn."""

    def __init__(self, recipe: Contrast, known: Sequence[str]) -> None:
        super().__init__()
        self.pictures = PictureEncoder(recipe.config, recipe.preparing).requires_grad_(True)
        self.texts = TextHalf(known, recipe.text_dim, recipe.text_layers, recipe.projection)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / recipe.temperature)))
        _first(self.pictures)

    def seen(self, pixels: Tensor) -> Tensor:
        """[B, 3, image, image] -> [B, projection]; PictureEncoder's own forward keeps no gradients."""
        one = self.pictures
        h = one.pre_layrnorm(one.embeddings(pixels))
        for block in one.encoder.layers:
            h = block(h)
        return one.visual_projection(one.post_layernorm(h[:, 0]))  # type: ignore[no-any-return]

    def forward(self, batch: Sequence[Told]) -> tuple[Likeness, Likeness]:
        """How alike the pictures of a step are to its captions, and to its facts."""
        facts, true = pairs.facts_true(batch)
        pixels = prepared(self.pictures, batch)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # 16 bits are slow in the other one
            seen = self.seen(pixels)
            read = [self.texts([one.caption for one in batch]), self.texts(facts)]
        seen = F.normalize(seen.float(), dim=-1) * self.scale.clamp(max=HOTTEST).exp()
        trues = (torch.from_numpy(pairs.captions_true(batch)), torch.from_numpy(true))
        captions, single = (
            Likeness(seen @ F.normalize(texts.float(), dim=-1).T, which)
            for texts, which in zip(read, trues, strict=True)
        )
        return captions, single


def _first(encoder: PictureEncoder) -> None:
    """Weights before the first step. Positions begin as waves across and down, of which a quarter of the picture can be
    told at once; they are learned as all else."""
    config = encoder.config
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if weight.dim() == 2:
                out = name.endswith(("out_proj.weight", "fc2.weight"))
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5 * ((2 * config.layers) ** -0.5 if out else 1.0))
            elif weight.dim() == 4:
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
            else:
                nn.init.constant_(weight, float("norm" in name and name.endswith("weight")))
        nn.init.normal_(encoder.embeddings.class_embedding, std=0.5)
        encoder.embeddings.position_embedding.weight[1:] = waves(config.image // config.patch, config.dim)
        encoder.embeddings.position_embedding.weight[0] = 0


def waves(side: int, dim: int) -> Tensor:
    """float32 [side * side, dim]: sines and cosines of where a patch lies across and down, from half a wave over the
    whole side up to one of two patches."""
    at = (torch.arange(side) + 0.5) / side
    angles = math.pi * at[:, None] * torch.logspace(0, math.log2(side), dim // 4, 2)
    line = torch.cat((angles.sin(), angles.cos()), 1)
    across, down = line.expand(side, -1, -1), line[:, None].expand(-1, side, -1)
    return torch.cat((across, down), -1).flatten(0, 1)


def prepared(encoder: PictureEncoder, batch: Sequence[Told]) -> Tensor:
    """float32 [B, 3, image, image]."""
    return torch.stack([encoder.prepare(torch.from_numpy(one.pixels).permute(2, 0, 1)) for one in batch])


@dataclass(frozen=True)
class Likeness:
    """Of pictures to texts."""

    alike: Tensor
    """float32 [pictures, texts]: cosines over the temperature."""
    true: Tensor
    """bool [pictures, texts]: which text is true of which picture."""

    def contrast(self) -> Tensor:
        """The mean over true pairs of both ways' cross entropy: of the text among all that are false of its picture,
        and of the picture among all that the text is false of."""
        false = self.alike.masked_fill(self.true, -math.inf)
        others = false.logsumexp(1, keepdim=True), false.logsumexp(0, keepdim=True)
        both = sum(F.softplus(other - self.alike)[self.true].mean() for other in others)
        return both / 2  # type: ignore[return-value]

    def found(self) -> float:
        """The share of pictures whose likeliest text is true of them."""
        return self.true.gather(1, self.alike.argmax(1, keepdim=True)).float().mean().item()


def pretrain_encoder(folder: str | Path, recipe: Contrast | None = None, log: Log = lambda _: None) -> dict[str, Any]:
    """Make the encoder in a new folder, as transformers' CLIPVisionModelWithProjection keeps one; returns (and keeps in
    ``figures.json``) what came out.

    ``log`` gets one record a step. The same recipe gives the same weights on the same machine with the same number of
    threads. Refusal ``already-exists``.
    """
    recipe = recipe or Contrast()
    started = time.time()
    with new_folder(folder) as inside:
        curve: list[float] = []

        def record(line: dict[str, Any]) -> None:
            curve.append(line["loss"])
            append_line(inside / "metrics.jsonl", line)
            log(line)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            halves = Halves(recipe, known_words(recipe))
            learn(halves, recipe, record)
        write_encoder(inside, halves.pictures)
        figures = {
            "parameters": sum(one.numel() for one in halves.pictures.parameters()),
            "pictures": recipe.steps * recipe.pictures_per_step,
            "steps": recipe.steps,
            "first_losses": [round(loss, 4) for loss in curve[:5]],
            "last_losses": [round(loss, 4) for loss in curve[-5:]],
            "held_out": held_out(halves, recipe),
            "seconds_of_training": round(time.time() - started),
            "probes": probes.told(load_encoder(inside), *recipe.probe_drawings),
            "seconds": round(time.time() - started),
            "date": time.strftime("%Y-%m-%d"),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "recipe": asdict(recipe),
        }
        write_json(inside / FIGURES, figures)
    return figures


def known_words(recipe: Contrast) -> list[str]:
    """The words that are in at least ``OFTEN`` facts and captions of the first steps, and all letters, sorted."""
    read = (one for step in range(READ_FOR_WORDS) for one in recipe.batch(step))
    counts = Counter(word for one in read for text in (one.caption, *one.facts) for word in pairs.words(text))
    return sorted({word for word, count in counts.items() if count >= OFTEN}.union(ascii_lowercase, digits))


def learn(halves: Halves, recipe: Contrast, record: Log) -> None:
    """All steps; ``record`` gets one line of each."""
    matrices = [one for one in halves.parameters() if one.dim() > 1]
    others = [one for one in halves.parameters() if one.dim() < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, recipe.learning_rate, recipe.betas)
    share = schedule.make("cosine", recipe.steps, recipe.warmup_steps)
    tokens = recipe.pictures_per_step * recipe.config.tokens
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * share(step)
        began = time.perf_counter()
        captions, facts = halves(recipe.batch(step))
        loss = (captions.contrast() + facts.contrast()) / 2
        loss.backward()
        norm = nn.utils.clip_grad_norm_(halves.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        record(
            {
                "step": step + 1,
                "steps": recipe.steps,
                "loss": loss.item(),
                "learning_rate": recipe.learning_rate * share(step),
                "grad_norm": norm.item(),
                "captions_found": captions.found(),
                "facts_loss": facts.contrast().item(),
                "scale": halves.scale.exp().item(),
                "tokens": tokens,
                "tokens_per_second": round(tokens / (time.perf_counter() - began), 1),
                "peak_memory_bytes": peak_memory_bytes(),
            }
        )


@torch.no_grad()
def held_out(halves: Halves, recipe: Contrast, steps: int = 8) -> dict[str, float]:
    """Loss, and the share of pictures that find their caption, in steps that training never saw."""
    told = [halves(recipe.batch(step, HELD_OUT_SEED)) for step in range(steps)]
    losses = [((captions.contrast() + facts.contrast()) / 2).item() for captions, facts in told]
    right = [captions.found() for captions, _ in told]
    return {"loss": round(sum(losses) / steps, 4), "captions_found": round(sum(right) / steps, 4)}


def write_encoder(folder: Path, encoder: PictureEncoder) -> None:
    """config.json, preprocessor_config.json and the weights, in float16."""
    config, how = encoder.config, encoder.preparing
    named = {
        name if name.startswith("visual_projection") else f"vision_model.{name}": tensor.detach().half().contiguous()
        for name, tensor in encoder.state_dict().items()
    }
    write_tensors(folder / "model.safetensors", named, metadata={"format": "pt"})
    told = {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": config.kind,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "image_size": config.image,
        "patch_size": config.patch,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
        "projection_dim": config.projection,
        "attention_dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "torch_dtype": "float16",
    }
    write_json(folder / "config.json", told)
    steps = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": how.shortest},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": how.square, "width": how.square},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(how.mean),
        "image_std": list(how.std),
        "do_convert_rgb": True,
    }
    write_json(folder / "preprocessor_config.json", steps)
