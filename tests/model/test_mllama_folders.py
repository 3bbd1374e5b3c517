"""Llama 3.2 Vision as folders: transformers' and ours, adapters, few bits, sizes, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import bounds
import pytest
import torch
from safetensors.torch import load_file, save_file
from seeing_mllama import config as tiny_config
from seeing_mllama import correct, in_memory, logits, made, packed, peer, row_of, seen_by_theirs
from test_mllama import CONFIG, ROWS, moved, same
from transformers import BitsAndBytesConfig, MllamaForConditionalGeneration

from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.contract.registry import find, names
from halter.errors import Refusal
from halter.export.merge import merge
from halter.methods.lora import Lora
from halter.model.decoder import Decoder
from halter.model.families import read_config
from halter.model.layout import LINEAR
from halter.model.linear import Linear
from halter.model.mllama_config import TEXT_DEFAULTS, VISION_DEFAULTS, MllamaConfig, published
from halter.model.passes import Pass
from halter.planning.dry import base_bytes, dry_adapter, dry_base
from halter.planning.trace import training_pass
from halter.pretrained.digest import digest_model
from halter.pretrained.load import load_config, load_model
from halter.pretrained.save import save_model


@torch.no_grad()
def theirs_of(folder, row):
    other = MllamaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    return correct(other)(**seen_by_theirs(CONFIG, row, torch.float32)).logits[0]


@torch.no_grad()
def test_saved_it_is_transformers_and_read_it_is_itself(tmp_path):
    model = made(dtype=torch.float32)
    save_model(model, CONFIG, tmp_path / "a")
    assert load_config(tmp_path / "a") == CONFIG
    read = load_model(tmp_path / "a", "float32", device="cpu")
    assert all(torch.equal(*pair) for pair in zip(logits(model, ROWS), logits(read, ROWS), strict=True))
    for row, got in zip(ROWS, logits(read, ROWS), strict=True):
        bounds.assert_same(got, theirs_of(tmp_path / "a", row))
    whole = MllamaForConditionalGeneration.from_pretrained(tmp_path / "a")
    whole.save_pretrained(tmp_path / "b")
    assert load_config(tmp_path / "b") == replace(CONFIG, pad_token_id=load_config(tmp_path / "b").pad_token_id)
    again = load_model(tmp_path / "b", "float32", device="cpu")
    assert digest_model(again) == digest_model(model)


@torch.no_grad()
def test_names_as_transformers_has_them_in_memory_are_read(tmp_path):
    model = made(dtype=torch.float32)
    save_model(model, CONFIG, tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    stored = load_file(file)
    assert "language_model.model.layers.1.cross_attn_attn_gate" in stored and "multi_modal_projector.bias" in stored
    renamed = {in_memory(name): tensor for name, tensor in stored.items()}
    assert not set(renamed) & set(stored)
    save_file(renamed, file)
    assert digest_model(load_model(tmp_path / "a", "float32", device="cpu")) == digest_model(model)
    save_file(renamed | {"language_model.model.norm.weight": stored["language_model.model.norm.weight"] + 0}, file)
    with pytest.raises(Refusal, match="stand here twice"):
        load_model(tmp_path / "a", device="cpu")


@torch.no_grad()
def test_a_merged_adapter_is_in_the_folder_that_transformers_opens(tmp_path):
    save_model(made(dtype=torch.float32), CONFIG, tmp_path / "base")
    base = load_model(tmp_path / "base", "float32", device="cpu")
    adapter = moved(base)
    merge(base, adapter, tmp_path / "merged")
    merged = load_model(tmp_path / "merged", "float32", device="cpu")
    for row, got, want in zip(ROWS, logits(merged, ROWS), logits(base, ROWS, adapter), strict=True):
        bounds.assert_same(got, want)
        bounds.assert_same(got, theirs_of(tmp_path / "merged", row))


@torch.no_grad()
def test_every_weight_trained_and_merged(tmp_path):
    """Gates, positions, norms with their biases: what full fine-tuning trains of the parts beside the text."""
    save_model(made(dtype=torch.float32), CONFIG, tmp_path / "base")
    base = load_model(tmp_path / "base", "float32", device="cpu")
    adapter = moved(base, method="full", target_modules=["vision", "cross", "projector"])
    merge(base, adapter, tmp_path / "merged")
    merged = load_model(tmp_path / "merged", "float32", device="cpu")
    same(logits(merged, ROWS), logits(base, ROWS, adapter), 1e-4, 1e-5)
    assert float((logits(merged, ROWS)[0] - logits(base, ROWS)[0]).abs().max()) > 1e-2


@torch.no_grad()
def test_an_adapter_is_saved_and_read(tmp_path):
    model = made()
    adapter = moved(model)
    adapter.save(tmp_path / "a")
    again = load_adapter(tmp_path / "a", model)
    assert all(torch.equal(*pair) for pair in zip(logits(model, ROWS, adapter), logits(model, ROWS, again)))


@torch.no_grad()
@pytest.mark.parametrize("targets", ["all-linear", "cross", r"vision_model\..*\.fc1"])
def test_peft_reads_what_is_saved_over_transformers_model(targets, tmp_path):
    """Its modules have other names in memory than in the published files; an adapter's folder has those in memory."""
    peft, model = pytest.importorskip("peft"), made(dtype=torch.float32)
    adapter = moved(model, target_modules=targets)
    adapter.save(tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(peer(model), tmp_path / "a").eval()
    for row, got in zip(ROWS, logits(model, ROWS, adapter), strict=True):
        bounds.assert_same(got, theirs(**seen_by_theirs(CONFIG, row, torch.float32)).logits[0])
    again = load_adapter(tmp_path / "a", model)
    assert all(torch.equal(*pair) for pair in zip(logits(model, ROWS, adapter), logits(model, ROWS, again)))


@torch.no_grad()
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "multi_modal_projector"], r".*vision_model.*\.fc1"])
def test_what_peft_saved_over_transformers_model_is_read(targets, tmp_path):
    peft, model = pytest.importorskip("peft"), made(dtype=torch.float32)
    rule = peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets, rank_pattern={"o_proj": 3})
    theirs = peft.get_peft_model(peer(model), rule).eval()
    for number, (name, parameter) in enumerate(theirs.named_parameters()):
        if "lora_" in name:
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    theirs.save_pretrained(tmp_path / "a")
    adapter = load_adapter(tmp_path / "a", model)
    for row, got in zip(ROWS, logits(model, ROWS, adapter), strict=True):
        bounds.assert_same(got, theirs(**seen_by_theirs(CONFIG, row, torch.float32)).logits[0])


