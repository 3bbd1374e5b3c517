"""The tiny base that sees: what its folder holds, that it reads pictures it never saw, and what its recipe makes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import bounds
import pytest
import tiny_llama4
import torch

from halter.evaluation.score import held_out
from halter.files.tensors import read_tensors
from halter.generation.engine import generate
from halter.pictures.seen import features
from halter.playground import base_folder, seeing, sights
from halter.pretrained.load import load
from halter.pretraining import lessons
from halter.pretraining.sight import SightTraining, unseen_loss
from halter.pretraining.sighted import TARGET

FOLDER = base_folder("seeing")
FIGURES: dict[str, Any] = json.loads((FOLDER / "figures.json").read_text("utf-8"))
TYPES = SightTraining().types


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load(str(FOLDER), "float32", say=lambda _: None)


@pytest.fixture(scope="module")
def spelt() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_size_is_kept_and_all_bases_are_small() -> None:
    tensors = dict(read_tensors(FOLDER / "model.safetensors"))
    assert sum(one.numel() for one in tensors.values()) == FIGURES["parameters"] <= 1_000_000
    assert {one.dtype for one in tensors.values()} == {torch.bfloat16}
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 2_000_000
    weights = base_folder().parent.glob("*/model.safetensors")
    assert sum(file.stat().st_size for file in weights) <= 15_000_000


def test_tokenizer_is_the_one_that_the_recipe_makes() -> None:
    assert seeing.sight_tokenizer().to_str(pretty=False) == (FOLDER / "tokenizer.json").read_text("utf-8")


def test_held_out_loss_is_the_one_told(loaded: Any, spelt: Any) -> None:
    recipe = SightTraining()
    assert unseen_loss(loaded[0], spelt, recipe) == pytest.approx(FIGURES["held_out_loss"], abs=2e-4)


@pytest.mark.parametrize(("name", "least", "chance"), [("tick", 40, 1 / 2), ("shape", 22, 1 / 4)])
def test_it_answers_about_pictures_that_it_never_saw(loaded: Any, name: str, least: int, chance: float) -> None:
    """``least`` of 48: whoever does not see reaches it by chance once in 500 times at most."""
    asked = list(sights.asked(name, "unseen", "test", 48))
    tail = sum(math.comb(48, n) * chance**n * (1 - chance) ** (48 - n) for n in range(least, 49))
    assert tail < 2e-3
    prompts = []
    for seen, (question, _) in asked:
        picture = {"type": "image", "image": lessons.place_of_drawing(seen)}
        prompts.append([{"role": "user", "content": [picture, {"type": "text", "text": question}]}])
    answers = generate(*loaded, prompts, max_new_tokens=8)
    right = sum(one.text.strip() == wanted for one, (_, (_, wanted)) in zip(answers, asked, strict=True))
    assert right >= least, right


def test_another_picture_makes_answers_unlikely(loaded: Any, spelt: Any) -> None:
    model, _ = loaded
    rows = list(lessons.lessons(spelt, model.config.pictures, 3000, TYPES, "unseen"))
    pairs = zip(rows, rows[1:] + rows[:1], strict=True)
    other = [replace(one, pictures=two.pictures) for one, two in pairs]
    assert len({row.pictures[0].start for row in rows}) == 1
    assert held_out(model, other).loss > 1.5 * held_out(model, rows).loss


def test_what_was_measured_meets_the_target() -> None:
    sight = FIGURES["sight"]
    blind = max(sight["blind"], sight["blank"], sight["commonest"])
    assert sight["question"] == FIGURES["left_out"] == sights.LEFT_OUT
    assert sight["above_blind"] == pytest.approx(sight["seeing"] - blind, abs=1e-4) and sight["above_blind"] >= TARGET
    assert sight["seeing_seconds"] <= 600


@torch.no_grad()
def test_transformers_reads_the_same_model(loaded: Any, spelt: Any) -> None:
    """Of a picture and a talk about it, where each router's first leads by more than is rounded."""
    transformers = pytest.importorskip("transformers")
    model, _ = loaded
    peer = transformers.Llama4ForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()
    for row in lessons.lessons(spelt, model.config.pictures, 1500, TYPES, "unseen"):
        (seen,) = features(model.config.pictures, [row.pictures]) or ()
        one = (torch.tensor(row.tokens, dtype=torch.int64), seen)
        wanted, lead = tiny_llama4.peers_logits(peer, one, torch.float32)
        if lead > 1e-4:
            bounds.assert_same(tiny_llama4.logits(model, [one])[0], wanted[0])
            return
    pytest.fail("no row on which every router is sure")
