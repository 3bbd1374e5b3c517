"""The recipe of the encoder of pictures: what it is told of pictures, its one objective, and what it writes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from halter.encoders.load import load_encoder
from halter.errors import Refusal
from halter.files.tensors import read_tensors
from halter.playground import sights
from halter.playground.drawings import Form, Things
from halter.playground.papers import CLOSED, COPIED, UNSEEN, paper
from halter.playground.words import Dice
from halter.pretraining import pairs, probes
from halter.pretraining.contrast import Contrast, Likeness, TextHalf, pretrain_encoder

SMALL = Contrast(
    dim=32,
    layers=2,
    ffn_dim=64,
    patch=16,
    projection=16,
    text_dim=32,
    text_layers=1,
    steps=24,
    pictures_per_step=32,
    warmup_steps=4,
    probe_drawings=(60, 20),
)


UNSAID = {"nothing", "thing", "things", "begins", "ends", "with", *sights.NUMBERS, *CLOSED, *COPIED}
"""Words of facts that captions do without."""


def test_the_recipe_makes_the_same_encoder_again_with_a_loss_that_falls(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    first = pretrain_encoder(tmp_path / "a", SMALL, seen.append)
    torch.rand(1)  # what was drawn before says nothing
    pretrain_encoder(tmp_path / "b", SMALL)
    one, two = (dict(read_tensors(tmp_path / name / "model.safetensors")) for name in "ab")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert {tensor.dtype for tensor in one.values()} == {torch.float16}
    assert [line["step"] for line in seen] == list(range(1, 25)) and {line["steps"] for line in seen} == {24}
    assert max(first["last_losses"]) < 0.8 * first["first_losses"][0]
    assert first["held_out"]["loss"] < 0.8 * first["first_losses"][0]
    encoder = load_encoder(tmp_path / "a")
    assert encoder.config == SMALL.config and encoder.preparing == SMALL.preparing
    other = pretrain_encoder(tmp_path / "c", replace(SMALL, seed=1, steps=5))
    assert other["first_losses"] != first["first_losses"]
    with pytest.raises(Refusal) as refused:
        pretrain_encoder(tmp_path / "a", SMALL)
    assert refused.value.id == "already-exists"


def test_every_part_of_the_encoder_has_learned(tmp_path: Path) -> None:
    """What 24 steps make is not what one makes, in any tensor; a key's bias has no gradient."""
    for name, steps in (("one", 1), ("many", 24)):
        pretrain_encoder(tmp_path / name, replace(SMALL, steps=steps))
    one, many = (dict(read_tensors(tmp_path / name / "model.safetensors")) for name in ("one", "many"))
    same = [name for name in one if (one[name].float() - many[name].float()).abs().max() < 1e-3]
    assert not [name for name in same if not name.endswith("k_proj.bias")], same


def test_the_objective_is_the_cross_entropy_of_each_true_pair_among_what_is_false() -> None:
    alike = torch.tensor([[2.0, 1.0, 0.5], [0.3, 1.5, 0.2]])
    true = torch.tensor([[True, True, False], [False, True, True]])
    found = Likeness(alike, true).contrast().item()

    def cross(right: float, wrong: list[float]) -> float:
        return -math.log(math.exp(right) / sum(map(math.exp, [right, *wrong])))

    by_text = [cross(2.0, [0.5]), cross(1.0, [0.5]), cross(1.5, [0.3]), cross(0.2, [0.3])]
    by_picture = [cross(2.0, [0.3]), cross(1.0, []), cross(1.5, []), cross(0.2, [0.5])]
    assert found == pytest.approx((sum(by_text) / 4 + sum(by_picture) / 4) / 2, rel=1e-5)


def test_with_one_text_a_picture_it_is_clips_own() -> None:
    alike = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)) * 3
    right = torch.arange(6)
    wanted = sum(torch.nn.functional.cross_entropy(one, right) for one in (alike, alike.T)) / 2
    found = Likeness(alike, torch.eye(6, dtype=torch.bool))
    torch.testing.assert_close(found.contrast(), wanted)
    assert found.found() == (alike.argmax(1) == right).float().mean().item()


def test_a_fact_that_is_true_of_every_picture_teaches_nothing_and_breaks_nothing() -> None:
    alike = torch.randn(3, 2, requires_grad=True)
    true = torch.tensor([[True, True], [True, False], [True, False]])
    Likeness(alike, true).contrast().backward()
    assert alike.grad is not None and alike.grad.isfinite().all() and alike.grad.abs().sum() > 0