@pytest.mark.parametrize("group", ["language", "cross", "projector", "vision"])
def test_a_part_of_the_model_is_adapted_by_its_name(group, tmp_path):
    model = made(dtype=torch.float32)
    adapter = moved(model, target_modules=group)
    lead = {"language": "language_model.", "cross": "language_model.", "vision": "vision_model.", "projector": "multi"}
    paths = [slot.path for slot in adapter.slots]
    assert paths == [place.path for place in CONFIG.layout.of(LINEAR) if place.group == group] and paths
    assert all(path.startswith(lead[group]) and ("cross_attn" in path) <= (group == "cross") for path in paths)
    adapter.save(tmp_path / "a")
    told = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    assert told == [in_memory(path) for path in paths]  # PEFT knows no groups
    with torch.no_grad():
        again = load_adapter(tmp_path / "a", model)
        same(logits(model, ROWS, again), logits(model, ROWS, adapter))
    crossing = moved(model, target_modules=["language_model.model.layers.3.cross_attn.q_proj", "fc1"])
    assert {slot.at.group for slot in crossing.slots} == {"cross", "vision"}


EVERYWHERE = {"language", "cross", "vision", "projector"}
ACTS_ON = {
    **dict.fromkeys(("bitfit", "dora", "full", "loha", "lokr", "lora", "olora", "pissa", "vera"), EVERYWHERE),
    **dict.fromkeys(("ia3", "norm_tuning"), EVERYWHERE - {"projector"}),
    **dict.fromkeys(("bottleneck", "llama_adapter_v2"), {"language", "cross"}),
    **dict.fromkeys(("excitor", "p_tuning", "prompt_tuning", "token_rows"), {"language"}),
}
"""{method: parts of the model in which it acts by default}. llama_adapter, loreft and prefix_tuning refuse: a block
with cross-attention has no place of theirs."""


