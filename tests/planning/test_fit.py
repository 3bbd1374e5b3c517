"""What fits: amounts of memory, the largest passes against passes that are run, the ranking."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from halter.errors import Refusal
from halter.methods.llama_adapter import LlamaAdapter
from halter.methods.lora import Lora
from halter.model import families
from halter.planning import Setting, fit, forecast, speed, trace
from halter.planning.dry import dry_adapter, dry_base
from tests import tiny

SHAPE = tiny.config(layers=12, dim=64, ffn_dim=160, context=4096)
SETTING = Setting("tiny", SHAPE, (Lora(r=2),), torch.float32, length=512)


@pytest.mark.parametrize(
    ("words", "count"), [("8GB", 8 * 10**9), ("7.5 GiB", 15 * 2**29), ("800mb", 8 * 10**8), ("1234567", 1234567)]
)
def test_amounts(words: str, count: int) -> None:
    assert fit.bytes_of(words) == count


@pytest.mark.parametrize("words", ["", "much", "-1GB", "8 apples", "0", "24", "24000"])
def test_what_is_no_amount(words: str) -> None:
    with pytest.raises(Refusal, match="memory-amount"):
        fit.bytes_of(words)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("24", "24GB"),
        ("8192", "8192MiB"),
        ("8,5GB", "8.5GB"),
        ("8G", "8GB"),
        ("24gig", "24GB"),
        ("much", ""),
        ("0G", ""),
    ],
)
def test_an_amount_is_told_as_it_was_meant(words: str, meant: str) -> None:
    with pytest.raises(Refusal) as caught:
        fit.bytes_of(words)
    assert caught.value.fix == (f"--memory {meant}" if meant else "")
    assert not meant or fit.bytes_of(meant) > 10**9


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", [Lora(r=2), LlamaAdapter(4, 10)], ids=lambda method: method.name())
def test_six_small_passes_tell_a_large_one(method: Lora | LlamaAdapter, checkpointing: bool) -> None:
    """12 layers and 3,000 tokens, from two shallow models with 256 to 4,096; prompts are in the last ten layers only,
    and the first two keep nothing."""
    one = replace(SETTING, methods=(method,), checkpointing=checkpointing, length=3000)
    real, need = forecast(one), fit.needs(one)
    assert need.bytes(1, 3000) == pytest.approx(real.training.total, rel=0.03)
    assert need.operations(3000) == pytest.approx(real.operations, rel=0.03)


DEEP = [("llama-3.1-8b", 32, None), ("llama-4-scout", 12, None), ("llama-4-scout", 12, "nf4")]
DEEP += [("llama-3.2-11b-vision", 40, "nf4")]
"""Published shapes, how many layers of each are run, of Llama 4 a quarter, and how they are held."""


@pytest.mark.parametrize(("name", "layers", "held"), DEEP)
def test_a_further_row_takes_what_it_takes_in_the_whole_model(name: str, layers: int, held: str | None) -> None:
    """Layers recomputed, where what is kept grows slowly with depth, so that the moment that is the worst of a shallow
    model or of few tokens need not be the worst of this one: bf16 and NF4 once differed by a factor of two."""
    shape = replace(families.published(name), layers=layers)
    one = Setting(name, shape, (Lora(r=8, target_modules=["q_proj", "v_proj"]),), torch.bfloat16, held)  # type: ignore
    one = replace(one, checkpointing=True)
    need = fit.needs(one)
    base, adapter = dry_base(shape, torch.bfloat16, held), dry_adapter(shape, one.methods)
    real = {rows: trace.training_pass(base, adapter, rows, 2048, True).total for rows in (1, 16)}
    for rows, taken in real.items():
        assert need.bytes(rows, 2048) - need.standing == pytest.approx(taken, rel=0.01)
    grows = need.bytes(16, 2048) - need.bytes(1, 2048)
    assert grows == pytest.approx(real[16] - real[1], rel=0.01)


def test_shallow_models_end_as_the_deep_one_does() -> None:
    """Whole turns of the kinds of layers apart, and no shallower than what a method leaves below its topmost layers."""
    depths = {
        "llama-3.1-8b": (2, 4),
        "llama-4-scout": (4, 8),
        "llama-4-maverick": (4, 8),
        "llama-3.2-11b-vision": (5, 10),
    }
    for name, expected in depths.items():
        shape = families.published(name)
        assert fit.depths(shape) == expected
        few, many = fit.depths(shape, 7)
        assert few >= 9 and (few - shape.layers) % (expected[1] - expected[0]) in (0, 1) and many > few
        kinds = shape.layer_kinds
        assert len(kinds) == shape.layers and kinds[: expected[0]] == kinds[-expected[0] :]
    scout = families.published("llama-4-scout")
    assert scout.layer_kinds[:4] == ((True, True, True),) * 3 + ((False, False, True),)
    irregular = replace(families.published("llama-3.2-11b-vision"), cross_layers=(3, 20, 36))
    assert (
        fit.depths(irregular) == (40,) and fit.depths(SHAPE) == (2, 4) and fit.depths(replace(SHAPE, layers=4)) == (4,)
    )


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


def test_each_method_is_laid_out_once_for_all_ways_to_hold_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two depths, three lengths, three kinds of base, with and without checkpointing: 36 passes, and torch is asked for
    no shape that was met before."""
    passes, whole = [], []
    run, lay = fit.training_pass, fit.dry_adapter
    monkeypatch.setattr(fit, "training_pass", lambda *given: passes.append(given) or run(*given))
    monkeypatch.setattr(fit, "dry_adapter", lambda shape, methods: whole.append(shape.layers) or lay(shape, methods))
    first = fit.ranked(SETTING, 10**12, [Lora(r=2)])
    assert len(passes) == 36 and whole.count(SHAPE.layers) == 1
    asked = len(trace.SHAPES.known)
    assert fit.ranked(SETTING, 10**12, [Lora(r=2)]) == first and len(trace.SHAPES.known) == asked
    for choice in first:
        alone = fit.needs(replace(SETTING, quantize=choice.quantize, checkpointing=choice.checkpointing))
        assert (choice.need, choice.operations) == (alone.bytes(1, 512), alone.operations(512))


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
    for rates in speed.DEVICES.values():
        assert (
            "published" in rates.source
            and "not measured" in rates.source
            and "data sheet" in rates.source
            or ("white paper" in rates.source or "product page" in rates.source)
        )
    with pytest.raises(Refusal, match="h100-sxm"):
        speed.device("abacus")


