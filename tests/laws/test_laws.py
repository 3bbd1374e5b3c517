"""Laws that every file in halter/methods obeys. No method is named here: a new file is tested without an edit.

Methods that see are tested with rows of which some have pictures (sighted.py), and once more as they are when blind.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import bounds
import pytest
import sighted
import tiny
import torch
from cases import TOKENS, batch, every_method, fresh, logits, shown_to, trainee

from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.contract.registry import find, names
from halter.errors import Refusal
from halter.export.foldable import refuse_unfoldable
from halter.model.cache import Cache
from halter.model.decoder import Decoder
from halter.model.passes import Pass
from halter.pictures.seen import between, features
from halter.training.step import gather, take_step

every_shape = pytest.mark.parametrize(
    "sizes",
    [{}, {"kv_heads": 4}, {"kv_heads": 1, "tied": True}, {"attention_bias": True, "mlp_bias": True}, {"experts": 3}],
    ids=str,
)
KINDS = {"attention_bias": ".self_attn.", "mlp_bias": ".mlp."}


def digest(model):
    state = hashlib.sha256()
    for _, module, buffer in model.tensors():
        state.update(getattr(module, buffer).contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


@every_method
def test_what_pieces_share_they_share_after_a_move(name, tmp_path):
    """A move makes new tensors, as one to a GPU does; what was one is one afterwards, and its own file is read."""
    model = tiny.decoder()
    adapter = fresh(name, model)
    before = [tensor for tensor, *_ in adapter.named_tensors()]
    adapter.save(tmp_path / "a")
    adapter._apply(lambda tensor: tensor.clone())
    assert [tensor for tensor, *_ in adapter.named_tensors()] == before
    adapter.save(tmp_path / "b")
    for folder in ("a", "b"):
        again = load_adapter(tmp_path / folder, model)
        assert torch.equal(logits(model, again), logits(model, adapter))


def test_the_file_name_is_the_registry():
    files = {p.stem for p in Path(find("lora").__init__.__globals__["__file__"]).parent.glob("*.py")} - {"__init__"}
    assert files == set(names())
    for name in names():  # a configuration of PEFT's is read by one method at most, its own
        method = find(name)()
        config = {"peft_type": method.peft_type, **method.to_peft(tiny.config())}
        readers = [other for other in names() if find(other).reads(config)]
        assert readers == [name] or (readers == ["lora"] and not find(name).reads(config))


@every_method
def test_page_in_the_file(name):
    import inspect
    import sys

    module = sys.modules[type(sighted.method_of(name)).__module__]
    assert len(inspect.getsource(module).splitlines()) <= 260
    assert "y =" in (module.__doc__ or ""), "the formula stands in the file's docstring"


@every_method
@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_start_is_the_base(name, sizes, dtype):
    """Of rows in which a picture has tokens the start is what the picture makes of them."""
    model = tiny.decoder(tiny.config(**sizes), dtype)
    adapter = fresh(name, model, moved=False)
    rows = shown_to(adapter)
    with torch.no_grad():
        found = sighted.logits(model, adapter, rows)
        base = sighted.logits(model, None, rows)
    placed = [any(one.length for one in row.pictures) for row in rows]
    same = [torch.equal(mine, plain) for mine, plain in zip(found, base, strict=True)]
    assert same == [adapter.methods[0].starts_as_base and not here for here in placed]


@every_method
@every_shape
def test_everything_moves_and_the_base_does_not(name, sizes):
    """After a validation pass and three steps every trained tensor changed and had a gradient that is not zero."""
    model = tiny.decoder(tiny.config(**sizes))
    before = digest(model)
    adapter = fresh(name, model, moved=False)
    start = {k: p.detach().clone() for k, p in adapter.trainable().items()}
    with torch.no_grad():
        logits(model, adapter)
    one = trainee(adapter)
    for seed in range(3):
        record = take_step(model, [one], [[batch(adapter, seed=seed)]])[0]
        assert record.applied and record.grad_norm > 0
    still = [k for k, p in adapter.trainable().items() if torch.equal(p, start[k])]
    assert not still and start
    assert digest(model) == before
    assert not any(b.requires_grad or b.grad is not None for b in model.buffers())


@every_method
@every_shape
def test_saved_is_loaded_bit_for_bit(name, sizes, tmp_path):
    model = tiny.decoder(tiny.config(**sizes))
    adapter = fresh(name, model)
    adapter.save(tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter", model)
    assert again.methods == tuple(method.plain() for method in adapter.methods)
    with torch.no_grad():
        assert torch.equal(logits(model, again), logits(model, adapter))
        assert not torch.equal(logits(model, adapter), logits(model, None, adapter))
    with pytest.raises(Refusal, match="already-exists"):
        adapter.save(tmp_path / "adapter")


@every_method
def test_another_models_adapter_is_refused_with_all_names(name, tmp_path):
    other = {"dim": 48, "head_dim": 12, "ffn_dim": 64}
    fresh(name, tiny.decoder(tiny.config(**other))).save(tmp_path / "adapter")
    with pytest.raises(Refusal) as caught:
        load_adapter(tmp_path / "adapter", tiny.decoder())
    theirs, ours = (dict(shapes(fresh(name, tiny.decoder(tiny.config(**sizes))).plain())) for sizes in (other, {}))
    wrong = {key for key in ours if ours[key] != theirs[key]}
    assert caught.value.id == "adapter-mismatch" and wrong
    assert {wrong.split(" ")[0] for wrong in caught.value.found} == wrong


def shapes(adapter):
    return ((key, slot.tensor(attribute).shape) for key, slot, attribute in adapter.named_tensors())


@every_method
def test_cached_decoding_is_the_full_pass(name):
    model = tiny.decoder()
    adapter = fresh(name, model)
    rows = shown_to(adapter)
    lengths = [len(row.tokens) for row in rows]
    cache = Cache(model.config, len(rows), max(lengths), torch.float32)
    parts = [[] for _ in rows]
    with torch.no_grad():
        for start, end in (
            (0, 5),
            (5, 15),
            (15, 16),
            (16, max(lengths)),
        ):  # 5: within a picture that has tokens
            segments = cache.segments([min(end, n) - start for n in lengths])
            seen = [between(row.pictures, start, min(end, n)) for row, n in zip(rows, lengths, strict=True)]
            segments.__dict__["features"] = features(adapter.sight, seen)
            acts = adapter.bind(model, segments)
            tokens = torch.cat([torch.tensor(row.tokens[start:end], dtype=torch.int64) for row in rows])
            found = model.head(model.hidden(Pass(tokens, segments, acts, cache=cache)), acts)
            for part, one in zip(parts, found.split(segments.query_lengths.tolist()), strict=True):
                part.append(one)
        for part, want in zip(parts, sighted.logits(model, adapter, rows), strict=True):
            bounds.assert_same(torch.cat(part), want)


@every_method
@pytest.mark.parametrize("other", names())
def test_mixed_is_alone(name, other):
    """Rows of two methods and plain rows in one batch, in any order, equal each row alone; neighbours do not matter."""
    model = tiny.decoder()
    adapters = [fresh(name, model), fresh(other, model, seed=7)]
    tokens = torch.randint(0, 96, (6, 17), generator=torch.Generator().manual_seed(1)).tolist()
    owners = [adapters[1], None, adapters[0], adapters[0], None, adapters[1]]

    def laid(tokens):
        both = zip(owners, tokens, (1, None, 0, None, 2, 0), strict=True)
        return [sighted.rows_of(own and own.sight, [one], [picture])[0] for own, one, picture in both]

    with torch.no_grad():
        rows = laid(tokens)
        mixed = sighted.logits(model, owners, rows)
        for own, row, found in zip(owners, rows, mixed, strict=True):
            bounds.assert_same(found, sighted.logits(model, own, [row])[0])
        again = sighted.logits(model, owners, laid([*tokens[:5], tokens[5][::-1]]))
        assert all(torch.equal(one, two) for one, two in zip(again[:5], mixed[:5], strict=True))


@every_method
@every_shape
def test_folded_is_unfolded_or_refused(name, sizes):
    """The base with folded weights gives the adapter's logits within 1e-5 relative, or every place is named."""
    model = tiny.decoder(tiny.config(**sizes))
    adapter = fresh(name, model)
    if adapter.unfoldable():
        with pytest.raises(Refusal) as caught:
            adapter.fold("model.layers.0.self_attn.q_proj", torch.zeros(32, 32), None)
        assert caught.value.found == tuple(adapter.unfoldable())
        return
    folded: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        want = model(TOKENS, adapter=adapter)
        for place, module in model.places():
            if place == "lm_head" and model.config.tied:
                continue
            weight, bias = adapter.fold(place.path, module.weight().float(), getattr(module, "bias", None))
            if bias is not None and not place.bias_option:  # which no checkpoint has room for
                with pytest.raises(Refusal, match="cannot-merge"):
                    refuse_unfoldable(adapter)
                return
            folded[place.weight_name] = weight
            if bias is not None:
                folded[f"{place.path}.bias"] = bias
        biased = {kind: any(part in name and name.endswith(".bias") for name in folded) for kind, part in KINDS.items()}
        after = Decoder(replace(model.config, **biased))  # a fold may bring biases that the base does not have
        for name, shape in after.expected().items():
            after.set_tensor(name, folded.get(name, torch.zeros(shape)))
        bounds.assert_same(after(TOKENS), want)


