"""Llama 4's counts against the published totals, and against shapes written out by hand."""

from __future__ import annotations

import pytest

from halter.methods.lora import Lora
from halter.planning import llama4, survey

PUBLISHED = {
    "llama-4-scout": (108_641_793_536, 107_769_861_120, 17_172_894_720),
    "llama-4-maverick": (401_583_781_376, 400_711_848_960, 17_184_691_200),
}
"""{shape: parameters in all, of the text part, of it at work for a token}, counted in the published tensors."""


@pytest.mark.parametrize("name", llama4.SHAPES)
def test_parameters_are_the_published_ones(name: str) -> None:
    found = llama4.counts(name, survey.SETTINGS)
    assert (found["parameters"], found["text"], found["active"]) == PUBLISHED[name]
    assert llama4.TOWER == 850_960_896 + 20_971_520


def test_the_sizes_that_meta_names() -> None:
    sizes = {name: llama4.SHAPES[name] for name in llama4.SHAPES}
    billions = {name: round((s.parameters() + llama4.TOWER) / 1e9) for name, s in sizes.items()}
    assert billions == {"llama-4-scout": 109, "llama-4-maverick": 402}  # "109B" and "400B"
    assert {round(s.parameters(active=True) / 1e9) for s in sizes.values()} == {17}


def test_methods_and_bytes_by_hand() -> None:
    scout, maverick = llama4.SHAPES.values()
    qv = 48 * 8 * (5120 + 5120 + 5120 + 1024)
    qkvo = 48 * 8 * (4 * 5120 + 2 * (5120 + 1024))
    assert scout.trained(Lora(r=8, target_modules=["q_proj", "v_proj"])) == qv
    assert scout.trained(Lora(r=8)) == qkvo + 48 * 3 * 8 * (5120 + 8192)
    assert maverick.trained(Lora(r=8)) == qkvo + 24 * 3 * 8 * (5120 + 8192) + 24 * 3 * 8 * (5120 + 16384)
    assert maverick.expert_lora() == 24 * 128 * 3 * 8 * (5120 + 8192)
    experts = 48 * 17 * 3 * 5120 * 8192
    attention = 48 * (2 * 5120 * 5120 + 2 * 5120 * 1024)
    rest = scout.parameters() - experts - attention + llama4.TOWER
    assert scout.nf4_bytes() == pytest.approx((experts + attention) * 4.127 / 8 + 2 * rest, rel=1e-4)


def test_the_table_says_that_they_are_counted_only() -> None:
    said = survey.table_text()
    assert "llama-4-maverick, counted, not run (401,583,781,376 parameters" in said and llama4.NOTE in said
