"""Compiled is eager, layer by layer as one graph, and neither a second adapter nor other lengths make a new one.

Graphs are counted with a backend that runs them as they are, so no compiler is needed.
"""

from __future__ import annotations

import bounds
import pytest
import sighted
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.model.dense import Block
from halter.model.passes import Pass

LENGTHS = ([9, 14, 5], [9, 14, 5], [7, 3], [4, 8, 2, 11])
OWNERS = (0, 1, 0, 1)


def forward(model, adapter, lengths):
    g = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.randint(0, 96, (sum(lengths),), generator=g)
    # Where all of a row sees its picture a layer's tokens are cut by pictures, of which each cut is a graph of its own.
    sight = adapter.sight if adapter is not None and adapter.sight is not None and adapter.sight.tokens else None
    rows = sighted.rows_of(sight, [one.tolist() for one in tokens.split(lengths)], (0, 1))
    counts = [len(row.tokens) for row in rows]
    segments = sighted.segments_of(model, rows, [adapter] * len(rows), [(n + 1) // 2 for n in counts])
    acts = None if adapter is None else adapter.bind(model, segments)
    return model.hidden(Pass(sighted.tokens_of(rows), segments, acts))


AT_ONCE = {None, "bottleneck", "dora", "ia3", "llama_adapter", "llama_adapter_v2+sight", "lora", "loreft"}
"""One of each way to act; the others nightly."""


@pytest.mark.parametrize(
    "name",
    [name if name in AT_ONCE else pytest.param(name, marks=pytest.mark.nightly) for name in (None, *sighted.CASES)],
)
def test_compiled_is_eager_with_no_new_graph(name, monkeypatch):
    torch._dynamo.reset()
    graphs = []

    def counting(module, inputs):
        graphs.append(module)
        return module.forward

    model = tiny.decoder()
    pair = [None if name is None else adapt(model, sighted.method_of(name), seed=seed) for seed in (0, 1)]
    for adapter in pair:
        if adapter is not None:
            tiny.jitter(adapter)
    cases = [(pair[owner], lengths) for owner, lengths in zip(OWNERS, LENGTHS, strict=True)]
    wanted = [forward(model, *case) for case in cases]
    compiled = torch.compile(Block.forward, backend=counting, dynamic=True, fullgraph=True)
    monkeypatch.setattr(Block, "forward", compiled)
    counts = []
    for case, want in zip(cases, wanted, strict=True):
        got = forward(model, *case)
        bounds.assert_same(got, want)
        counts.append(len(graphs))
        if name is not None:  # the compiled graphs differentiate as the eager ones do
            parameters = list(case[0].parameters())
            pairs = [torch.autograd.grad(y.square().sum(), parameters, allow_unused=True) for y in (got, want)]
            for mine, theirs in zip(*pairs, strict=True):
                assert (mine is None) == (theirs is None)
                if mine is not None:
                    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()) + 1e-7)
    assert counts[0] in (1, 2) and set(counts) == {counts[0]}  # the first layer's input may need no gradient
