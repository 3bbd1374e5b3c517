"""A comparison on a checkpoint and stories, ours and real ones, small enough for a night."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_data import Data

from halter.comparison.loop import compare
from halter.comparison.options import CompareOptions


@pytest.mark.nightly
def test_lora_learns_more_than_noise_on_stories(heavy_data: Data, tmp_path: Path) -> None:
    source = {
        "model": {"path": str(heavy_data.base), "device": "cpu"},
        "data": {"train": str(heavy_data.train), "template": "alpaca", "max_length": 512, "on_long": "cut"},
    }
    options = CompareOptions(
        test=f"{heavy_data.test}#30",
        methods=("lora",),
        precisions=("float32", "nf4"),
        tokens=24_000,
        limit=120,
        seeds=2,
        search_trials=2,
        questions=4,
        max_new_tokens=32,
        resamples=200,
        skip_memory=True,
    )
    record = compare(source, options, {}, tmp_path / "out", lambda _: None)
    rows = {row["name"]: row for row in record["rows"]}
    assert all(row["status"] == "done" for row in rows.values()) and len(rows) == 4
    for held in ("", "-nf4"):
        assert rows[f"lora{held}"]["mean"]["test_loss"] < rows[f"base{held}"]["mean"]["test_loss"] - 0.1
        assert ["base" + held, "lora" + held] not in record["ties"]
        lora = rows[f"lora{held}"]
        assert lora["mergeable"] and lora["compressed_bytes"] < 0.5 * lora["adapter_bytes"]
