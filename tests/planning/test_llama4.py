"""Llama 4 by name: counts against the published totals and against shapes written out by hand; what a plan says of it.

The totals are those of the published tensors (shared facts on the lineage, section 1)."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from halter.errors import Refusal
from halter.methods.lora import Lora
from halter.model import families
from halter.planning import dry, fit, forecast, speed, survey
from halter.planning.setting import Setting, of_pictures, shape_of
from halter.planning.text import as_text
from halter.pretrained.load import located
from halter.run import planned

PUBLISHED = {
    "llama-4-scout": (108_641_793_536, 107_769_861_120, 17_172_894_720),
    "llama-4-maverick": (401_583_781_376, 400_711_848_960, 17_184_691_200),
}
"""{shape: parameters in all, of the text part, of it at work for a token}."""
SCOUT, MAVERICK = PUBLISHED
TOWER = 850_960_896 + 20_971_520
TOWERS_LINEAR = 3 * 196 * 1408 + 34 * (4 * 1408**2 + 2 * 1408 * 5632) + 4 * 1408 * 4096 + 4096**2 + 4096 * 5120
ROUTED = {SCOUT: 48 * 16 * 3 * 5120 * 8192, MAVERICK: 24 * 128 * 3 * 5120 * 8192}
OTHERS = {
    SCOUT: 48 * (2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 8192),
    MAVERICK: 48 * (2 * 5120 * 5120 + 2 * 5120 * 1024) + 24 * 3 * 5120 * 8192 + 24 * 3 * 5120 * 16384,
}
"""Numbers of the linear layers that are no routers."""


def tower(dim: int = 1408, layers: int = 34, ffn: int = 5632, patch: int = 14, image: int = 336) -> int:
    """Biases, class token, places, both norms, pixel shuffle's two layers and the projector."""
    tokens = (image // patch) ** 2 + 1
    layer = 4 * (dim * dim + dim) + 2 * dim * ffn + ffn + dim + 4 * dim
    outside = 3 * patch * patch * dim + dim + tokens * dim + 4 * dim
    return outside + layers * layer + 4 * dim * 4096 + 4096 * 4096 + 4096 * 5120


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    whole, text, active = PUBLISHED[name]
    shape = families.published(name)
    assert (shape.num_parameters, shape.active_parameters) == (whole, active)
    assert TOWER == tower() and text + TOWER == whole
    assert replace(shape, tower=None).num_parameters == text
    assert "tower of pictures is counted" in of_pictures(shape)
    assert round(whole / 1e9) in (109, 402) and round(active / 1e9) == 17  # "109B", "400B", "17B"
    dense = families.published("llama-3.1-8b")
    assert dense.active_parameters == dense.num_parameters and not of_pictures(dense)


@pytest.mark.parametrize("name", PUBLISHED)
def test_bytes_are_those_of_a_hand(name: str) -> None:
    """Whether routed experts are in few bits is the layout's to say; each way is counted here."""
    shape = families.published(name)
    few = {place.name for place in shape.layout.in_few_bits()}
    assert "router" not in few
    held = {how: dry.base_bytes(dry.dry_base(shape, torch.bfloat16, how)).total for how in fit.HELD}
    assert held[None] == 2 * shape.num_parameters
    quantised = OTHERS[name] + TOWERS_LINEAR + (ROUTED[name] if "experts_in" in few else 0)
    rest = 2 * (shape.num_parameters - quantised)
    assert held["nf4"] == pytest.approx(quantised * 4.127 / 8 + rest, rel=1e-4)
    assert held["int8"] == pytest.approx(quantised + rest, rel=2e-3)
    idle = dry.idle_bytes(dry.dry_base(shape, torch.bfloat16, None))
    assert idle == 2 * (shape.num_parameters - shape.active_parameters)


def test_methods_by_hand() -> None:
    qv = 48 * 8 * (5120 + 5120 + 5120 + 1024)
    qkvo = 48 * 8 * (4 * 5120 + 2 * (5120 + 1024))
    shared, dense = 3 * 8 * (5120 + 8192), 3 * 8 * (5120 + 16384)
    seven = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    square = 34 * 8 * 2 * 1408  # of each of the tower's four, which are called as the text's are
    for name, mlp in ((SCOUT, 48 * shared), (MAVERICK, 24 * (shared + dense))):
        for targets, count in ((["q_proj", "v_proj"], qv + 2 * square), (seven, qkvo + mlp + 4 * square)):
            method = Lora(r=8, target_modules=targets)
            assert dry.dry_adapter(families.published(name), [method]).num_trainable == count


def test_operations_are_those_of_the_experts_that_a_token_passes() -> None:
    """Two operations a number of every matrix on a token's way, and what attention's scores take; forward alone. Of the
    last layer only keys and values are computed for all tokens of the prompt, the rest for its last."""
    shape = families.published(SCOUT)
    found = forecast(Setting(SCOUT, shape, (Lora(r=1, target_modules=["q_proj"]),), torch.bfloat16, length=256))
    table = shape.vocab_size * shape.dim
    layer, keys = (shape.active_parameters - 2 * table) / 48, 2 * 5120 * 1024
    matrices = 47 * layer + keys + (layer - keys + table) / 256
    expected = 2 * matrices + 47 * 4 * 40 * 128 * 257 / 2
    assert found.generation_operations == pytest.approx(expected, rel=2e-3)
    assert found.idle == 2 * (shape.num_parameters - shape.active_parameters)
    h200 = speed.device("h200")
    assert speed.times(found, h200).decoding == pytest.approx(
        1000 * (2 * shape.active_parameters + found.generation.adapter + found.generation.cache // 2) / h200.bandwidth
    )


def test_six_small_passes_tell_a_large_one() -> None:
    """Maverick's layers are of two kinds, and the shallow models have as many of each."""
    shape = families.published(MAVERICK)
    one = Setting(MAVERICK, shape, (Lora(r=8),), torch.bfloat16, checkpointing=True, length=700)
    real, need = forecast(one), fit.needs(one)
    assert need.bytes(1, 700) == pytest.approx(real.training.total, rel=1e-3)
    assert need.operations(700) == pytest.approx(real.operations, rel=0.03)


PAGE = Path(__file__).resolve().parents[2] / "docs" / "measured" / "llama-4-plan.md"


def test_the_page_of_what_fits_is_of_this_base() -> None:
    """Of every way to hold it, what one row takes is more than the base and less than 30 GB more; all of it is marked
    as computed, and whether experts are in few bits is what the layout says."""
    text = PAGE.read_text("utf-8")
    shape = families.published(SCOUT)
    few = any(place.name == "experts_in" for place in shape.layout.in_few_bits())
    assert "**Computed, not measured.**" in text and ("routed experts stay in bfloat16" in text) != few
    for how, told in ((None, "bfloat16"), ("int8", "8 bits"), ("nf4", "NF4")):
        held = dry.base_bytes(dry.dry_base(shape, torch.bfloat16, how)).total / 1e9
        taken = [float(one) for one in re.findall(rf"\| {told} \| on the GPU \| ([\d.]+) GB", text)]
        assert len(taken) >= 4 and all(held < one < held + 30 for one in taken)


@pytest.mark.nightly
def test_the_page_of_what_fits_is_what_its_script_makes() -> None:
    script = runpy.run_path(str(PAGE.parents[1] / "make_llama4_plan.py"))
    assert script["page"]() == PAGE.read_text("utf-8"), "make pages"


def test_a_plan_by_name_says_what_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers will do."""
    small = replace(families.published(SCOUT), layers=2)
    monkeypatch.setattr("halter.planning.setting.published", lambda name: small)
    given = {"model": {"path": SCOUT, "quantize": "nf4"}, "method": {"name": "lora"}, "data": {"max_length": 64}}
    found = planned.plan(planned.read_recipe(given))
    assert found.as_dict()["model"]["active_parameters"] == small.active_parameters < small.num_parameters
    said = " ".join(as_text(found).split())
    assert f"{small.active_parameters:,} of them for a token" in said and "routed experts in nf4" in said
    assert "tower of pictures is counted" in found.note and found.note in said


def test_the_table_counts_the_released_and_marks_the_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "published_names", lambda: [SCOUT, MAVERICK])
    said = survey.table_text()
    assert "llama-4-maverick (401,583,781,376 parameters, 17,184,691,200 of them for a token of text" in said
    assert survey.NOTE in said
    assert "llama-4-behemoth: announced in April 2025 with 288B active parameters of about 2T, 16 experts" in said
    assert json.dumps(survey.table())


@pytest.mark.parametrize("name", ["llama-4-behemoth", "Llama4-Behemoth"])
def test_a_model_that_was_never_released_is_not_planned(name: str) -> None:
    for ask in (shape_of, located):
        with pytest.raises(Refusal, match="288B active parameters of about 2T, 16 experts; never released") as caught:
            ask(name)
        assert caught.value.id == "no-model"
    with pytest.raises(Refusal, match="meta-llama/Llama-4-Scout-17B-16E-Instruct"):
        located("llama-4-scout")
