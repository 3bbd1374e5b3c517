"""Laws of every method that sees: whose picture counts for whom, wherever and with whatever it is computed.

No method is named here; those of test_laws.py hold of them too.
"""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import bounds
import numpy as np
import pytest
import sighted
import tiny
import tiny_tokenizers
import torch
from cases import batch, fresh, trainee

import halter
from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.contract.registry import find
from halter.data.pack import pack
from halter.data.share import share_beginnings
from halter.errors import Refusal
from halter.generation.beginnings import SHORTEST
from halter.generation.engine import Engine
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.generation.requests import Request
from halter.model.decoder import Decoder
from halter.model.layout import LINEAR
from halter.model.passes import Pass
from halter.model.storages import quantised
from halter.text.tokenizer import Tokenizer
from halter.training.step import gather, take_step

every_seeing = pytest.mark.parametrize("name", sighted.SEEING)
WORDS = torch.randint(3, 96, (24,), generator=torch.Generator().manual_seed(11)).tolist()
HEAD = 18
"""Words ahead of the picture: enough to be shared."""
OWN = [[7, 8, 9], [10, 11], [12, 13, 14, 15]]


def pictured(adapter, shown, at=sighted.AT, tokens=WORDS):
    """One row of the same words for each picture; None: without one."""
    sight = None if adapter is None else adapter.sight
    return [sighted.row(tokens, [n > at for n in range(len(tokens))], sight, one, at) for one in shown]


@torch.no_grad()
@every_seeing
def test_features_in_8_bits_are_those_in_32_rounded(name):
    model = tiny.decoder(dtype=torch.float64)
    method = sighted.method_of(name)
    whole, short = (adapt(model, replace(method, encoder_bits=bits), seed=0) for bits in (None, 8))
    for adapter in (whole, short):
        tiny.jitter(adapter, seed=1)
    rows = pictured(whole, (None, 0, 1, 2))
    segments = sighted.segments_of(model, rows, [whole] * len(rows))

    def rounded(features):
        scale = features.abs().amax(-1, keepdim=True) / 127
        return (features / scale).round() * scale

    seen = [row and tuple(replace(one, features={k: rounded(f) for k, f in one.features.items()}) for one in row)
            for row in segments.features]  # fmt: skip
    assert sum(row is not None for row in seen) == 3
    segments.__dict__["features"] = seen
    acts = whole.bind(model, segments)
    wanted = model.head(model.hidden(Pass(sighted.tokens_of(rows), segments, acts)), acts)
    found = torch.cat(sighted.logits(model, short, pictured(short, (None, 0, 1, 2))))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert float((found - torch.cat(sighted.logits(model, whole, rows))).abs().max()) > 1e-5


@torch.no_grad()
@every_seeing
def test_a_picture_changes_what_its_row_says_and_goes_with_it(name):
    model = tiny.decoder()
    adapter = fresh(name, model)
    rows = pictured(adapter, (None, 0, 1, 2, 0))
    found = sighted.logits(model, adapter, rows)
    last = torch.stack([one[-1] for one in found])
    apart = (last[:4, None] - last[None, :4]).abs().amax(-1)
    assert float((apart + torch.eye(4)).min()) > 1e-4, "some two of no picture and three pictures look alike"
    bounds.assert_same(found[4], found[1])
    order = (3, 0, 4, 2, 1)
    shuffled = [replace(rows[n], pictures=rows[n].pictures) for n in order]
    for n, one in zip(order, sighted.logits(model, adapter, shuffled), strict=True):
        bounds.assert_same(one, found[n])
    swapped = [replace(rows[1], pictures=rows[2].pictures), replace(rows[2], pictures=rows[1].pictures)]
    for n, one in zip((2, 1), sighted.logits(model, adapter, swapped), strict=True):
        bounds.assert_same(one, found[n])


@torch.no_grad()
@every_seeing
def test_what_is_seen_does_not_come_from_words_behind(name):
    """Causal as ever: other words behind a picture change nothing ahead of them."""
    model = tiny.decoder()
    adapter = fresh(name, model)
    rows = [pictured(adapter, [0], tokens=one)[0] for one in (WORDS, [*WORDS[:20], 1, 2, 3, 4])]
    one, other = sighted.logits(model, adapter, rows)
    same = len(rows[0].tokens) - 4
    bounds.assert_same(one[:same], other[:same])
    assert float((one[same:] - other[same:]).abs().max()) > 1e-4