@every_method
@pytest.mark.parametrize("dtype,bound", [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=str)
def test_accumulation_is_the_whole_batch(name, dtype, bound):
    """16 rows as 1 x 16, 4 x 4 and 16 x 1: norm-relative difference of the whole gradient."""
    model = tiny.decoder(dtype=dtype)
    lengths = [2 + 3 * i for i in range(16)]
    gradients = []
    for parts in (1, 4, 16):
        adapter = fresh(name, model).to(dtype)
        whole = batch(adapter, lengths)
        passes = [[whole.select(range(at, at + 16 // parts))] for at in range(0, 16, 16 // parts)]
        made = gather(model, [trainee(adapter)], passes)
        assert made.targets == [int((whole.targets != -100).sum())]
        gradients.append(torch.cat([p.grad.flatten() for p in adapter.trainable().values()]))
    for other in gradients[1:]:
        assert float((other - gradients[0]).norm() / gradients[0].norm()) < bound


@every_method
def test_several_trainees_over_one_base_are_each_alone(name):
    """Two adapters trained together (one mixed batch a step) move as each does alone; in float64, where a gradient that
    nearly cancels still has the sign that AdamW makes a step of."""
    model = tiny.decoder(dtype=torch.float64)
    together = [trainee(fresh(name, model, seed=s)) for s in (0, 4)]
    data = [batch(together[0].adapter, seed=1), batch(together[1].adapter, (6, 3), seed=2)]
    take_step(model, together, [data])
    for i, seed in enumerate((0, 4)):
        alone = trainee(fresh(name, model, seed=seed))
        record = take_step(model, [alone], [[data[i]]])[0]
        assert record.applied
        pairs = zip(alone.adapter.parameters(), together[i].adapter.parameters(), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in pairs)


@every_method
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_step_that_is_not_finite_changes_nothing(name, poison):
    model = tiny.decoder()
    adapter = fresh(name, model)
    one = trainee(adapter)
    before = [p.detach().clone() for p in adapter.parameters()]
    next(adapter.parameters()).register_hook(lambda grad: grad * poison)
    record = take_step(model, [one], [[batch(adapter)]])[0]
    assert not record.applied and not one.optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(before, adapter.parameters(), strict=True))


@every_method
def test_head_chunks_change_nothing(name, monkeypatch):
    from halter.numerics import losses

    model = tiny.decoder()
    results = []
    for rows in (1000, 3):
        monkeypatch.setattr(losses, "chunk_rows", lambda *_, rows=rows: rows)
        one = trainee(fresh(name, model), optimizer=torch.optim.SGD, rate=1.0)
        take_step(model, [one], [[batch(one.adapter)]])
        results.append([p.detach().clone() for p in one.adapter.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*results, strict=True))


@every_method
def test_methods_trained_together(name, tmp_path):
    """Any method beside LoRA as one adapter: start, gradient, one folder."""
    model = tiny.decoder()
    pair = [sighted.method_of(name), find("lora")(r=2, target_modules=["q_proj", "lm_head"])]
    adapter = adapt(model, pair)
    with torch.no_grad():
        assert torch.equal(model(TOKENS, adapter=adapter), model(TOKENS)) == pair[0].starts_as_base
    one = trainee(adapter)
    start = [p.detach().clone() for p in adapter.parameters()]
    for seed in range(2):
        take_step(model, [one], [[batch(adapter, seed=seed)]])
    assert not any(torch.equal(a, b) for a, b in zip(start, adapter.parameters(), strict=True))
    adapter.save(tmp_path / "both")
    with torch.no_grad():
        assert torch.equal(logits(model, load_adapter(tmp_path / "both", model)), logits(model, adapter))


@every_method
def test_segments_of_any_cut(name):
    """The same rows packed alone or together give the same hidden states."""
    model = tiny.decoder()
    adapter = fresh(name, model)
    tokens = torch.randint(0, 96, (30,), generator=torch.Generator().manual_seed(3)).tolist()
    rows = sighted.rows_of(adapter.sight, [tokens[:11], tokens[11:], tokens[5:25], tokens[:11]], [0, None, 1, 0])
    with torch.no_grad():
        alone = [sighted.logits(model, adapter, [row])[0] for row in rows]
        for order in ((0, 1), (0, 1, 2, 3), (3, 2, 1, 0)):
            together = sighted.logits(model, adapter, [rows[n] for n in order])
            for n, one in zip(order, together, strict=True):
                bounds.assert_same(one, alone[n])