CORES = {
    "rtx-3060-12gb": (3584, 1.777),
    "rtx-3090": (10496, 1.695),
    "rtx-4060-ti-16gb": (4352, 2.535),
    "rtx-4080": (9728, 2.505),
    "rtx-4090": (16384, 2.52),
    "rtx-5090": (21760, 2.407),
}
"""Cores and GHz of the cards that people have at home."""


@pytest.mark.parametrize("name", CORES)
def test_peaks_follow_from_cores_and_clocks(name: str) -> None:
    """512 operations a clock for 128 cores: sums in fp32, no sparsity. A figure with either would be twice as much."""
    cores, clock = CORES[name]
    assert speed.device(name).operations == pytest.approx(4 * cores * clock * 1e9, rel=0.005)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("RTX 4090", "rtx-4090"),
        ("4090", "rtx-4090"),
        ("rtx4060ti-16GB", "rtx-4060-ti-16gb"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("A100_80GB", "a100-80gb"),
        ("rtx-4090-24gb", "rtx-4090"),
        ("RTX 3090 24GB", "rtx-3090"),
        ("h200-141gb", "h200"),
    ],
)
def test_devices_are_known_as_people_type_them(typed: str, name: str) -> None:
    assert speed.device(typed) is speed.DEVICES[name]


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("a100", "a100-40gb or a100-80gb"),
        ("rtx 3060", "rtx-3060-12gb"),
        ("h100", "h100-sxm"),
        ("h100-80gb", "h100-sxm"),
        ("rtx-4090-48gb", "rtx-4090"),
        ("v100 24GB", "v100-16gb or v100-32gb"),
    ],
)
def test_what_could_be_meant_is_said_and_not_taken(typed: str, near: str) -> None:
    with pytest.raises(Refusal, match=rf"did you mean {near}\?.*Expected: a100-40gb, .*memory="):
        speed.device(typed)
