"""What comes to a place of routed experts, and acts there that are each for some rows of a batch only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_llama4_text import config, made

from halter.model.experts import Routing
from halter.model.joints import MixedAct
from halter.model.places import Act
from halter.model.segments import RowRun


@dataclass(frozen=True)
class Enters(Act):
    def enter(self, x):
        return replace(x, rows=x.rows * 2)


@dataclass(frozen=True)
class Adds(Act):
    """Adds what hangs on the expert and on the row alone."""

    def act(self, x, y):
        expert = torch.arange(len(x.counts)).repeat_interleave(torch.tensor(x.counts))
        return y + expert[:, None] + x.rows.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Replaces(Act):
    matrices: tuple

    def stand_in(self):
        return self.matrices, None


RUNS = (RowRun(0, 1, 0, 9), RowRun(1, 3, 9, 10), RowRun(3, 4, 10, 33))


@given(st.integers(1, 5), st.integers(1, 3), st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(0, 99))
def test_each_run_has_its_own_rows_in_the_order_of_the_experts(experts, count, lengths, seed):
    tokens, generator = sum(lengths), torch.Generator().manual_seed(seed)
    chosen = (
        torch.stack(
            [torch.randperm(max(experts, count), generator=generator)[:count] for _ in range(tokens)]
            or [torch.zeros(count, dtype=torch.int64)]
        )[:tokens]
        % experts
    )
    ends = torch.tensor(lengths).cumsum(0).tolist()
    runs = [RowRun(i, i + 1, end - n, end) for i, (n, end) in enumerate(zip(lengths, ends, strict=True))]
    x = Routing(chosen, experts).gather(torch.arange(tokens)[:, None].double(), torch.ones(tokens, count))
    parts, order = x.apart(runs)
    for part, run in zip(parts, runs, strict=True):
        alone = Routing(chosen[run.token : run.token_end], experts)
        assert part.counts == alone.counts
        assert part.rows[:, 0].tolist() == (alone.tokens + run.token).tolist() == part.tokens.tolist()
    assert torch.equal(torch.cat([part.rows for part in parts]), x.rows[order])


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("place", ["experts_in", "experts_out"])
def test_acts_of_some_rows_act_on_the_experts_rows_of_these(count, place):
    model = made(config(experts_per_token=count))
    block, bare = model.layers[1], model.bare[1]
    x = torch.randn(33, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    own = tuple(None if e == 1 else block.get_submodule(place).of(e) * (e + 2) for e in range(4))
    kinds = [Enters(), Adds(), Replaces(own), None]
    alone = {kind: block.experts(x, bare._replace(**{place: kind})) for kind in kinds}
    assert len({float(y.sum()) for y in alone.values()}) == 4
    for parts in (kinds[:3], kinds[1:], (kinds[3], kinds[1], kinds[3])):
        got = block.experts(x, bare._replace(**{place: MixedAct(tuple(parts), RUNS)}))
        want = torch.cat([alone[part][run.token : run.token_end] for part, run in zip(parts, RUNS, strict=True)])
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
