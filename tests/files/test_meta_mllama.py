"""Llama 3.2 Vision from Meta's files: what transformers' conversion script makes of the same ones."""

from __future__ import annotations

import hashlib

import meta_mllama_folder
import pytest
import torch
from meta_mllama_folder import PARAMS, state, write

from halter.errors import Refusal
from halter.files.checkpoint import open_checkpoint
from halter.files.meta_mllama import crossing
from halter.files.tensors import bytes_of
from halter.model.mllama_config import MllamaConfig, published
from halter.pretrained.digest import digest_base
from halter.pretrained.load import load_config, load_model
from halter.pretrained.save import save_model

CONVERTED = "00b73b41572c50102b6c9a9874100e087db0ac491597ec26dcf51fafa0ba9516"
"""SHA-256 over all names, shapes and bytes of the ``state_dict`` that ``write_model`` makes of ``state()``, be it in
one file or in two: convert_mllama_weights_to_hf.py of transformers 4.46.3. Run on 2026-11-30, twice, by two hands.

The script did not run as it is published. It ran beside transformers 5.23.0, whose modules it imports, with these
changes, and no line that makes one tensor of another was among them:

- ``vision_dim`` 1280 became 32, and ``vision_num_layers_global`` 8 became 2: constants of the published towers, which
  it does not read from params.json. Its other constants (32 blocks without gates, 16 heads, patches of 14 pixels, the
  five blocks that the text sees, a feed-forward part of 4 times the width, rotary scaling by 8, the factor 1.3 in the
  text's feed-forward part) stayed, and the tiny folder was made to fit them.
- ``get_all_supported_aspect_ratios`` came from image_processing_pil_mllama, as its own module needs torchvision, which
  the tests have not; the script's image processor, that module's too, was never made. Its pairs became lists, because
  transformers 5's configuration refuses tuples.
- It was stopped where it makes its model of the weights, and ``state_dict`` taken there: the model's names are others
  since transformers 4.52. The padding id 128004, beyond the tiny table, makes no difference before that (once it was
  set to None, once not: the same digest). What it would have saved and read again is therefore not compared.

The weights put into transformers' model apart from the script, with its two departures from Meta corrected, gave logits
that differed from those of this reader's by 4e-7 in float32."""


def digest(checkpoint):
    lines = []
    for name in checkpoint.names():
        tensor = checkpoint.read(name)
        lines.append(f"{name} {list(tensor.shape)} {hashlib.sha256(bytes(bytes_of(tensor))).hexdigest()}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("nested", [False, True])
def test_it_is_what_transformers_script_makes_of_it(ranks, nested, tmp_path):
    checkpoint = open_checkpoint(write(tmp_path / "meta", ranks, state(), nested=nested))
    assert digest(checkpoint) == CONVERTED
    for name in checkpoint.names():
        row = checkpoint.read(name)
        assert checkpoint.first_row(name) == bytes(bytes_of(row[0] if row.ndim > 1 else row)[: 16 << 10])
    assert "text_model.rope.freqs" not in checkpoint.names() and not checkpoint.skipped
    checkpoint.close()


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_any_number_of_ranks_is_one(ranks, monkeypatch, tmp_path):
    """One key head a rank, as the published 90B lies on eight. The script was run on one file and on two alone."""
    monkeypatch.setattr(meta_mllama_folder, "HEADS", 8)
    monkeypatch.setattr(meta_mllama_folder, "KV", 8)
    params, whole, found = PARAMS | {"n_heads": 8, "n_kv_heads": 8}, state(), []
    for count in (1, ranks):
        checkpoint = open_checkpoint(write(tmp_path / str(count), count, whole, params))
        found.append(digest(checkpoint))
        checkpoint.close()
    assert found[0] == found[1]


@torch.no_grad()
def test_the_model_of_a_folder_is_loaded_and_saved(tmp_path):
    folder = write(tmp_path / "meta", 2, state())
    shape = load_config(folder)
    assert isinstance(shape, MllamaConfig) and shape.cross_layers == (1, 4) and shape.layers == 6
    assert (shape.vocab_size, shape.table_rows, shape.kv_heads, shape.tapped) == (96, 104, 2, (3, 7, 15, 23, 30))
    assert (shape.vision_layers, shape.vision_global_layers, shape.vision_heads) == (32, 2, 16)
    assert (shape.tile, shape.patch, shape.max_tiles, shape.picture_id) == (28, 14, 4, 128_011)
    assert shape.rope_scaling is not None and shape.rope_scaling.factor == 8
    model = load_model(folder, "float32", device="cpu")
    whole = state()
    assert torch.equal(model.embed_tokens.matrix[96:], whole["text_model.learnable_embedding.weight"])
    grid = whole["vision_model.vision_encoder.pre_tile_pos_embed.embedding"]
    rows = model.layers[shape.layers].pre_tile_table.matrix.unflatten(1, (4, -1))
    assert torch.equal(rows[6], grid[:2, :2].flatten(0, 2)) and not rows[0].any() and not rows[1, 1:].any()
    save_model(model, shape, tmp_path / "hf")
    again = load_model(tmp_path / "hf", "float32", device="cpu")
    tokens = torch.arange(3, 90)[None]
    assert torch.equal(again(tokens), model(tokens))
    ours, metas = digest_base(tmp_path / "hf"), digest_base(folder)
    assert (ours.digest, ours.fingerprint) == (metas.digest, metas.fingerprint)


@pytest.mark.parametrize("name", ["llama-3.2-11b-vision", "llama-3.2-90b-vision"])
def test_blocks_with_cross_attention_stand_where_they_are_published(name):
    shape = published(name)
    crosses = len(shape.cross_layers)
    params = {"n_layers": shape.layers - crosses, "vision_num_cross_attention_layers": crosses}
    assert tuple(crossing(params)) == shape.cross_layers


@pytest.mark.parametrize(
    ("params", "id", "told"),
    [
        ({"vision_chunk_size": 42}, "meta-unsupported", "positions for tiles of 28"),
        ({"vision_num_cross_attention_layers": 5}, "meta-params", "5 blocks with cross-attention beside 4"),
        ({"vision_max_num_chunks": "4"}, "meta-params", "vision_max_num_chunks"),
        ({"quantization_args": {"scheme": "int8"}}, "meta-unsupported", "quantisation"),
    ],
    ids=str,
)
def test_what_is_not_read_is_refused(params, id, told, tmp_path):
    folder = write(tmp_path / "meta", 1, state(), PARAMS | params)
    with pytest.raises(Refusal, match=told) as refused:
        open_checkpoint(folder)
    assert refused.value.id == id and refused.value.fix


def test_a_missing_rank_is_told(tmp_path):
    folder = write(tmp_path / "meta", 2, state())
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(Refusal, match="do not add up"):
        open_checkpoint(folder)


def test_a_text_model_that_speaks_of_pictures_alone_is_refused_as_before(tmp_path):
    folder = write(tmp_path / "meta", 1, state(), {k: v for k, v in PARAMS.items() if "cross" not in k})
    with pytest.raises(Refusal) as refused:
        open_checkpoint(folder)
    assert refused.value.id == "meta-unsupported"
