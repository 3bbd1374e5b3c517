"""The tiny base with experts in the package: what its folder holds, and that it has learned to use its experts."""

from __future__ import annotations

import json
from typing import Any

import bounds
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from halter.adapters.acting import acts_of
from halter.errors import Refusal
from halter.files.tensors import read_tensors
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.playground import BASES, base_folder
from halter.playground.documents import corpus
from halter.pretrained.load import load
from halter.pretraining import accepted
from halter.pretraining.bases import RECIPES
from halter.pretraining.even_load import ROUTER
from halter.pretraining.specialised import Hears, Routes, read
from halter.pretraining.world import Pretraining, held_out_loss

FOLDER = base_folder("moe")
READ = 6_000
"""Tokens that are read here; the acceptance itself, whose figures are kept, reads five times as many."""


def kept(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name).read_text("utf-8"))


FIGURES, TWIN, ACCEPTED = kept("figures.json"), kept("twin.json"), kept("accepted.json")


@pytest.fixture(scope="module")
def model() -> Any:
    return load(str(FOLDER), "float32", say=lambda _: None)[0]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def routes(model: Any, tokenizer: Tokenizer) -> Routes:
    return read(model, tokenizer, READ)


def test_what_the_folder_holds(model: Any) -> None:
    tensors = dict(read_tensors(FOLDER / "model.safetensors"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in tensors.values()) == model.config.num_parameters == FIGURES["parameters"]
    assert model.config.active_parameters == FIGURES["active_parameters"]
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 4_300_000
    assert (FOLDER / "tokenizer.json").read_bytes() == (base_folder() / "tokenizer.json").read_bytes()


def test_every_base_has_a_recipe_and_a_shape(tokenizer: Tokenizer) -> None:
    """The package's shape is the recipe's, and the twin has at least the active size; both read the same tokens."""
    assert list(RECIPES) == [*BASES, "encoder"] and all(
        recipe.base == name for name, recipe in RECIPES.items() if isinstance(recipe, Pretraining)
    )
    assert json.loads((FOLDER / "config.json").read_text("utf-8"))["num_local_experts"] == 8
    moe, twin = (BASES[name].shape(tokenizer) for name in ("moe", "moe-twin"))
    assert moe == load(str(FOLDER), "float32", say=lambda _: None)[0].config
    assert 0 <= twin.num_parameters - moe.active_parameters <= 0.01 * twin.num_parameters
    assert twin.active_parameters == twin.num_parameters == TWIN["parameters"] == TWIN["active_parameters"]
    for kept_by in (FIGURES, TWIN):
        recipe = RECIPES[kept_by["base"]]
        assert isinstance(recipe, Pretraining)
        assert 0 <= kept_by["tokens"] - recipe.nursery_tokens - recipe.tokens < 2 * 1024
    assert {**vars(RECIPES["moe"]), "base": ""} == {**vars(RECIPES["moe-twin"]), "base": ""}


def test_only_what_is_there_is_given() -> None:
    with pytest.raises(Refusal, match="not in the package"):
        base_folder("moe-twin")
    with pytest.raises(Refusal, match="did you mean moe") as refused:
        base_folder("mooe")
    assert refused.value.id == "unknown-base"


def test_held_out_loss_is_the_one_told(model: Any, tokenizer: Tokenizer) -> None:
    assert held_out_loss(model, tokenizer, 30_000) == pytest.approx(FIGURES["held_out_loss"], abs=5e-3)


def least_lead(model: Any, ids: torch.Tensor) -> float:
    """By how much any router's best score leads the second over these tokens, at the least."""
    heard = {(layer, ROUTER): Hears() for layer in model.config.moe_layers}
    model.hidden(Pass(ids[0], Segments.packed([ids.shape[1]]), acts_of(heard, model.layout)))
    best = torch.cat([act.scores[0] for act in heard.values()]).sort(-1, descending=True).values
    return float((best[:, 0] - best[:, 1]).min())


def test_transformers_computes_the_same(model: Any, tokenizer: Tokenizer) -> None:
    """On documents in which no token's two best experts are so near that rounding may choose."""
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    compared = 0
    for document in [d for d in corpus(1, 60) if d.kind in ("story", "register")]:
        ids = torch.tensor([tokenizer.encode(document.text).ids])
        with torch.no_grad():
            if least_lead(model, ids) > 1e-4 and compared < 3:
                bounds.assert_same(model(ids), peer(ids).logits)
                compared += 1
    assert compared == 3


def test_the_figures_kept_agree_with_one_another() -> None:
    """accepted.json is made of the two others. (b) and (c) hold; what is missed is told as missed."""
    assert list(ACCEPTED) == list("abcd") and ACCEPTED["b"]["holds"] and ACCEPTED["c"]["holds"]
    told = accepted.beside_twin(FIGURES, TWIN)
    assert ACCEPTED["a"]["figures"] == told.figures and ACCEPTED["a"]["holds"] == told.holds
    assert FIGURES["held_out_loss"] <= 1.02 * TWIN["held_out_loss"]
    missed = ACCEPTED["d"]["figures"]["word"].values()
    assert ACCEPTED["d"]["holds"] == all(one["cost"] > one["next"] for one in missed)
    loads = ACCEPTED["b"]["figures"]["loads"]
    assert ACCEPTED["b"]["figures"]["least"] == min(min(one) for one in loads.values()) >= 1 / 32
    assert all(sum(one) == pytest.approx(1) for one in loads.values()) and len(loads) == 4


def test_no_expert_is_left_out(routes: Routes) -> None:
    """(b), and the shares are near those kept, which are of more tokens."""
    verdict = accepted.even(routes)
    assert verdict.holds, verdict.lines
    kept_loads = np.array(list(ACCEPTED["b"]["figures"]["loads"].values()))
    assert np.abs(routes.loads() - kept_loads).max() < 0.03


def test_experts_know_kinds(routes: Routes) -> None:
    """(c), and the information of words is near what is kept."""
    verdict = accepted.informed(routes)
    assert verdict.holds, verdict.lines
    for layer, found in verdict.figures["word"].items():
        kept_here = ACCEPTED["c"]["figures"]["word"][layer]["information"]
        assert found["information"] == pytest.approx(kept_here, rel=0.3)


def test_favourites_are_missed(routes: Routes) -> None:
    """(d) is missed in part, and told so. Kinds that miss their favourite most by four standard errors do so here."""
    kept_kinds = ACCEPTED["d"]["figures"]["word"]
    clear = {kind: one for kind, one in kept_kinds.items() if one["cost"] > one["next"] + 4 * one["error"]}
    assert set(clear) >= {"ambrish", "line", "sign"}
    kinds = routes.kinds["word"]
    costs = routes.costs(kinds)
    for kind in ("ambrish", "line", "sign"):
        here = costs[routes.layers.index(clear[kind]["layer"]), :, kinds.names.index(kind)]
        assert here.argmax() == clear[kind]["expert"], (kind, here)


@pytest.mark.nightly
def test_the_acceptance_kept_is_what_it_gives_now() -> None:
    verdicts = accepted.of_folder()
    assert {letter: one.holds for letter, one in verdicts.items()} == {k: one["holds"] for k, one in ACCEPTED.items()}
    assert verdicts["b"].figures["least"] == pytest.approx(ACCEPTED["b"]["figures"]["least"], abs=2e-3)