@pytest.mark.parametrize("name", names())
def test_every_method_acts_or_says_where_it_cannot(name):
    model = made(dtype=torch.float32)
    try:
        adapter = adapt(model, name)
    except Refusal as refusal:
        if find(name)().equipped().looks:  # it brings a sight, and this model has one
            assert refusal.id == "sees-already" and name not in ACTS_ON
            return
        assert refusal.id == "no-such-place" and refusal.found and f"{name} acts" in str(refusal)
        assert name not in ACTS_ON
        return
    with torch.no_grad():
        got = logits(model, ROWS, adapter)
        if adapter.methods[0].starts_as_base:
            for one, other in zip(got, logits(model, ROWS), strict=True):
                bounds.assert_same(one, other)
    assert ACTS_ON[name] == {slot.at.group for slot in adapter.slots}


@torch.no_grad()
@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_in_few_bits_linear_layers_are_quantised_and_nothing_else(how, tmp_path):
    save_model(made(dtype=torch.float32), CONFIG, tmp_path / "base")
    small = load_model(tmp_path / "base", "float32", how, "cpu")
    held = {place.path for place, module in small.places() if isinstance(module, Linear) and module.storage == how}
    assert held == {place.path for place in CONFIG.layout.of(LINEAR)}
    assert base_bytes(small) == base_bytes(dry_base(CONFIG, torch.float32, how))
    plain = Decoder(CONFIG, torch.float32)
    for place, module in small.places():
        plain.set_tensor(place.weight_name, module.weight().clone())
        if place.bias:
            plain.set_tensor(f"{place.path}.bias", module.bias.clone())
    same(logits(small, ROWS), logits(plain, ROWS), 1e-4, 1e-4)
    assert all(part.isfinite().all() for part in logits(small, ROWS, moved(small)))


@torch.no_grad()
def test_what_transformers_quantises_with_bitsandbytes_is_read(tmp_path):
    pytest.importorskip("bitsandbytes")
    shape = tiny_config(dim=64, ffn_dim=64, head_dim=16, vision_dim=64, vision_ffn_dim=64)
    save_model(made(shape, torch.float32), shape, tmp_path / "16")
    rule = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    how = {"quantization_config": rule, "device_map": "cpu"}
    MllamaForConditionalGeneration.from_pretrained(tmp_path / "16", **how).save_pretrained(tmp_path / "4")
    read = load_model(tmp_path / "4", "float32", device="cpu")
    own = load_model(tmp_path / "16", "float32", "nf4", "cpu", double_quant=False)
    for (place, one), (_, other) in zip(read.places(), own.places(), strict=True):
        if place.kind == LINEAR:
            torch.testing.assert_close(one.weight(), other.weight(), rtol=1e-6, atol=1e-7)


# Sizes


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llama-3.2-11b-vision", 10_642_941_475),
        ("llama-3.2-11b-vision-instruct", 10_670_220_835),
        ("llama-3.2-90b-vision", 88_593_355_323),
        ("llama-3.2-90b-vision-instruct", 88_593_355_323),
    ],
)
def test_the_published_sizes_have_their_parameters(name, count):
    shape = published(name)
    assert shape.num_parameters == count and read_config(shape.to_hf()) == shape
    assert base_bytes(dry_base(shape, torch.bfloat16, None)).total == 2 * count
    assert shape.vision_width == 7680 and shape.table_rows == 128264
    assert (shape.tile_tokens, shape.padded_tokens) == {448: (1025, 1032), 560: (1601, 1608)}[shape.tile]
    kinds = [bool(set(part.acts._fields) & {"attn_gate"}) for part in shape.layout.blocks[: shape.layers]]
    assert [i for i, cross in enumerate(kinds) if cross] == [*shape.cross_layers]
    assert shape.cross_layers[:3] == (3, 8, 13) and len(shape.cross_layers) == {40: 8, 100: 20}[shape.layers]
    with pytest.raises(Refusal, match="llama-3.2-11b-vision"):
        published("llama-3.2-13b-vision")