@every_seeing
def test_beginnings_are_shared_by_rows_of_equal_pictures_alone(name):
    """In training: what is shared, and that the gradient is that of each row alone."""
    model = tiny.decoder(dtype=torch.float64)
    adapter = fresh(name, model).to(torch.float64)
    shown = (0, 1, 0, None, None, 2)
    words = [[*WORDS[:HEAD], 5, *own] for own in OWN * 2]
    rows = [pictured(adapter, [one], tokens=own)[0] for one, own in zip(shown, words, strict=True)]
    rows = [replace(row, supervised=np.arange(len(row.tokens)) >= len(row.tokens) - 2) for row in rows]
    whole = pack(rows)
    shared = share_beginnings(whole)
    partners = {}
    for number, before in zip(shared.rows, shared.continues, strict=True):
        if number >= 0 and before is not None:
            partners.setdefault(before, set()).add(number)
    together = sorted(map(sorted, partners.values()))
    tokens = adapter.sight.tokens
    assert together == [[0, 2], [3, 4]]
    for before, own in partners.items():
        ahead = shared.pictures[before]
        assert not tokens or not ahead or len({shown[number] for number in own}) == 1
    gradients = []
    for passes in ([[whole]], [[shared]], [[whole.select([n])] for n in range(len(rows))]):
        adapter.zero_grad()
        gather(model, [trainee(adapter)], passes)
        gradients.append(torch.cat([p.grad.flatten() for p in adapter.trainable().values()]))
    for other in gradients[1:]:
        assert float((other - gradients[0]).norm() / gradients[0].norm()) < 1e-6  # a softmax is in float32


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(tiny_tokenizers.llama3(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def wide(tokenizer):
    return tiny.decoder(tiny.config(vocab_size=tokenizer.vocab_size), torch.float64)


def asked(row):
    return EncodedPrompt(tuple(row.tokens.tolist()), True, pictures=row.pictures)


def told_as_alone(model, rows, owners, engine, count=3):
    """Whatever the engine says of its answers is what each row says by itself in a pass without a cache."""
    options = GenerationOptions(max_new_tokens=count, ignore_stop_ids=True, logprobs=0)
    requests = [Request(asked(row), options, own) for row, own in zip(rows, owners, strict=True)]
    ended = {piece.row: piece.result for piece in engine.run(requests) if piece.result is not None}
    found = [ended[row] for row in sorted(ended)]
    for number, (row, own) in enumerate(zip(rows, owners, strict=True)):
        said = list(found[number].tokens)
        whole = replace(row, tokens=np.array([*row.tokens, *said], np.int32))
        alone = sighted.logits(model, own, [whole])[0][-1 - count : -1].log_softmax(-1)
        told = torch.tensor([one.logprob for one in found[number].logprobs], dtype=torch.float64)
        torch.testing.assert_close(told, alone[torch.arange(count), said].double(), atol=1e-5, rtol=0)


@torch.no_grad()
@every_seeing
@pytest.mark.parametrize("tokens", [7, 1000])
def test_answers_step_by_step_are_those_of_each_row_alone(name, tokens, wide, tokenizer):
    """Two adapters and the base, blind rows and seeing ones; prompts in pieces that cut a picture's tokens, and whole.
    Twice by one engine: what was bound for some pictures is not used for others."""
    one, other = fresh(name, wide), fresh(name, wide, seed=5)
    owners = [one, one, None, other, one, one, other]
    rows = [pictured(own, [n], HEAD)[0] for own, n in zip(owners, (0, 1, 2, 0, None, 0, 2), strict=True)]
    engine = Engine(wide, tokenizer, rows=len(rows), tokens=tokens)
    told_as_alone(wide, rows, owners, engine)
    again = [pictured(own, [n], HEAD)[0] for own, n in zip(owners, (1, 0, 0, 2, 1, None, 0), strict=True)]
    told_as_alone(wide, again, owners, engine)
    for picture in (0, 1, None):
        told_as_alone(wide, pictured(one, [picture]), [one], engine, 2)


@every_seeing
def test_prompts_share_beginnings_that_are_seen_alike(name, wide, tokenizer, monkeypatch):
    """Counted by the tokens that are computed."""
    adapter, fed, hidden = fresh(name, wide), [], Decoder.hidden
    monkeypatch.setattr(Decoder, "hidden", lambda self, one: fed.append(len(one.tokens)) or hidden(self, one))
    options = GenerationOptions(max_new_tokens=1)
    for second in (0, 1, None):
        rows = pictured(adapter, (0, second), HEAD)
        fed.clear()
        list(Engine(wide, tokenizer).run([Request(asked(row), options, adapter) for row in rows]))
        both = sum(len(row.tokens) for row in rows)
        if second == 0:
            shared = len(rows[0].tokens) - 1
        else:
            shared = HEAD if adapter.sight.tokens else 0
        assert shared == 0 or shared >= SHORTEST
        assert sum(fed) == both - shared


@every_seeing
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_over_a_base_in_few_bits(name, kind, tmp_path):
    """Trained, saved and loaded, beside rows of others; every tensor has moved."""
    model = tiny.decoder(tiny.config(dim=64, head_dim=16, ffn_dim=128))
    for place, module in list(model.places()):
        if place.layer is not None and place.kind == LINEAR:
            few = quantised(kind, module.weight(), getattr(module, "bias", None))
            setattr(model.layers[place.layer], place.name, few)
    adapter = fresh(name, model, moved=False)
    start = {k: p.detach().clone() for k, p in adapter.trainable().items()}
    one = trainee(adapter)
    for seed in range(3):
        assert take_step(model, [one], [[batch(adapter, seed=seed)]])[0].applied
    assert not [k for k, p in adapter.trainable().items() if torch.equal(p, start[k])]
    tiny.jitter(adapter)
    adapter.save(tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter", model)
    owners = [adapter, None, adapter, again, adapter]
    rows = [pictured(own, [n])[0] for own, n in zip(owners, (0, None, None, 1, 1), strict=True)]
    with torch.no_grad():
        mixed = sighted.logits(model, owners, rows)
        for own, row, found in zip(owners, rows, mixed, strict=True):
            bounds.assert_same(found, sighted.logits(model, own, [row])[0])
        assert torch.equal(*(sighted.logits(model, own, rows[:1])[0] for own in (adapter, again)))


@torch.no_grad()
@pytest.mark.parametrize("second", sighted.SEEING)
@every_seeing
def test_two_that_see_see_alike_or_are_refused(name, second):
    """As a list, and as a stack: both see from all of the row, or it is refused: one has a picture's tokens."""
    model = tiny.decoder()
    methods = [sighted.method_of(one) for one in (name, second)]
    parts = [fresh(name, model), fresh(second, model, seed=3)]
    if any(method.picture_tokens for method in methods):
        for wrong in (lambda: adapt(model, methods), lambda: halter.stack(parts).sight):
            with pytest.raises(Refusal, match="two-sights"):
                wrong()
        return
    both, stacked = adapt(model, methods), halter.stack(parts)
    for slot, own in zip(both.slots, [slot for part in parts for slot in part.slots], strict=True):
        slot.piece.load_state_dict(own.piece.state_dict())
    rows = pictured(both, (0, None, 1))
    found = sighted.logits(model, both, rows)
    for one, alike in zip(found, sighted.logits(model, stacked, rows), strict=True):
        assert torch.equal(one, alike)
    for part in parts:
        assert float((sighted.logits(model, part, rows)[0] - found[0]).abs().max()) > 1e-4
    mixed = sighted.logits(model, [both, both, stacked], rows)
    for one, alike in zip(found, mixed, strict=True):
        bounds.assert_same(alike, one)


@torch.no_grad()
@every_seeing
def test_beside_one_that_is_blind(name):
    """In a list, and stacked, with an adapter of another kind: the picture is seen by the one that sees."""
    model = tiny.decoder()
    parts = [fresh(name, model), fresh("lora", model, seed=3)]
    for order in (parts, parts[::-1]):
        stacked = halter.stack(order)
        assert stacked.sight == parts[0].sight
        rows = pictured(stacked, (0, 1, None, 0))
        found = sighted.logits(model, stacked, rows)
        assert float((found[0][-1] - found[1][-1]).abs().max()) > 1e-4
        for n, one in enumerate(found):
            bounds.assert_same(sighted.logits(model, stacked, rows[n : n + 1])[0], one)


@torch.no_grad()
@every_seeing
def test_an_adapter_whose_encoder_is_open_can_be_copied(name):
    model = tiny.decoder()
    adapter = fresh(name, model)
    rows = pictured(adapter, (0, None))
    wanted = sighted.logits(model, adapter, rows)
    for again in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert again.sight == adapter.sight
        assert all(map(torch.equal, sighted.logits(model, again, rows), wanted))


@every_seeing
def test_merging_is_refused_and_names_the_parts(name):
    adapter = fresh(name, tiny.decoder())
    stuck = adapter.unfoldable()
    visual = {
        slot.path
        for slot in adapter.slots
        if any(key.startswith(("visual", "key_", "value_", "second.visual")) for key in slot.piece.saved_names)
    }
    assert visual and stuck and not [path for path in visual if not any(path in line for line in stuck)], stuck
    with pytest.raises(Refusal, match="cannot-merge"):
        adapter.fold("model.layers.0.self_attn.q_proj", torch.zeros(32, 32), None)


def test_a_model_that_sees_takes_no_encoder():
    """Refusal of every method that would bring one."""
    import seeing

    for name in sighted.SEEING:
        with pytest.raises(Refusal, match="sees-already"):
            adapt(seeing.decoder(), sighted.method_of(name))
        with pytest.raises(Refusal, match="encoder-unread"):
            find(sighted.name_of(name))(encoder=sighted.NAMED).check(tiny.config())
