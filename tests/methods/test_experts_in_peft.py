"""LoRA at routed experts in PEFT's files (target_parameters), both ways, by logits of peft over a Llama 4."""

from __future__ import annotations

import json

import bounds
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from test_experts import CHOICES, MOE, TOKENS, moe, moved

from halter.adapters.adapter import adapt
from halter.adapters.for_peft import for_peft
from halter.adapters.loading import load_adapter
from halter.errors import Refusal

peft = pytest.importorskip("peft")
FACTS = ("halter.json", "manifest.json")


def in_peft(model, folder):
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(tiny.peer(model), folder).eval()(TOKENS).logits


def servable(folder):
    return json.loads((folder / "halter.json").read_text())["servable_by"]


ATTENTION = ("q_proj", "shared_expert.down_proj")
EXPRESSIBLE = [
    {"experts": [0], "alpha_pattern": {"experts.down_proj.0": 9.0}},
    *(choice for choice in CHOICES if "rank_pattern" not in choice),
    {"experts": "all", "target_modules": ATTENTION, "alpha_pattern": {"experts.down_proj": 9.0}, "dropout": 0.1},
    {
        "experts": [1],
        "layers": [2],
        "rank_pattern": {"experts.down_proj": 4},
        "alpha_pattern": {"experts.down_proj": 12.0},
    },
    {
        "target_parameters": ("experts.down_proj",),
        "rank_pattern": {"experts.down_proj.3": 1},
        "alpha_pattern": {"experts.down_proj.3": 3.0},
    },
]


@torch.no_grad()
@pytest.mark.parametrize("options", EXPRESSIBLE, ids=str)
def test_peft_opens_what_it_can_express(options, tmp_path):
    model = moe(torch.float32)
    adapter = moved(model, **options)
    adapter.save(tmp_path / "a")
    assert servable(tmp_path / "a") == ["halter", "peft"]
    want = model(TOKENS, adapter=adapter)
    bounds.assert_same(in_peft(model, tmp_path / "a"), want)
    again = load_adapter(tmp_path / "a", model)
    assert torch.equal(model(TOKENS, adapter=again), want)
    for name in FACTS:  # as PEFT's own folder
        (tmp_path / "a" / name).unlink()
    bounds.assert_same(model(TOKENS, adapter=load_adapter(tmp_path / "a", model)), want)


@torch.no_grad()
@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_starts_at_the_weights_are_plain_pairs_there(name, tmp_path):
    model = moe(torch.float32)
    adapter = moved(model, name, r=2, experts=[0, 2], target_modules=("q_proj",))
    adapter.save(tmp_path / "a")
    bounds.assert_same(in_peft(model, tmp_path / "a"), model(TOKENS, adapter=adapter))


@torch.no_grad()
def test_unequal_strengths_have_a_nearest_form_and_others_none(tmp_path):
    model = moe(torch.float32)
    adapter = moved(model, **CHOICES[1])
    adapter.save(tmp_path / "own")
    assert servable(tmp_path / "own") == ["halter"]
    near, lost = for_peft(adapter)
    assert lost == ["routed experts of several strengths get one: B is multiplied, and rounded once"]
    near.save(tmp_path / "near")
    bounds.assert_same(in_peft(model, tmp_path / "near"), model(TOKENS, adapter=adapter))
    for name in ("dora", "ia3", "loha", "lokr", "vera"):
        other = adapt(model, name, experts="all")
        with pytest.raises(Refusal, match="no-peft-form"):
            for_peft(other)
        other.save(tmp_path / name)
        assert servable(tmp_path / name) == ["halter"]


BOTH = ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]
THEIRS = [
    {"target_parameters": BOTH, "target_modules": []},
    {"target_parameters": BOTH, "target_modules": ["q_proj", "shared_expert.up_proj"], "rank_pattern": {"q_proj": 3}},
    {
        "target_parameters": BOTH[1:],
        "target_modules": [],
        "use_rslora": True,
        "alpha_pattern": {"experts.down_proj": 2},
    },
    {"target_parameters": [f"model.layers.2.{BOTH[0]}"], "target_modules": []},
]


@torch.no_grad()
@pytest.mark.parametrize("options", THEIRS, ids=str)
@pytest.mark.parametrize("before", [False, True])  # the layout of before A and B changed sides
def test_what_peft_saves_is_read_and_written_again(options, before, tmp_path):
    model = moe(torch.float32)
    theirs = peft.get_peft_model(tiny.peer(model), peft.LoraConfig(r=2, lora_alpha=6, **options)).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    want = theirs(TOKENS).logits
    assert float((want - model(TOKENS)).abs().max()) > 1e-2
    theirs.save_pretrained(tmp_path / "theirs")
    if before:
        turn_round(tmp_path / "theirs" / "adapter_model.safetensors")
    adapter = load_adapter(tmp_path / "theirs", model)
    bounds.assert_same(model(TOKENS, adapter=adapter), want)
    adapter.save(tmp_path / "ours")
    bounds.assert_same(in_peft(model, tmp_path / "ours"), want)


def turn_round(file):
    """A [experts * r, in] and B [out, r * experts] of the same updates."""
    stored = load_file(file)
    for name in [name for name in stored if "experts" in name and "shared_expert" not in name and "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        a, b = stored[name].unflatten(0, (4, -1)), stored[other].unflatten(1, (-1, 4))  # [E, r, out], [in, r, E]
        stored[name] = b.permute(2, 1, 0).flatten(0, 1).contiguous()
        stored[other] = a.permute(2, 1, 0).flatten(1).contiguous()
    save_file(stored, file)


def test_tensors_of_other_sizes_are_named(tmp_path):
    model = moe(torch.float32)
    moved(model, experts="all").save(tmp_path / "a")
    for name in FACTS:
        (tmp_path / "a" / name).unlink()
    other = tiny.decoder(tiny.config(**(MOE | {"experts": 3})))
    with pytest.raises(Refusal) as caught:
        load_adapter(tmp_path / "a", other)
    assert caught.value.id == "adapter-mismatch" and any("experts" in line for line in caught.value.found)