def test_the_plan_runs_it_without_memory():
    assert dry_adapter(CONFIG, [Lora(r=2)]).num_trainable == moved(made()).num_trainable
    base, adapter = dry_base(CONFIG, torch.float32, None), dry_adapter(CONFIG, [Lora(r=2)])
    small, large = (training_pass(base, adapter, 2, length, False) for length in (8, 32))
    assert 0 < small.operations < large.operations and small.total < large.total


@torch.no_grad()
def test_a_picture_is_fed_and_never_produced():
    model = made()
    segments = packed(ROWS[:1])
    assert model.head(model.hidden(Pass(ROWS[0][0], segments))).shape[1] == 96
    assert model(torch.tensor([[96, 103]])).shape == (1, 2, 96)
    with pytest.raises(Refusal, match="no such tokens"):
        model(torch.tensor([[104]]))


# config.json

STRANGE = (None, -1, 0, 1.5, "x", True, [], {}, [1], [None], 10**5000, [[[]]], {"a": 1})


@pytest.mark.parametrize("key", ["text_config", "vision_config", "image_token_index", "halter_as_transformers"])
def test_whatever_a_config_says_it_is_read_or_refused(key):
    for value in STRANGE:
        read_or_refused(CONFIG.to_hf() | {key: value})


@pytest.mark.parametrize("half", ["text_config", "vision_config"])
def test_whatever_a_half_of_it_says_it_is_read_or_refused(half):
    stored = CONFIG.to_hf()
    for key in TEXT_DEFAULTS if half == "text_config" else (*VISION_DEFAULTS, "supported_aspect_ratios", "hidden_act"):
        for value in STRANGE:
            read_or_refused(stored | {half: stored[half] | {key: value}})


def read_or_refused(stored):
    try:
        shape = read_config(stored)
    except Refusal as refusal:
        assert refusal.id == "model-unsupported" and refusal.found and refusal.fix
    else:
        blocks = shape.layers + shape.vision_layers + shape.vision_global_layers + 3
        assert len(shape.layout.blocks) == blocks and shape.pictures.max_tiles == shape.max_tiles


@pytest.mark.parametrize(
    ("text", "vision", "outer", "told"),
    [
        ({"cross_attention_layers": [9]}, {}, {}, ["cross_attention_layers [9]"]),
        ({"tie_word_embeddings": True}, {}, {}, ["tie_word_embeddings"]),
        ({"hidden_act": "gelu"}, {"hidden_act": "relu"}, {}, ["hidden_act 'gelu'", "vision_config.hidden_act 'relu'"]),
        ({}, {"vision_output_dim": 7}, {}, ["vision_output_dim 7, not 48"]),
        ({}, {"supported_aspect_ratios": [[1, 1]]}, {}, ["supported_aspect_ratios"]),
        ({}, {"intermediate_layers_indices": [3]}, {}, ["intermediate_layers_indices [3]"]),
        ({}, {"attention_heads": 3}, {}, ["hidden_size 16 over 3 heads"]),
        ({"head_dim": 4}, {"image_size": 7}, {}, ["head_dim 4", "tiles of 7 pixels in patches of 14"]),
        ({}, {}, {"quantization_config": {"quant_method": "fp8"}}, ["weights stored as 'fp8'"]),
    ],
    ids=str,
)
def test_what_is_not_done_is_refused_with_all_that_is_wrong(text, vision, outer, told):
    stored = CONFIG.to_hf() | outer
    stored |= {"text_config": stored["text_config"] | text, "vision_config": stored["vision_config"] | vision}
    with pytest.raises(Refusal) as refused:
        read_config(stored, "here")
    assert refused.value.id == "model-unsupported" and refused.value.fix
    for part in told:
        assert any(part in one for one in refused.value.found), refused.value.found


def test_a_config_that_says_little_means_what_it_means_to_transformers():
    from transformers import MllamaConfig as TheirConfig

    for said in ({}, {"text_config": {"num_hidden_layers": 40}, "vision_config": {"image_size": 560}}):
        full = TheirConfig(**said).to_dict()
        assert read_config({"model_type": "mllama"} | said) == replace(read_config(full), dtype="float32")
    assert read_config(tiny_config(as_transformers=True).to_hf()).as_transformers
    assert isinstance(read_config({"model_type": "mllama"}), MllamaConfig)
    assert row_of(CONFIG, 4, [], 0)[1] == ()
