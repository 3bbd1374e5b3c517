"""The encoder of pictures that comes with the package: what its folder holds, and what its states tell of drawings that
it never saw."""

from __future__ import annotations

import pytest
import torch

from halter.encoders.encoder import PictureEncoder
from halter.encoders.features import FeatureKind
from halter.encoders.load import load_encoder
from halter.playground import encoder_folder, sights
from halter.playground.words import Dice

FOLDER = encoder_folder()


@pytest.fixture(scope="module")
def encoder() -> PictureEncoder:
    return load_encoder(FOLDER)


def drawn(count: int) -> list[torch.Tensor]:
    return [torch.from_numpy(sights.drawing(Dice("shown", at)).draw()).permute(2, 0, 1) for at in range(count)]


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


def test_what_is_true_lies_near_the_class_token(encoder: PictureEncoder) -> None:
    """An empty picture's features are not a full one's, and one drawing's are the same alone and among others."""
    ready = torch.stack([encoder.prepare(one) for one in drawn(3)])
    kind = FeatureKind((-4, -3, -2, -1), "class")
    together, alone = kind.of(encoder, ready), kind.of(encoder, ready[:1])
    assert together.shape == (3, 1, 4 * encoder.config.dim)
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1
