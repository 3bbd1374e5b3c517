"""How acts meet: several acts at one place written out as tensors, and no way to lose one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import tiny
import torch

from halter.adapters.acting import acts_of
from halter.model.joints import Chain, MixedAct, Weighted, chained, mixed
from halter.model.layout import AROUND
from halter.model.places import FINAL, Act
from halter.model.segments import RowRun

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
W, OTHER, BESIDE = (
    torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (2, 3, 4)
)
RUNS = (RowRun(0, 1, 0, 2), RowRun(1, 2, 2, 5))


@dataclass(frozen=True)
class Everything(Act):
    """Uses all that an act may do: x -> k x, another weight, y -> y + x B, and beside it y -> y - 2 x."""

    k: float
    weight: torch.Tensor | None = None

    def enter(self, x):
        return self.k * x

    def act(self, x, y):
        return y + x @ BESIDE

    def beside(self, x, y):
        return y - 2 * x

    def stand_in(self):
        return None if self.weight is None else (self.weight, None)


@dataclass(frozen=True)
class Added(Act):
    """y + c."""

    c: float

    def act(self, x, y):
        return y + self.c


def operation(x, weight=W, bias=None):
    return x @ weight


def test_one_act_is_enter_operation_act_beside():
    for weight in (None, OTHER):
        entered = 3.0 * X
        want = entered @ (W if weight is None else weight) + entered @ BESIDE - 2 * X
        assert torch.equal(Everything(3.0, weight).apply(operation, X), want)


def test_a_chain_asks_every_link_for_everything():
    first, second = Everything(3.0, OTHER), Everything(0.5)
    entered = 0.5 * (3.0 * X)
    want = entered @ OTHER + entered @ BESIDE - 2 * X  # the first: what came to it was X
    want = want + entered @ BESIDE - 2 * (3.0 * X)  # the second: what came to it was 3 X
    want = want + 7.0
    got = chained(chained(first, second), Added(7.0))
    assert len(got.links) == 3 and torch.equal(got.apply(operation, X), want)
    assert not got.follows and chained(Added(1.0), Added(2.0)).follows
    assert torch.equal(chained(Added(1.0), Added(2.0)).after(X, X), X + 3.0)


def test_a_mixed_batch_is_each_run_by_itself_whatever_its_act_does():
    parts = [chained(Everything(3.0, OTHER), Added(1.0)), None]
    for one, two in (parts, reversed(parts), (Everything(2.0), Added(4.0)), (Added(1.0), Added(2.0))):
        act = mixed([one, two], RUNS)
        alone = [operation(x) if part is None else part.apply(operation, x) for part, x in ((one, X[:2]), (two, X[2:]))]
        torch.testing.assert_close(act.apply(operation, X), torch.cat(alone), rtol=0, atol=1e-13)
    assert mixed([None, None], RUNS) is None


def test_a_share_is_of_what_follows_alone():
    torch.testing.assert_close(Weighted(chained(Added(1.0), Added(3.0)), 0.25).after(X, X), X + 1.0)
    for act in (Everything(2.0), Everything(1.0, OTHER), chained(Added(1.0), Everything(2.0))):
        with pytest.raises(TypeError, match="no share"):
            Weighted(act, 0.5)


@pytest.mark.parametrize("name", sorted(FINAL))
def test_no_act_says_anew_how_it_is_applied(name):
    """llama_adapter_v2's branch once did, with ``apply``, and was gone beside any other method."""
    with pytest.raises(TypeError, match=f"overrides {name}"):
        dataclass(frozen=True)(type("Both", (Act,), {name: lambda self, *_: None, "__module__": "somewhere"}))


def test_a_joint_has_no_halves_and_is_no_link():
    for joint in (chained(Added(1.0), Added(2.0)), MixedAct((Added(1.0), None), RUNS)):
        for half in ("enter", "act", "beside", "stand_in"):
            with pytest.raises(TypeError, match="no halves"):
                getattr(joint, half)(*(X, X)[: {"enter": 1, "stand_in": 0}.get(half, 2)])
        with pytest.raises(TypeError, match="a chain is of acts"):
            Chain((joint,))
    with pytest.raises(TypeError, match="a chain is of acts"):
        chained(Added(1.0), MixedAct((Added(1.0), None), RUNS))


def test_every_public_name_of_an_act_is_known_to_the_joints():
    """A fifth half would be asked by no joint: whoever adds one has to see to model.joints, and then to this list."""
    assert {name for name in vars(Act) if not name.startswith("_")} == {
        "enter",
        "act",
        "beside",
        "stand_in",
        "select",
        "stack",
        *FINAL,
    }


@pytest.mark.parametrize("place", tiny.config().layout.names(AROUND))
def test_around_no_operation_only_what_follows_can_act(place):
    layout = tiny.config().layout
    layer = None if place in {one.name for one in layout.outer} else 0
    with pytest.raises(TypeError, match=f"around {place} is no operation"):
        acts_of({(layer, place): chained(Added(1.0), Everything(2.0))}, layout)
    acts = acts_of({(layer, place): Added(1.0)}, layout)
    assert getattr(acts if layer is None else acts.layers[layer], place) == Added(1.0)
