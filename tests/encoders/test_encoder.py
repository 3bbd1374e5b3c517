"""Encoders of pictures beside transformers' own: every layer's states, what they make of a whole picture, pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
import seeing
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from halter.encoders.config import EncoderConfig, Preparing
from halter.encoders.encoder import PictureEncoder
from halter.encoders.load import load_encoder
from halter.errors import Refusal

SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"image_size": 16, "patch_size": 4}


def widened(model, seed=0):
    """Every number drawn, so that no norm, bias or class token is too small to be seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.5 if tensor.dim() == 1 else 0.2))
            if "norm" in name and name.endswith("weight"):
                tensor.add_(1)
    return model.eval()


def clip(**changes):
    return widened(CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZES | changes, projection_dim=12)))


def siglip(**changes):
    return widened(SiglipVisionModel(SiglipVisionConfig(**SIZES | changes)))


def kept(model, folder):
    model.save_pretrained(folder)
    return folder


def pixels(count, side, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(
    make=st.sampled_from([clip, siglip]),
    heads=st.sampled_from([1, 2, 4]),
    width=st.sampled_from([4, 12]),
    layers=st.integers(1, 4),
    patch=st.sampled_from([3, 4, 8]),
    act=st.sampled_from(["quick_gelu", "gelu", "gelu_pytorch_tanh"]),
    count=st.integers(1, 3),
)
def test_every_layer_is_transformers_own(tmp_path_factory, make, heads, width, layers, patch, act, count) -> None:
    sizes = {"hidden_size": heads * width, "num_attention_heads": heads, "num_hidden_layers": layers}
    theirs = make(**sizes, patch_size=patch, image_size=17, hidden_act=act)
    ours = load_encoder(kept(theirs, tmp_path_factory.mktemp("encoder")))
    seen = pixels(count, 17)
    with torch.no_grad():
        wanted = theirs(seen, output_hidden_states=True)
    found = ours.states(seen, range(layers + 1))
    for one, other in zip(found, wanted.hidden_states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    whole = wanted.image_embeds if make is clip else wanted.pooler_output
    torch.testing.assert_close(ours.whole(found[-1]), whole, rtol=1e-4, atol=1e-4)
    if make is siglip:
        torch.testing.assert_close(ours.finished(found[-1]), wanted.last_hidden_state, rtol=1e-4, atol=1e-4)


def test_all_tokens_in_the_shared_space_are_those_of_the_parts_of_transformers(tmp_path) -> None:
    """What LLaMA-Adapter V2's released code takes: every token behind the last norm, projected."""
    theirs = clip()
    ours = load_encoder(kept(theirs, tmp_path / "clip"))
    seen = pixels(2, 16)
    with torch.no_grad():
        last = theirs(seen, output_hidden_states=True).hidden_states[-1]
        parts = dict(theirs.named_modules())
        norm = next(part for name, part in parts.items() if name.endswith("post_layernorm"))
        wanted = theirs.visual_projection(norm(last))
    found = ours.projected(ours.finished(ours.states(seen)[0]))
    assert found.shape == (2, 17, 12)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_whole_clip_is_read_for_its_pictures_alone(tmp_path) -> None:
    text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = CLIPConfig(text_config={**text, "vocab_size": 20}, vision_config=dict(SIZES), projection_dim=12)
    theirs = widened(CLIPModel(shape))
    ours = load_encoder(kept(theirs, tmp_path / "whole"))
    seen = pixels(2, 16)
    with torch.no_grad():
        wanted = theirs.get_image_features(seen)
    wanted = getattr(wanted, "pooler_output", wanted)
    torch.testing.assert_close(ours.whole(ours.states(seen)[0]), wanted, rtol=1e-4, atol=1e-4)


def test_a_whole_clip_without_its_projection_is_damaged(tmp_path) -> None:
    text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = CLIPConfig(text_config={**text, "vocab_size": 20}, vision_config=dict(SIZES), projection_dim=12)
    folder = kept(CLIPModel(shape), tmp_path / "whole")
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "visual_projection" not in k}, folder / "model.safetensors")
    with pytest.raises(Refusal, match="visual_projection.weight is missing"):
        load_encoder(folder)


def test_without_a_projection_the_states_are_as_they_are(tmp_path) -> None:
    theirs = widened(CLIPVisionModel(CLIPVisionConfig(**SIZES)))
    ours = load_encoder(kept(theirs, tmp_path / "bare"))
    seen = pixels(1, 16)
    with torch.no_grad():
        wanted = theirs(seen).pooler_output
    torch.testing.assert_close(ours.whole(ours.states(seen)[0]), wanted, rtol=1e-4, atol=1e-4)
    assert ours.config.projection == 0


