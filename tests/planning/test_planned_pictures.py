"""Pictures in a plan: the trace of a pass with a tower against real tensors, and by hand what a frozen one leaves."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_llama4
import torch

from halter.adapters.adapter import adapt
from halter.contract.method import Method
from halter.errors import Refusal
from halter.methods.lora import Lora
from halter.model.families import published
from halter.model.mllama_config import MllamaConfig
from halter.model.segments import Segments
from halter.planning import Setting, fit, forecast, seen
from halter.planning.dry import dry_adapter, dry_base
from halter.planning.forecast import with_a_picture
from halter.planning.trace import training_pass
from halter.recipe import load
from halter.run import estimate
from halter.run.seen_rows import most_pictures
from halter.training.one_pass import Learnt, one_pass
from tests import tiny
from tests.planning.test_given_back import Alive

LENGTH = 200
TEXT, BOTH, TOWER = ["gate_proj", "up_proj"], ["q_proj", "v_proj"], "all-linear"
"""What LoRA adapts: places that the tower has not got; some of both; every linear layer of both."""


def llama4() -> Any:
    seeing = tiny_llama4.tower(layers=6, dim=64, heads=4, ffn_dim=256, image=56, patch=7, out_dim=64)
    return tiny_llama4.config(layers=4, seen=seeing, dim=64, heads=4, kv_heads=2, head_dim=16, ffn_dim=96)


def mllama() -> Any:
    text = {"layers": 5, "cross_layers": (1, 3), "dim": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn_dim": 96}
    words = {"vocab_size": 96, "context": 256, "bos_token_id": 1, "eos_token_ids": (2,), "picture_id": 96}
    tower = {"vision_layers": 3, "vision_global_layers": 2, "vision_dim": 64, "vision_heads": 4, "vision_ffn_dim": 256}
    return MllamaConfig(**text, **words, **tower, tapped=(0, 2), tile=84, patch=14, max_tiles=4)


SHAPES = {"llama4": (llama4, ((2, 2), (1, 1))), "mllama": (mllama, ((2, 2), (1, 2)))}


def real(shape: Any, method: Method, grids: Any, rows: int, checkpointing: bool) -> int:
    """The most bytes that live beside base and adapter in a real pass."""
    model = tiny.decoder(shape)
    adapter = adapt(model, method)
    held = [*adapter.parameters(), *adapter.buffers(), *model.buffers()]
    tokens = torch.zeros(rows * LENGTH, dtype=torch.int64)
    with Alive({tensor.untyped_storage()._cdata for tensor in held}) as alive:
        segments, text = seen.with_pictures(shape, adapter, Segments.packed([LENGTH] * rows), grids)
        features = [
            tuple(replace(one, tiles=torch.zeros(one.tiles.shape)) for one in own) for own in segments.features or ()
        ]
        segments = replace(segments, features=features or None)
        learnt = Learnt(torch.tensor(text), tokens[: len(text)], torch.ones(len(text)))
        one_pass(model, tokens, segments, adapter.bind(model, segments, key=0), learnt, checkpointing)
    return alive.most


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("targets", [TEXT, BOTH, TOWER], ids=["text", "both", "all"])
@pytest.mark.parametrize("name", SHAPES)
def test_what_a_tower_is_planned_to_take_lives(name: str, targets: Any, checkpointing: bool) -> None:
    made, grids = SHAPES[name]
    shape, method = made(), Lora(r=2, target_modules=targets)
    base, adapter = dry_base(shape, torch.float32, None), dry_adapter(shape, [method])
    for rows in (1, 3):
        planned = training_pass(base, adapter, rows, LENGTH, checkpointing, pictures=grids)
        taken = real(shape, method, grids, rows, checkpointing)
        assert planned.total == pytest.approx(taken, rel=0.02), (planned.worst, planned.total / taken)
    without = training_pass(base, adapter, 3, LENGTH, checkpointing)
    assert without.operations < planned.operations


@pytest.mark.parametrize("name", SHAPES)
def test_a_frozen_tower_keeps_nothing_and_an_adapted_one_what_backward_asks_for(name: str) -> None:
    """In tokens of the tower: what a frozen one takes passes, whether layers are recomputed or not; one of every layer
    adapted takes several times as much, and less where they are recomputed."""
    made, grids = SHAPES[name]
    shape = made()
    deep = (
        replace(shape, tower=replace(shape.tower, layers=24)) if name == "llama4" else replace(shape, vision_layers=20)
    )

    def taken(of: Any, targets: Any, on: bool) -> int:
        method = Lora(r=2, target_modules=targets)
        base, adapter = dry_base(of, torch.float32, None), dry_adapter(of, [method])
        return training_pass(base, adapter, 3, LENGTH, on, pictures=grids).total

    for on in (False, True):
        assert taken(deep, TEXT, on) == taken(shape, TEXT, on)
    assert taken(deep, TOWER, False) > 3 * taken(shape, TOWER, False) - taken(shape, TEXT, False) > 0
    assert taken(deep, TOWER, True) < taken(deep, TOWER, False) / 3


def test_every_row_brings_its_pictures_in_their_places() -> None:
    """By hand for Scout: 4 by 4 tiles and the whole picture, 144 tokens each, 12 separators between tiles, 4 behind
    rows, a start, a mark of the whole picture and an end. Of a Llama 3.2 Vision it is one token."""
    scout, eleven = published("llama-4-scout"), published("llama-3.2-11b-vision")
    rows, text = seen.with_pictures(scout, None, Segments.packed([3000, 3000]), [(4, 4), (1, 1)])
    first, second = (row for row in rows.features or ())
    assert [(one.start, one.length) for one in first] == [(0, 17 * 144 + 12 + 4 + 3), (2467, 144 + 3)]
    assert [tuple(one.tiles.shape) for one in second] == [(17, 3, 336, 336), (1, 3, 336, 336)]
    assert all(one.tiles.is_meta for one in first) and len({one.digest for row in (first, second) for one in row}) == 4
    assert text == [*range(2614, 3000), *range(5614, 6000)]
    rows, text = seen.with_pictures(eleven, None, Segments.packed([5]), [(2, 2)])
    assert tuple(rows.features[0][0].tiles.shape) == (4, 3, 448, 448) and text == [1, 2, 3, 4]  # type: ignore[index]
    assert seen.largest(scout, 2048) == (1, 13) and seen.largest(scout, 148) == (1, 1)
    assert seen.largest(scout, 4096) == (4, 4) and seen.largest(scout, 147) is None
    assert seen.largest(eleven, 2) == (2, 2) and seen.largest(published("llama-3.1-8b"), 99) is None


def test_a_row_that_does_not_hold_its_pictures_is_refused() -> None:
    with pytest.raises(Refusal, match="2467 tokens, and the row 2048") as caught:
        seen.with_pictures(published("llama-4-scout"), None, Segments.packed([2048]), [(4, 4)])
    assert caught.value.id == "plan-pictures" and "2468" in caught.value.fix
    assert caught.value.found == ("4 by 4 tiles: 2467",)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_passes_of_few_rows_with_pictures_tell_one_of_many(name: str, checkpointing: bool) -> None:
    made, grids = SHAPES[name]
    shape = replace(made(), layers=20, **({} if name == "llama4" else {"cross_layers": (1, 6, 11, 16)}))
    if name == "llama4":
        kinds = {key: getattr(shape, key) * 5 for key in ("rotated", "chunked")}
        shape = replace(shape, moe_layers=tuple(range(1, 20, 2)), **kinds)
    one = Setting(name, shape, (Lora(r=2, target_modules=BOTH),), torch.float32, length=LENGTH, pictures=grids)
    one = replace(one, checkpointing=checkpointing)
    need = fit.needs(one)
    for rows in (1, 5, 12):
        found = forecast(replace(one, rows=rows))
        assert need.bytes(rows, LENGTH) == pytest.approx(found.training.total, rel=0.02)
    plain = forecast(replace(one, pictures=()))
    assert found.generation.passing > plain.generation.passing and plain.training.total < found.training.total


def test_a_run_is_expected_to_need_what_its_pictures_take() -> None:
    """The row with the most tiles stands for every row; a bound that knows of no tower decides nothing."""
    shape, grids = llama4(), ((2, 2), (1, 1))
    rows = [SimpleNamespace(pictures=[SimpleNamespace(grid=grid) for grid in own]) for own in ((), grids, ((1, 3),))]
    job: Any = SimpleNamespace(config=shape, rules=shape.pictures, data=SimpleNamespace(train=rows))
    assert most_pictures(job) == grids and most_pictures(replace_config(job, tiny.config())) == ()
    recipe = load({"model": "some", "method": "lora", "data": "some.jsonl"})
    adapter = dry_adapter(shape, [Lora(r=2, target_modules=BOTH)])
    need = estimate.sizes(recipe, shape, adapter, 4, row=(LENGTH, grids))
    base = dry_base(shape, torch.float32, None)
    taken = training_pass(base, adapter, 2, LENGTH, need.setting.checkpointing, pictures=grids)  # type: ignore[union-attr]
    assert need.needs.bytes(2, LENGTH) - need.needs.standing == pytest.approx(taken.total, rel=0.02)
    plain = estimate.sizes(recipe, shape, adapter, 4, row=(LENGTH, ()))
    assert need.needs.bytes(2, LENGTH) > plain.needs.bytes(2, LENGTH)
    free = torch.device("cpu")
    assert estimate._on_paper(need, LENGTH, 10**12) is need.needs and estimate._on_paper(plain, LENGTH, 10**12) is None
    assert "about" in estimate.in_words(need, free, LENGTH, 2 * LENGTH)


def replace_config(job: Any, config: Any) -> Any:
    return SimpleNamespace(config=config, rules=config.pictures, data=job.data)


def test_a_plan_without_data_says_what_a_picture_would_take() -> None:
    shape = replace(published("llama-3.2-11b-vision"), layers=5, vision_layers=31, vision_global_layers=1)
    one = Setting("some", shape, (Lora(r=2, target_modules=BOTH),), torch.bfloat16, length=64, checkpointing=True)
    grid, more = with_a_picture(one) or ((0, 0), 0)
    with_it = forecast(replace(one, pictures=(grid,))).training.total
    assert grid == (2, 2) and more == pytest.approx(with_it - forecast(one).training.total, rel=0.05) and more > 10**8
    assert with_a_picture(replace(one, shape=tiny.config())) is None
