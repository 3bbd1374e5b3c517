"""The plan in words: what a person reads fits a terminal, and says what to do where nothing fits."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from halter.methods.lora import Lora
from halter.methods.prefix_tuning import PrefixTuning
from halter.planning import Setting, fit, forecast, speed
from halter.planning.answer import Answer
from halter.planning.text import WIDTH, as_text
from tests import tiny

SHAPE = tiny.config(layers=12, dim=64, ffn_dim=160, context=4096)
SETTING = Setting(
    "tiny", SHAPE, (Lora(r=2, target_modules=["q_proj", "v_proj"]), PrefixTuning()), torch.bfloat16, length=512
)


def said(budget: int, choices: bool = True) -> str:
    found = forecast(SETTING)
    rates = speed.device("rtx-4060-ti-16gb")
    ranking = tuple(fit.ranked(SETTING, budget, [Lora(r=2)])) if choices else ()
    room = fit.largest(SETTING, budget)
    return as_text(Answer(found, budget, "given", room, rates, speed.times(found, rates), ranking))


@pytest.mark.parametrize("budget", [1000, 2 * 10**6, 10**8, 10**12])
def test_lines_fit_a_terminal_and_nothing_is_python(budget: int) -> None:
    words = said(budget)
    assert max(map(len, words.splitlines())) <= WIDTH == 80
    assert "method: lora, r 2, alpha 4, target_modules q_proj/v_proj" in words.replace("\n ", "")
    assert not re.search(r"[({]\w+=|\{\}|None|\b1 rows|\b0 rows|G ops|16/32", words)


def test_where_no_row_fits_the_way_out_is_said() -> None:
    need = fit.needs(SETTING)
    short = said(need.bytes(1, 400) + 500)
    assert re.search(r"no row of 512 tokens fits, one of 4\d\d does \(--max-length 4\d\d\)", re.sub(r"\s+", " ", short))
    assert re.search(r"what would fit: --method lora.* with one row of 512", re.sub(r"\s+", " ", short))
    nothing = said(1000)
    assert "no row fits, not even one of a single token" in re.sub(r"\s+", " ", nothing)
    assert "what would fit: no method on this base" in nothing and "most rows" not in nothing
    assert "what would fit: name the memory (--memory 8GB)" in said(1000, choices=False)


def test_the_columns_of_the_ranking_are_explained() -> None:
    words = re.sub(r"\s+", " ", said(10**12))
    heads = re.search(r"method base checkpoints trained memory work most rows", words)
    assert heads and all(f"{head}: " in words[: heads.start()] for head in heads[0].split(" ", 6)[1:])
    assert " bf16 off " in words and " nf4 on " in words


def test_one_row_is_one_row() -> None:
    budget = fit.needs(SETTING).bytes(1, 512) + 1000
    assert "at most 1 row of 512 tokens" in re.sub(r"\s+", " ", said(budget))
    assert "training, 1 row of 512" in as_text(Answer(forecast(replace(SETTING, rows=1)), 1, "", fit.Largest(0, 0)))
