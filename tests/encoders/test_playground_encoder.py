"""The encoder of pictures that comes with the package: what its folder holds, and what its states tell of drawings that
it never saw."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from halter.encoders.encoder import PictureEncoder
from halter.encoders.features import FeatureKind
from halter.encoders.load import load_encoder
from halter.files.tensors import read_tensors
from halter.playground import encoder_folder, sights
from halter.playground.papers import paper
from halter.playground.words import Dice
from halter.pretraining import probes
from halter.pretraining.contrast import Contrast

FOLDER = encoder_folder()
FIGURES: dict[str, Any] = json.loads((FOLDER / "figures.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def encoder() -> PictureEncoder:
    return load_encoder(FOLDER)


def drawn(count: int) -> list[torch.Tensor]:
    """uint8 [3, side, side]: drawings of 32, and every third a paper of 256."""
    made = [paper(dice) if at % 3 == 2 else sights.drawing(dice) for at in range(count) for dice in [Dice("shown", at)]]
    return [torch.from_numpy(one.draw()).permute(2, 0, 1) for one in made]


def test_the_folder_is_small_and_is_what_the_recipe_makes(encoder: PictureEncoder) -> None:
    recipe = Contrast()
    assert encoder.config == recipe.config and encoder.preparing == recipe.preparing
    tensors = dict(read_tensors(FOLDER / "model.safetensors"))
    assert sum(one.numel() for one in tensors.values()) == FIGURES["parameters"]
    assert {one.dtype for one in tensors.values()} == {torch.float16}
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 2_500_000
    assert (FIGURES["steps"], FIGURES["pictures"]) == (recipe.steps, recipe.steps * recipe.pictures_per_step)
    named = {file.name for file in FOLDER.iterdir()}
    assert named == {"README.md", "config.json", "figures.json", "model.safetensors", "preprocessor_config.json"}


@torch.no_grad()
def test_transformers_reads_the_same_encoder(encoder: PictureEncoder) -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.CLIPVisionModelWithProjection.from_pretrained(FOLDER, dtype=torch.float32).eval()
    ready = torch.stack([encoder.prepare(one) for one in drawn(6)])
    wanted = peer(ready, output_hidden_states=True)
    found = encoder.states(ready, range(encoder.config.layers + 1))
    for one, other in zip(found, wanted.hidden_states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.whole(found[-1]), wanted.image_embeds, rtol=1e-4, atol=1e-4)


def test_transformers_prepares_the_same_pixels(encoder: PictureEncoder) -> None:
    """But for a level or two: Pillow rounds to whole levels between across and down."""
    transformers = pytest.importorskip("transformers")
    processor = transformers.CLIPImageProcessorPil.from_pretrained(FOLDER)
    for one in drawn(4):
        wanted = torch.as_tensor(processor(one.permute(1, 2, 0).numpy(), return_tensors="np")["pixel_values"][0])
        assert (encoder.prepare(one) - wanted).abs().max() <= 2.01 / 255 / 0.5


LEAST = {
    ("patches", "colour"): (0.95, 0.95),
    ("patches", "shape"): (0.9, 0.6),
    ("patches", "tens"): (0.95, 0.8),
    ("patches", "ones"): (0.95, 0.8),
    ("patches", "fields"): (0.65, 0.35),
    ("class", "colour"): (0.95, 0.9),
    ("class", "shape"): (0.75, 0.55),
    ("class", "tens"): (0.8, 0.35),
    ("class", "ones"): (0.8, 0.35),
    ("class", "tick"): (0.98, 0.95),
}
"""{(features, what is asked): the least share of right answers in the figures, whose probes learned from 4,000
pictures, and here, where they learn from 400 and are asked about 200}."""


def test_figures_are_what_was_promised_and_a_quick_probe_finds_them(encoder: PictureEncoder) -> None:
    found, told = probes.measure(encoder, 400, 200, "quick"), FIGURES["probes"]
    for (kind, what), (least, quick) in LEAST.items():
        assert told[kind][what] >= least, (kind, what)
        assert quick <= found[kind][what] <= told[kind][what] + 0.02, (kind, what, found[kind][what])


def test_what_is_true_lies_near_the_class_token(encoder: PictureEncoder) -> None:
    """An empty picture's features are not a full one's, and one drawing's are the same alone and among others."""
    ready = torch.stack([encoder.prepare(one) for one in drawn(3)])
    kind = FeatureKind((-4, -3, -2, -1), "class")
    together, alone = kind.of(encoder, ready), kind.of(encoder, ready[:1])
    assert together.shape == (3, 1, 4 * encoder.config.dim)
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1