def test_members_of_a_family_differ_in_one_fact() -> None:
    """Of a thing: in one quarter's, or in two that changed places or colours; of a form: in one digit or tick."""
    for number in range(200):
        dice = Dice("family", number)
        first = sights.form(dice) if number % 2 else sights.things(dice)
        other = pairs.changed(dice, first)
        assert pairs.facts_of(first) != pairs.facts_of(other) or isinstance(first, Things)
        if isinstance(first, Form):
            assert isinstance(other, Form)
            parts = [[(line.ticked, *divmod(line.number, 10)) for line in one.lines] for one in (first, other)]
            assert sum(a != b for one, two in zip(*parts, strict=True) for a, b in zip(one, two, strict=True)) == 1
        else:
            assert isinstance(other, Things)
            told = [{thing.quarter: thing.name for thing in one.things} for one in (first, other)]
            assert sum(told[0].get(quarter) != told[1].get(quarter) for quarter in range(4)) in (0, 1, 2)
            assert all(thing.middle[0] // 64 == thing.quarter % 2 for thing in other.things)


def test_papers_of_a_family_differ_in_one_field_and_none_has_the_layout_kept_for_tests() -> None:
    for number in range(20):
        dice = Dice("papers", number)
        first = paper(dice)
        other = pairs.changed(dice, first)
        assert (
            len(pairs.facts_of(first) - pairs.facts_of(other))
            == len(pairs.facts_of(other) - pairs.facts_of(first))
            == 1
        )
        assert list(first.fields) == list(other.fields) and other.layout.name != UNSEEN.name
    sides = {one.pixels.shape[0] for one in replace(SMALL, papers=0.5).batch(0)}
    assert sides == {32, 128}


def test_facts_are_what_the_caption_says_and_no_picture_is_called_wrong() -> None:
    batch = SMALL.batch(3)
    assert len(batch) == 32 and SMALL.batch(3)[5].caption == batch[5].caption != SMALL.batch(4)[5].caption
    facts, true = pairs.facts_true(batch)
    captions = pairs.captions_true(batch)
    assert captions.diagonal().all() and (captions == captions.T).all() and true.any(0).all() and true.any(1).all()
    for row, one in enumerate(batch):
        said = [fact for fact, holds in zip(facts, true[row], strict=True) if holds]
        assert set(said) == one.facts
        for fact in said:
            told = set(pairs.words(fact)) - UNSAID
            assert fact.startswith("nothing") or told <= set(pairs.words(one.caption)), (fact, one.caption)


def test_a_caption_is_true_of_every_picture_that_shows_the_same() -> None:
    """However its words are ordered; one thing more or fewer, and it is false."""
    dice = Dice("same", 0)
    seen = next(one for one in iter(lambda: sights.things(dice), None) if len(one.things) == 3)
    fewer = Things(seen.things[:-1], seen.ground)
    batch = [pairs.told(dice, one) for one in (seen, fewer, seen, seen)]
    assert len({one.caption for one in batch}) > 2
    same = torch.tensor([[True, False, True, True], [False, True, False, False]])
    assert torch.equal(torch.from_numpy(pairs.captions_true(batch)), same[[0, 1, 0, 0]])


@torch.no_grad()
def test_a_text_is_read_the_same_beside_a_longer_one() -> None:
    half = TextHalf(["a", "circle", "red"], 16, 2, 8)
    longer = "a red circle, a red circle, a red circle."
    torch.testing.assert_close(half(["a red circle", longer])[0], half(["a red circle"])[0], rtol=1e-5, atol=1e-5)
    assert not torch.equal(half(["a red circle"]), half(["a circle red"]))
    torch.testing.assert_close(half(["a blue circle"]), half(["a green circle"]))  # words that it never read
    assert half([longer * 40]).shape == (1, 8)


def test_a_probe_finds_what_is_linear_and_nothing_in_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(700, 40, generator=generator)
    answers = (features @ torch.randn(40, 3, generator=generator)).argmax(1)
    wanted = torch.nn.functional.one_hot(answers, 3).float()
    assert (probes.ridge(features, wanted[:500]).argmax(1) == answers[500:]).float().mean() > 0.85
    noise = torch.randn(700, 40, generator=generator)
    assert (probes.ridge(noise, wanted[:500]).argmax(1) == answers[500:]).float().mean() < 0.5


def test_probes_are_asked_of_what_is_there() -> None:
    drawn = [sights.things(Dice("probe", at)) for at in range(20)]
    asked = probes.things_answers(drawn)
    assert [len(several) for several in asked.values()] == [4, 4, 4, 1]
    for at, one in enumerate(drawn):
        for quarter in range(4):
            there = next((thing for thing in one.things if thing.quarter == quarter), None)
            answers, counted = asked["shape"][quarter]
            assert counted[at] == (there is not None) == bool(answers[at])
            assert asked["empty"][quarter][0][at] == (there is None)
    forms = probes.form_answers([sights.form(Dice("probe", at)) for at in range(5)])
    form = sights.form(Dice("probe", 4))
    assert 10 * forms["tens"][1][0][4] + forms["ones"][1][0][4] == form.lines[1].number
