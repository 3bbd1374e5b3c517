"""A family that the package has never seen runs, adapts, saves, quantises and merges without an edit in it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import bounds
import numpy as np
import pytest
import tiny
import tiny_tokenizers
import torch
from safetensors.torch import load_file, save_file
from toy_family import EXPERTS, VISION, ToyConfig, logits_of

from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.adapters.mixed import Mixed
from halter.contract.registry import names
from halter.errors import Refusal
from halter.export.merge import merge
from halter.files.checkpoint import open_checkpoint
from halter.methods.lora import Lora
from halter.model import families
from halter.model.cache import Cache
from halter.model.layout import LINEAR
from halter.model.linear import Linear
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.planning.dry import base_bytes, dry_adapter, dry_base
from halter.planning.trace import training_pass
from halter.pretrained.digest import digest_model
from halter.pretrained.load import load_config, load_model
from halter.pretrained.save import save_model
from halter.run import checks_data, untrained_ends
from halter.text.tokenizer import Tokenizer
from halter.training.step import Learnt, one_pass

CONFIG = ToyConfig(
    layers=4,
    dim=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn_dim=48,
    vocab_size=96,
    context=256,
    bos_token_id=1,
    eos_token_ids=(2,),
)
G = torch.Generator().manual_seed(0)
LENGTHS = [7, 5, 9]
ROWS = [torch.randint(3, 96, (n,), generator=G) for n in LENGTHS]
PICTURES = [torch.randn(4, CONFIG.vision_dim, generator=G), None, torch.randn(6, CONFIG.vision_dim, generator=G)]

FREQUENCIES = {"rtol": 1e-5, "atol": 1e-6}  # which are float32


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "toy", ToyConfig.of_toy)


def toy(dtype=torch.float64, seed=0):
    return tiny.decoder(CONFIG, dtype, seed)


def state_of(model):
    return {name: getattr(module, buffer).clone() for name, module, buffer in model.tensors()}


def rows_of(lengths=LENGTHS, pictures=PICTURES, device="cpu"):
    return replace(Segments.packed(lengths, device), features=pictures)


def logits(model, adapter=None, pictures=PICTURES, checkpointing=False):
    segments = rows_of(pictures=pictures)
    acts = None if adapter is None else adapter.bind(model, segments)
    asked = Pass(torch.cat(ROWS), segments, acts, checkpointing=checkpointing)
    return model.head(model.hidden(asked), acts).split(LENGTHS)


def moved(model, seed=1, **options):
    adapter = adapt(model, "lora", seed=seed, **({"r": 2, "alpha": 6.0} | options))
    tiny.jitter(adapter, seed=seed)
    return adapter


def folded(model, adapter):
    """The state dict with s B A in the weights, by the formula."""
    state = state_of(model)
    for slot in adapter.slots:
        a, b = (getattr(slot.piece, name).detach().double() for name in ("a", "b"))
        state[f"{slot.path}.weight"] += 6.0 / 2 * b @ a
    return state


def expected(state):
    return [logits_of(CONFIG, state, row, picture) for row, picture in zip(ROWS, PICTURES, strict=True)]


def same(got, want, **tolerance):
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.double(), other.double(), **(tolerance or FREQUENCIES))


@torch.no_grad()
def test_it_computes_what_its_weights_say():
    model = toy()
    same(logits(model), expected(state_of(model)))
    without = [logits_of(CONFIG, state_of(model), row) for row in ROWS]
    same(logits(model, pictures=None), without)
    assert float((without[0] - expected(state_of(model))[0]).abs().max()) > 1e-3  # the pictures are seen
    same(logits(model, pictures=[None] * 3), without)


def test_its_places_have_names_of_their_own_and_a_count():
    names_of = list(toy().expected())
    assert all(name.startswith(("language.", "vision.")) for name in names_of)
    assert "language.blocks.1.mlp.experts.into" in names_of and "vision.1.fc2.weight" in names_of
    assert CONFIG.num_parameters == sum(tensor.numel() for tensor in state_of(toy()).values())


@torch.no_grad()
def test_token_by_token_is_the_whole_row():
    model = toy()
    cache = Cache(CONFIG, 3, 4, torch.float64)
    cache.grow(9)
    firsts = [3, 2, 4]
    heads = torch.cat([row[:n] for row, n in zip(ROWS, firsts, strict=True)])
    segments = replace(cache.segments(firsts), features=PICTURES)
    got = [[part] for part in model.head(model.hidden(Pass(heads, segments, cache=cache))).split(firsts)]
    for at in range(2, 9):
        live = [r for r in range(3) if firsts[r] <= at < LENGTHS[r]]
        if live:
            new = torch.stack([ROWS[r][at] for r in live])
            step = model.head(model.hidden(Pass(new, cache.segments([1] * len(live), rows=live), cache=cache)))
            for r, one in zip(live, step, strict=True):
                got[r].append(one[None])
    same([torch.cat(parts) for parts in got], expected(state_of(model)))
    cache.copy(0, [1], 3)  # a row that goes on from another's beginning has seen its picture
    again = torch.cat((ROWS[0][:3], ROWS[1][:1]))
    step = model.head(model.hidden(Pass(ROWS[1][:1], cache.segments([1], rows=[1]), cache=cache)))
    same([step[0]], [logits_of(CONFIG, state_of(model), again, PICTURES[0])[-1]])


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2, 3, 4])  # each kind of block as the last one
def test_only_what_is_wanted_leaves_the_last_layer(layers):
    model = tiny.decoder(replace(CONFIG, layers=layers), torch.float64)
    wanted = torch.tensor([2, 6, 11, 20])
    whole = torch.cat(logits(model))
    part = model.head(model.hidden(Pass(torch.cat(ROWS), rows_of(), wanted=wanted)))
    same([part], [whole[wanted]])


def test_lora_on_every_linear_layer_of_every_kind_of_block():
    model = toy()
    adapter = moved(model)
    adapted = {slot.path for slot in adapter.slots}
    assert adapted == {place.path for place in CONFIG.layout if place.kind == LINEAR}
    assert {"vision.0.fc1", "language.blocks.2.cross.k_proj", "language.blocks.1.mlp.router"} < adapted
    assert adapter.num_trainable == sum(2 * sum(place.shape) for place in CONFIG.layout.of(LINEAR))
    with torch.no_grad():
        same(logits(model, adapter), expected(folded(model, adapter)), rtol=1e-5, atol=1e-5)
    before = digest_model(model)
    grads = []
    for checkpointing in (False, True):
        adapter.zero_grad()
        torch.cat(logits(model, adapter, checkpointing=checkpointing)).square().mean().backward()
        grads.append([parameter.grad.clone() for parameter in adapter.parameters()])
        assert all(grad.abs().max() > 0 for grad in grads[-1])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True)) and digest_model(model) == before


def test_a_step_learns_where_the_rows_bring_pictures():
    model = toy()
    adapter = moved(model)
    tokens, segments = torch.cat(ROWS), rows_of()
    index = torch.arange(len(tokens) - 1)
    learnt = Learnt(index, tokens[1:], torch.ones(len(index)))
    each = one_pass(model, tokens, segments, adapter.bind(model, segments), learnt, checkpointing=True)
    whole = torch.cat(logits(model, adapter)).log_softmax(-1)
    want = -whole[index, tokens[1:]]
    torch.testing.assert_close(each.double(), want.detach().double(), rtol=1e-5, atol=1e-5)
    got = [parameter.grad for parameter in adapter.parameters()]
    for one, other in zip(got, torch.autograd.grad(want.sum(), list(adapter.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@torch.no_grad()
def test_an_adapter_is_saved_and_read(tmp_path):
    model = toy()
    adapter = moved(model)
    adapter.save(tmp_path / "a")
    again = load_adapter(tmp_path / "a", model)
    assert all(torch.equal(x, y) for x, y in zip(logits(model, adapter), logits(model, again), strict=True))


@torch.no_grad()
def test_the_model_is_saved_read_and_merged(tmp_path):
    model = toy(torch.float32)
    save_model(model, CONFIG, tmp_path / "base")
    assert load_config(tmp_path / "base") == CONFIG
    read = load_model(tmp_path / "base", "float32", device="cpu")
    assert all(torch.equal(x, y) for x, y in zip(logits(model), logits(read), strict=True))
    adapter = moved(read)
    merge(read, adapter, tmp_path / "merged")
    merged = load_model(tmp_path / "merged", "float32", device="cpu")
    for got, want in zip(logits(merged), logits(read, adapter), strict=True):
        bounds.assert_same(got, want)


@torch.no_grad()
def test_in_4_bits_its_linear_layers_are_quantised_and_nothing_else(tmp_path):
    save_model(toy(torch.float32), CONFIG, tmp_path / "base")
    small = load_model(tmp_path / "base", "float32", "nf4", "cpu")
    held = {place.path for place, module in small.places() if isinstance(module, Linear) and module.storage == "nf4"}
    assert held == {place.path for place in CONFIG.layout.of(LINEAR)}
    assert base_bytes(small) == base_bytes(dry_base(CONFIG, torch.float32, "nf4"))
    dequantised = {place.weight_name: module.weight().double() for place, module in small.places()}
    same(logits(small), expected(dequantised), rtol=1e-4, atol=1e-4)
    adapter = moved(small)
    assert all(part.isfinite().all() for part in logits(small, adapter))


def test_the_plan_counts_it():
    assert dry_adapter(CONFIG, [Lora(r=2)]).num_trainable == moved(toy()).num_trainable
    assert base_bytes(dry_base(CONFIG, torch.float32, None)).total == 4 * CONFIG.num_parameters
    base, adapter = dry_base(CONFIG, torch.float32, None), dry_adapter(CONFIG, [Lora(r=2)])
    assert training_pass(base, adapter, 2, 16, False).operations > 0


@torch.no_grad()
def test_rows_of_one_batch_have_their_own_adapters():
    model = toy()
    one, other = moved(model, 1), moved(model, 2, r=3, alpha=9.0)
    for owners in ([0, 1, -1], [1, 0, 0], [-1, -1, 1]):
        got = logits(model, Mixed([one, other], owners))
        alone = [logits(model, {0: one, 1: other, -1: None}[owner])[row] for row, owner in enumerate(owners)]
        same(got, alone)


def test_streamed_and_computed_again_it_has_the_same_gradients():
    resident, streamed = toy(), toy()
    streamed.stream_layers()
    grads = []
    for model in (resident, streamed):
        adapter = moved(model)
        torch.cat(logits(model, adapter, checkpointing=model is streamed)).square().mean().backward()
        grads.append([parameter.grad for parameter in adapter.parameters()])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", names())
def test_every_method_acts_or_says_where_it_cannot(name):
    """On every kind of block; an untrained one that starts as the base is the base."""
    model = toy(torch.float32)
    try:
        adapter = adapt(model, name)
    except Refusal as refusal:
        assert refusal.id == "no-such-place" and refusal.found and f"{name} acts" in str(refusal)
        return
    assert all(slot.at.kind != EXPERTS for slot in adapter.slots)
    with torch.no_grad():
        got = logits(model, adapter)
        if adapter.methods[0].starts_as_base:
            for one, other in zip(got, logits(model), strict=True):
                bounds.assert_same(one, other)
        tiny.jitter(adapter)
        changed = torch.cat(logits(model, adapter)) - torch.cat(logits(model))
    # who has tokens for pictures leaves rows of text as they are
    assert changed.isfinite().all() and bool(changed.abs().max() > 0) is not bool(adapter.methods[0].picture_tokens)


def test_the_second_stack_is_seen_by_what_is_bound_there():
    model, seen = toy(), []
    adapter = moved(model)
    for slot in adapter.slots:
        if slot.at.rows == VISION:
            slot.piece.bind = lambda site, bind=slot.piece.bind: (seen.append(site), bind(site))[1]
    logits(model, adapter)
    assert len(seen) == 6 and all(site.segments.query_lengths.tolist() == [4, 0, 6] for site in seen)


@torch.no_grad()
def test_tied_its_head_need_not_be_stored_and_may_be(tmp_path):
    """Under the family's own names; a head that is another matrix is refused."""
    tied = replace(CONFIG, tied=True)
    model = tiny.decoder(tied, torch.float32)
    save_model(model, tied, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    stored = load_file(file)
    assert "language.unembed.weight" not in stored
    head = stored["language.wte.weight"].clone()
    save_file(stored | {"language.unembed.weight": head}, file)
    read = load_model(tmp_path / "base", "float32", device="cpu")
    assert all(torch.equal(x, y) for x, y in zip(logits(model), logits(read), strict=True))
    save_file(stored | {"language.unembed.weight": head + 1}, file)
    with pytest.raises(Refusal) as caught:
        load_model(tmp_path / "base", "float32", device="cpu")
    assert caught.value.found == (
        "language.unembed.weight differs from language.wte.weight, and tie_word_embeddings says they are one",
    )


@torch.no_grad()
def test_tokens_that_it_was_never_trained_on_are_seen_under_its_own_names(tmp_path):
    tokenizer = Tokenizer.from_folder(tiny_tokenizers.llama3(tmp_path / "tokens"))
    shape = replace(CONFIG, vocab_size=tokenizer.vocab_size)
    model = tiny.decoder(shape, torch.float32)
    header, end = (tokenizer.token_id(f"<|{name}|>") for name in ("start_header_id", "eot_id"))
    model.module(None, "embed_tokens").weight()[header] = 0
    model.module(None, "lm_head").weight()[[end, *range(300, 320)]] = 0
    save_model(model, shape, tmp_path / "base")
    learnt = np.zeros(shape.vocab_size, bool)
    learnt[end] = True
    found = checks_data.Scan(learnt, learnt, [], [], 1)
    checkpoint = open_checkpoint(tmp_path / "base")
    (refusal,) = checks_data.untrained_tokens(checkpoint, shape, tokenizer, [header, end], found, None)
    checkpoint.close()
    told = dict(zip(("<|start_header_id|>", "<|eot_id|>"), ("language.wte.weight", "language.unembed.weight")))
    assert len(refusal.found) == 2 and all(
        any(f"{n} (" in one and at in one for one in refusal.found) for n, at in told.items()
    )
    job = SimpleNamespace(config=shape, folder=tmp_path / "base")
    assert untrained_ends._alike(job, [end])[end] > untrained_ends.SEVERAL


@torch.no_grad()
def test_copies_of_its_vocabulary_in_an_adapter_folder_are_left_out(tmp_path):
    """As PEFT files them along; other numbers than the base's are refused."""
    model = toy(torch.float32)
    adapter = moved(model)
    adapter.save(tmp_path / "a")
    for name in ("halter.json", "manifest.json"):
        (tmp_path / "a" / name).unlink()
    file = tmp_path / "a" / "adapter_model.safetensors"
    state, stored = state_of(model), load_file(file)
    tables = {f"base_model.model.{n}": state[n] for n in ("language.wte.weight", "language.unembed.weight")}
    save_file(stored | tables, file)
    again = load_adapter(tmp_path / "a", model)
    assert all(torch.equal(x, y) for x, y in zip(logits(model, adapter), logits(model, again), strict=True))
    save_file(stored | {name: tensor + 1 for name, tensor in tables.items()}, file)
    with pytest.raises(Refusal) as caught:
        load_adapter(tmp_path / "a", model)
    assert sorted(caught.value.found) == [
        "language.unembed.weight differs from the base's",
        "language.wte.weight differs from the base's",
    ]
