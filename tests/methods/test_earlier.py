"""Folders of before an option was there are read as what they were trained as, and say so once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halter.adapters.loading import load_adapter
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
PLAIN = Decoder(ModelConfig.from_hf(json.loads((GOLDEN / "base-plain" / "config.json").read_text())))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("loreft", "short_prompts whole"),
        ("loreft-own", "short_prompts whole"),
        ("bottleneck-parallel", "parallel_input normalised"),
        ("bottleneck-parallel-mlp", "parallel_input normalised"),
        ("several-loreft-bottleneck", "short_prompts whole"),
        ("bottleneck", None),
        ("llama_adapter-peft", None),
    ],
)
def test_an_older_folder_says_what_it_is_read_as_and_a_new_one_nothing(name, told, tmp_path):
    said: list[str] = []
    adapter = load_adapter(GOLDEN / name, PLAIN, say=said.append)
    assert [told in line for line in said] == ([] if told is None else [True])
    said.clear()
    adapter.save(tmp_path / "again")
    assert load_adapter(tmp_path / "again", PLAIN, say=said.append).methods == adapter.methods
    assert not said
