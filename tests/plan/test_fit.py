"""What fits: amounts of memory, the largest passes against passes that are run, the ranking."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from halter.errors import Refusal
from halter.methods.llama_adapter import LlamaAdapter
from halter.methods.lora import Lora
from halter.planning import Setting, fit, forecast, speed
from tests import tiny

SHAPE = tiny.config(layers=12, dim=64, ffn_dim=160, context=4096)
SETTING = Setting("tiny", SHAPE, (Lora(r=2),), torch.float32, length=512)


@pytest.mark.parametrize(
    ("words", "count"), [("8GB", 8 * 10**9), ("7.5 GiB", 15 * 2**29), ("800mb", 8 * 10**8), ("123", 123)]
)
def test_amounts(words: str, count: int) -> None:
    assert fit.bytes_of(words) == count


@pytest.mark.parametrize("words", ["", "much", "-1GB", "8 apples", "0"])
def test_what_is_no_amount(words: str) -> None:
    with pytest.raises(Refusal, match="memory-amount"):
        fit.bytes_of(words)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", [Lora(r=2), LlamaAdapter(4, 10)], ids=lambda method: method.name())
def test_four_small_passes_tell_a_large_one(method: Lora | LlamaAdapter, checkpointing: bool) -> None:
    """12 layers and 3,000 tokens, from two shallow models with 512 and 1,024; prompts are in the last ten layers only,
    and the first two keep nothing."""
    one = replace(SETTING, methods=(method,), checkpointing=checkpointing, length=3000)
    real, need = forecast(one), fit.needs(one)
    assert need.bytes(1, 3000) == pytest.approx(real.training.total, rel=0.03)
    assert need.operations(3000) == pytest.approx(real.operations, rel=0.03)


def test_the_largest_pass_fits_and_one_more_does_not() -> None:
    need = fit.needs(SETTING).bytes
    budget = need(3, 512) + 1000
    found = fit.largest(SETTING, budget)
    assert found.rows == 3 and 3 * 512 <= found.length < 4 * 512
    assert need(1, found.length) <= budget < need(1, found.length + 1)
    assert fit.largest(SETTING, 1000) == fit.Largest(0, 0)


@pytest.mark.parametrize("most", [0, 1, 64])
def test_the_largest_count_that_fits_is_found(most: int) -> None:
    for limit in range(-1, 70):
        assert fit._most(lambda count: count <= limit, most) == max(0, min(limit, most))  # noqa: B023


def test_choices_are_ranked_by_what_is_said() -> None:
    lora, prompts = Lora(r=2), LlamaAdapter(4, 10)
    everything = fit.ranked(SETTING, 10**12, [prompts, lora])
    assert [(c.method, c.quantize, c.checkpointing) for c in everything] == [
        (name, held, on) for held in (None, "int8", "nf4") for on in (False, True) for name in ("lora", "llama_adapter")
    ]
    assert all(c.fits for c in everything)
    budget = next(c.need for c in everything if c.method == "lora" and not c.quantize and not c.checkpointing) - 1
    some = fit.ranked(SETTING, budget, [prompts, lora])
    assert [c.fits for c in some] == sorted((c.need <= budget for c in some), reverse=True)
    assert not next(c for c in some if (c.method, c.quantize, c.checkpointing) == ("lora", None, False)).fits
    plain = {c.checkpointing: c for c in everything if c.method == "lora" and not c.quantize}
    assert plain[True].operations > plain[False].operations and plain[True].need < plain[False].need


def test_no_pass_is_run_where_what_stands_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit.ranked(SETTING, 10**12, [Lora(r=2)])
    monkeypatch.setattr(fit, "training_pass", lambda *_: pytest.fail("a pass was run"))
    none = fit.ranked(SETTING, 1000, [Lora(r=2)])
    assert len(none) == len(whole) and not any(c.fits for c in none)
    for bound, exact in zip(none, whole, strict=True):
        assert bound.operations is None and 1000 < bound.need < exact.need and bound.trainable == exact.trainable


def test_full_has_no_row_on_a_quantised_base() -> None:
    from halter.methods.full import Full

    assert {c.quantize for c in fit.ranked(SETTING, 10**12, [Full()])} == {None}


def test_rates_are_measured_and_times_follow_from_them() -> None:
    here = speed.calibrate(torch.float32, "cpu", 0.05)
    assert 1e8 < here.operations < 1e14 and 1e8 < here.bandwidth < 1e13 and "measured here" in here.source
    found = forecast(SETTING)
    slow = speed.times(found, speed.Rates(1e9, 1e15, "made up"))
    assert slow.training == pytest.approx(1000 * found.operations / 1e9)
    narrow = speed.times(found, speed.Rates(1e18, 1e6, "made up"))
    weights = found.training.base
    assert narrow.training == pytest.approx(1000 * 2 * weights / SETTING.length / 1e6)
    assert narrow.decoding > 1000 * weights / 1e6 > narrow.prompt


def test_published_rates_are_marked_as_such() -> None:
    assert all("published" in rates.source and "not measured" in rates.source for rates in speed.DEVICES.values())
    with pytest.raises(Refusal, match="h100-sxm"):
        speed.device("abacus")
