"""The four questions put to a base with experts: each is answered no where it should be."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from halter.errors import Refusal
from halter.playground.bases import base_folder
from halter.pretraining import accepted
from halter.pretraining.accepted import beside_twin, even, informed, missed
from halter.pretraining.specialised import Kinds

OWN = {"held_out_loss": 1.0, "parameters": 20, "active_parameters": 8, "tokens": 100, "seconds": 3}
TWIN = OWN | {"parameters": 8, "held_out_loss": 1.1}


def routes(**changes: Any) -> Any:
    """As Routes: two experts, of which names take the first and signs the other, and miss theirs alone."""
    kinds = Kinds.of(["name", "sign"] * 200, [1] * 400)
    told = {
        "layers": [3],
        "names": ["3"],
        "experts": 2,
        "kinds": {"word": kinds, "document": Kinds.of(["story", "song"], [200, 200])},
        "chosen": {3: kinds.number[:, None]},
        "loads": lambda: np.array([[0.5, 0.5]]),
        "shares": lambda kinds: np.array([[[1.0, 0.0], [0.0, 1.0]]]),
        "costs": lambda kinds: np.array([[[0.4, 0.1], [0.3, 0.2]]]),
        "removed": np.stack([np.array([[0.5, 0.0] * 200, [0.3, 0.2] * 200])]),
    }
    return SimpleNamespace(**(told | changes))


def test_beside_its_twin() -> None:
    assert beside_twin(OWN, TWIN).holds
    assert beside_twin(OWN, TWIN | {"held_out_loss": 1.0}).holds
    for changes in ({"held_out_loss": 0.99}, {"tokens": 101}, {"active_parameters": 7}):
        assert not beside_twin(OWN, TWIN | changes).holds
    assert beside_twin(OWN, TWIN | {"active_parameters": 9}).holds


def test_a_load_that_is_uneven() -> None:
    verdict = even(routes(loads=lambda: np.array([[0.125, 0.875], [0.5, 0.5]]), names=["1", "3"]))
    assert verdict.holds and verdict.figures["least"] == 0.125 and verdict.figures["bound"] == 0.125
    assert not even(routes(loads=lambda: np.array([[0.124, 0.876]]))).holds


def test_experts_that_know_nothing_of_kinds() -> None:
    verdict = informed(routes())
    assert verdict.holds and verdict.figures["word"]["3"]["information"] == pytest.approx(1)
    assert verdict.figures["document"]["3"]["information"] == pytest.approx(0, abs=1e-9)
    blind = np.random.default_rng(5).integers(0, 2, (400, 1))
    assert not informed(routes(chosen={3: blind})).holds


def test_a_favourite_that_is_not_missed() -> None:
    verdict = missed(routes())
    assert verdict.holds
    told = verdict.figures["word"]["name"]
    assert told == {
        "layer": 3,
        "expert": 0,
        "share": 1.0,
        "cost": 0.4,
        "next": 0.3,
        "error": pytest.approx(0, abs=1e-9),
    }
    assert not missed(routes(costs=lambda kinds: np.array([[[0.4, 0.1], [0.5, 0.2]]]))).holds


def test_figures_are_json() -> None:
    for verdict in (beside_twin(OWN, TWIN), even(routes()), informed(routes()), missed(routes())):
        assert json.loads(json.dumps(asdict(verdict)))["holds"] is True


def test_a_base_without_experts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no routed experts") as refused:
        accepted.of_folder(base_folder(), base_folder())
    assert refused.value.id == "no-experts"
    with pytest.raises(Refusal) as refused:
        accepted.of_folder(tmp_path)
    assert refused.value.id == "file-missing"
