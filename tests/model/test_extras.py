"""Memory and virtual tokens, as toy methods that bring nothing else, against transformers' cache and inputs_embeds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import bounds
import pytest
import tiny
import torch
from torch import nn

from halter.adapters.adapter import Adapter, adapt
from halter.adapters.mixed import Mixed
from halter.contract.method import Method, Piece
from halter.model.cache import Cache
from halter.model.layout import MEMORY, VIRTUAL
from halter.model.passes import Pass
from halter.model.places import Extra
from halter.model.segments import Segments

K = 5


class KeysAndValues(Piece):
    saved_names = {"keys": "keys", "values": "values"}

    def __init__(self, kv_heads, head_dim):
        super().__init__()
        self.keys, self.values = (nn.Parameter(torch.zeros(K, kv_heads, head_dim)) for _ in range(2))

    def reset(self, generator):
        for p in self.parameters():
            nn.init.normal_(p, generator=generator)

    def bind(self, site):
        return Extra((self.keys.to(site.dtype), self.values.to(site.dtype)))


class Words(Piece):
    saved_names = {"words": "words"}
    length = K

    def __init__(self, dim):
        super().__init__()
        self.words = nn.Parameter(torch.zeros(K, dim))

    def reset(self, generator):
        nn.init.normal_(self.words, generator=generator)

    def bind(self, site):
        return Extra((self.words.to(site.dtype),))


@dataclass(frozen=True)
class Remember(Method):
    layers: tuple[int, ...] = (0, 1, 2)

    def build(self, shape, layer):
        return {MEMORY: KeysAndValues(shape.kv_heads, shape.head_dim)} if layer in self.layers else {}


@dataclass(frozen=True)
class Say(Method):
    def build(self, shape, layer):
        return {VIRTUAL: Words(shape.dim)} if layer is None else {}


@pytest.fixture(scope="module")
def model():
    return tiny.decoder(tiny.config(layers=3))


TOKENS = torch.randint(0, 96, (2, 11), generator=torch.Generator().manual_seed(0))


def wanted(model, adapter):
    """Logits [2, 11, V] by transformers."""
    from transformers import DynamicCache

    peer = tiny.peer(model)
    pieces = {(slot.layer, slot.place): slot.piece for slot in adapter.slots}
    if (None, VIRTUAL) in pieces:
        words = pieces[None, VIRTUAL].words.expand(2, K, -1)
        return peer(inputs_embeds=torch.cat((words, peer.get_input_embeddings()(TOKENS)), 1)).logits[:, K:]
    cache = DynamicCache()
    for layer in range(3):
        heads = (
            t.transpose(0, 1).expand(2, -1, -1, -1) for t in (pieces[layer, MEMORY].keys, pieces[layer, MEMORY].values)
        )
        cache.update(*heads, layer)
    return peer(TOKENS, past_key_values=cache, attention_mask=torch.ones(2, K + 11)).logits


@pytest.mark.parametrize("method", [Remember(), Say()])
def test_logits_equal_transformers(model, method):
    adapter = Adapter(model.config, [method])
    with torch.no_grad():
        got, want, base = model(TOKENS, adapter), wanted(model, adapter), model(TOKENS)
    bounds.assert_same(got, want)
    assert float((got - base).abs().max()) > 0.1


def mixed(model):
    adapters = [Adapter(model.config, [m]) for m in (Remember(), Say(), Remember((1,)))]
    adapters.append(Adapter(model.config, [Say(), Remember()], seed=3))
    adapters.append(adapt(model, "lora", r=2))
    tiny.jitter(adapters[-1])
    return adapters


def test_neighbours_of_every_kind_equal_each_alone_cached_or_not(model):
    """One batch: memory in all layers, virtual tokens, memory in one layer, both, LoRA, the base; decoded in pieces."""
    adapters = mixed(model)
    owners = [0, 0, 1, 2, 3, 4, -1, 1]
    rows = [torch.randint(0, 96, (n,), generator=torch.Generator().manual_seed(n)) for n in (9, 4, 7, 12, 3, 8, 6, 5)]
    binder = Mixed(adapters, owners)
    with torch.no_grad():
        want = [
            model(row[None], None if owner < 0 else adapters[owner])[0] for row, owner in zip(rows, owners, strict=True)
        ]
        segments = Segments.packed([len(row) for row in rows])
        acts = binder.bind(model, segments)
        together = model.head(model.hidden(Pass(torch.cat(rows), segments, acts)), acts)
        bounds.assert_same(together, torch.cat(want))
        some = torch.tensor([3, 8, 12, 18, 33, 40, 53])
        part = model.hidden(Pass(torch.cat(rows), segments, acts, wanted=some))
        bounds.assert_same(part, model.hidden(Pass(torch.cat(rows), segments, acts))[some])
        cache = Cache(model.config, len(rows), 4, torch.float32)  # too small for virtual tokens: it must grow
        found = [[] for _ in rows]
        for step in range(11):
            live = [i for i, row in enumerate(rows) if step < max(1, len(row) - 1)]
            pieces = [rows[i][:2] if step == 0 else rows[i][step + 1 : step + 2] for i in live]
            longest = max(cache.lengths[i] + len(p) for i, p in zip(live, pieces, strict=True))
            if longest > cache.capacity:
                cache.grow(longest)
            segments = cache.segments([len(p) for p in pieces], live)
            acts = Mixed(adapters, [owners[i] for i in live]).bind(model, segments)
            logits = model.head(model.hidden(Pass(torch.cat(pieces), segments, acts, cache)), acts)
            for i, new in zip(live, logits.split([len(p) for p in pieces]), strict=True):
                found[i].append(new)
    for i, whole in enumerate(want):
        bounds.assert_same(torch.cat(found[i]), whole)


@pytest.mark.parametrize("method", [Remember(), Say(), Remember((1,))])
def test_every_vector_learns(model, method):
    adapter = Adapter(model.config, [method])
    model(TOKENS, adapter).square().mean().backward()
    for name, parameter in adapter.trainable().items():
        assert parameter.grad is not None and parameter.grad.flatten(1).norm(dim=1).min() > 0, name


def test_virtual_tokens_lie_ahead_of_a_row_that_begins_and_count_in_every_prompt():
    """A row that begins, one of which a later piece comes, and one whose prompt nobody knows."""
    begins = Segments.packed([4, 5, 3], prompt_lengths=[3, 6, 0])
    held = torch.tensor([4, 9, 3])  # the second has four keys already
    longer, given = replace(begins, key_lengths=held).with_virtual(torch.tensor([2, 3, 1]))
    assert longer.query_lengths.tolist() == [6, 5, 4] and longer.key_lengths.tolist() == [6, 9, 4]
    assert longer.prompt_lengths.tolist() == [5, 9, 0]
    assert longer.positions.tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 0, 1, 2, 3]
    assert given.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14]