def test_nothing_is_trained_and_other_dtypes_are_computed_in(tmp_path) -> None:
    ours = load_encoder(kept(clip(), tmp_path / "clip"), torch.bfloat16)
    (last,) = ours.states(pixels(1, 16))
    assert last.dtype == torch.bfloat16 and not last.requires_grad
    assert not any(tensor.requires_grad for tensor in ours.parameters())


@pytest.mark.parametrize("height, width", [(16, 16), (40, 30), (9, 57), (7, 5), (64, 64), (33, 100)])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_pixels_are_prepared_as_by_pillow(kind, height, width) -> None:
    """Resizing rounds to whole levels, on some processors otherwise than Pillow does: one level of 255 at most."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    theirs = (CLIPImageProcessorPil if kind == "clip" else SiglipImageProcessorPil)(
        size={"shortest_edge": 16} if kind == "clip" else {"height": 16, "width": 16},
        **({"crop_size": {"height": 16, "width": 16}} if kind == "clip" else {}),
    )
    config = EncoderConfig(image=16, patch=4, kind=f"{kind}_vision_model", dim=8, heads=2, layers=1, ffn_dim=8)
    ours = PictureEncoder(config, Preparing.from_hf(theirs.to_dict(), config, "here"))
    found = ours.prepare(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    wanted = torch.as_tensor(np.array(theirs(image, return_tensors="np")["pixel_values"][0]))
    step = 1 / (255 * torch.tensor(ours.preparing.std).min())
    assert found.shape == (3, 16, 16) and float((found - wanted).abs().max()) <= float(step) * (1 + 1e-4)
    assert float((found - wanted).abs().mean()) <= 0.1 * float(step)


def test_where_nothing_is_said_of_pixels_the_familys_own_counts() -> None:
    shape = EncoderConfig(image=16, patch=4)
    assert Preparing.from_hf(None, shape, "") == Preparing(16, 16)
    shape = EncoderConfig("siglip_vision_model", image=16, patch=4)
    assert Preparing.from_hf(None, shape, "") == Preparing(0, 16, True, (0.5,) * 3, (0.5,) * 3)


def test_what_is_wrong_with_the_files_is_named_at_once(tmp_path) -> None:
    folder = kept(clip(), tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    gone, bent, *_ = sorted(name for name in tensors if "fc1" in name)
    del tensors[gone]
    tensors[bent] = torch.zeros(3)
    save_file({**tensors, "vision_model.more": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(Refusal) as refused:
        load_encoder(folder)
    assert refused.value.id == "checkpoint-mismatch" and len(refused.value.found) == 3
    for word in (gone.removeprefix("vision_model."), bent.removeprefix("vision_model."), "more is not expected"):
        assert any(word in line for line in refused.value.found)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "vit"},
        {"hidden_act": "relu"},
        {"num_attention_heads": 5},
        {"hidden_size": 0},
        {"image_size": 2},
        {"num_channels": 1},
        {"layer_norm_eps": "small"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_other_shapes_are_refused(tmp_path, changes) -> None:
    folder = kept(clip(), tmp_path / "clip")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | changes))
    with pytest.raises(Refusal) as refused:
        load_encoder(folder)
    assert refused.value.id == "encoder-unsupported" and len(refused.value.found) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"resample": 1},
        {"crop_size": 14},
        {"size": {"shortest_edge": 12}},
        {"size": "big"},
        {"image_std": [1, 0, 1]},
        {"do_resize": False},
        {"do_center_crop": False},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1.0},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_other_ways_to_prepare_are_refused(changes) -> None:
    shape = EncoderConfig(image=16, patch=4)
    with pytest.raises(Refusal, match="encoder-unsupported"):
        Preparing.from_hf({"size": {"shortest_edge": 16}, "crop_size": 16, **changes}, shape, "here")


def test_states_that_there_are_not_are_refused(tmp_path) -> None:
    ours = load_encoder(kept(clip(), tmp_path / "clip"))
    with pytest.raises(Refusal) as refused:
        ours.states(pixels(1, 16), (0, 4, -5))
    assert refused.value.id == "encoder-layer" and refused.value.found == ("4", "-5")


def test_a_drawn_picture_goes_all_the_way(tmp_path) -> None:
    ours = load_encoder(kept(clip(), tmp_path / "clip"))
    seen = torch.from_numpy(seeing.pixels(3, 40, 20)).permute(2, 0, 1)
    (last,) = ours.states(ours.prepare(seen)[None])
    assert last.shape == (1, 17, 24) and bool(last.isfinite().all())
