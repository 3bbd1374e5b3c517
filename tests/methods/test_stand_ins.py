"""Two weights that stand in at one place: y = W1 x + (W2 x - W x), by the equations written out in float64."""

from __future__ import annotations

import json
import shutil

import attention_reference as reference
import bounds
import pytest
import tiny
import torch

import halter
from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.adapters.mixed import Mixed
from halter.methods.full import Full
from halter.methods.llama_adapter_v2 import LlamaAdapterV2
from halter.methods.lora import Lora
from halter.methods.norm_tuning import NormTuning
from halter.methods.token_rows import TokenRowsMethod
from halter.model.decoder import Decoder
from halter.model.joints import Chain
from halter.model.segments import Segments

TOKENS = torch.randint(0, 96, (13,), generator=torch.Generator().manual_seed(2))
V2_NORMS = LlamaAdapterV2(scale_side="none", bias_targets=(), train_norm=True)
LISTS = {
    "full+full": [Full(), Full()],
    "v2+norm_tuning": [V2_NORMS, NormTuning()],
    "norm_tuning+full+v2": [NormTuning(), Full(target_modules=["norm", "q_proj", "input_layernorm"]), V2_NORMS],
}
every_list = pytest.mark.parametrize("methods", LISTS.values(), ids=LISTS)


def moved(model, methods, seed=1):
    adapter = adapt(model, methods).to(model.dtype)
    tiny.jitter(adapter, 0.3, seed)
    return adapter


def weights_of(model):
    return {name: getattr(module, buffer) for name, module, buffer in model.tensors()}


def summed(model, adapters):
    """{name: the base's weight and what every stand-in moved it by}."""
    base = weights_of(model)
    made = dict(base)
    for adapter in adapters:
        for slot in adapter.slots:
            name = f"{slot.path}.weight"
            made[name] = made[name] + (slot.piece.weight.detach() - base[name])
    return made


@every_list
def test_each_weight_that_stands_in_counts_by_what_it_moved(methods):
    model = tiny.decoder(dtype=torch.float64)
    adapter = moved(model, methods)
    weights = summed(model, [adapter])
    norms = {name: tensor for name, tensor in weights.items() if "norm" in name}
    want = reference.logits(weights, model.config, TOKENS, norms=norms)
    got = model(TOKENS[None], adapter=adapter)[0]
    bounds.assert_same(got, want, torch.float32)  # angles are float32's
    got.square().sum().backward()
    still = [name for name, p in adapter.trainable().items() if p.grad is None or not bool(p.grad.any())]
    assert not still


@every_list
def test_a_stack_sums_them_too_and_a_mixed_batch_is_each_row_alone(methods):
    model = tiny.decoder(dtype=torch.float64)
    alone = [moved(model, [method], seed) for seed, method in enumerate(methods)]
    weights = summed(model, alone)
    norms = {name: tensor for name, tensor in weights.items() if "norm" in name}
    want = reference.logits(weights, model.config, TOKENS, norms=norms)
    with torch.no_grad():
        stacked = halter.stack(alone)
        bounds.assert_same(model(TOKENS[None], adapter=stacked)[0], want, torch.float32)
        both = model(TOKENS.expand(2, -1), adapter=Mixed([stacked, alone[1]], [0, 1]))
        for row, one in enumerate((stacked, alone[1])):
            bounds.assert_same(both[row : row + 1], model(TOKENS[None], adapter=one))


@every_list
def test_an_untrained_one_changes_no_bit_and_what_is_saved_is_read(methods, tmp_path):
    model = tiny.decoder()
    adapter = adapt(model, methods)
    with torch.no_grad():
        assert torch.equal(model(TOKENS[None], adapter=adapter), model(TOKENS[None]))
    tiny.jitter(adapter)
    adapter.save(tmp_path / "adapter")
    with torch.no_grad():
        again = load_adapter(tmp_path / "adapter", model)
        assert torch.equal(model(TOKENS[None], adapter=again), model(TOKENS[None], adapter=adapter))


@every_list
@pytest.mark.parametrize("beside", [[], [Lora(r=2)]], ids=["alone", "lora"])
def test_they_fold_into_one_weight(methods, beside):
    model = tiny.decoder()
    adapter = moved(model, [*beside, *methods])
    after = Decoder(model.config)
    with torch.no_grad():
        for place, module in model.places():
            name = place.path
            after.set_tensor(f"{name}.weight", adapter.fold(name, module.weight(), None)[0])
        bounds.assert_same(after(TOKENS[None]), model(TOKENS[None], adapter=adapter))


def test_a_bias_that_stands_in_counts_too():
    model = tiny.decoder(tiny.config(attention_bias=True), torch.float64)
    module = model.layers[0].q_proj
    first, second = (moved(model, [Full(target_modules=["q_proj"])], seed) for seed in (1, 2))
    pieces = [adapter.slots[0].piece for adapter in (first, second)]
    x = torch.randn(3, 32, dtype=torch.float64)
    weight = pieces[0].weight + pieces[1].weight - module.weight()
    bias = pieces[0].bias + pieces[1].bias - module.bias
    acts = halter.stack([first, second]).bind(model, Segments.packed([3]))
    assert isinstance(acts.layers[0].q_proj, Chain)
    torch.testing.assert_close(acts.layers[0].q_proj.apply(module, x), x @ weight.T + bias, rtol=1e-12, atol=1e-12)


ROWS = TokenRowsMethod(tokens=(7, 3), where="embeddings")
TABLE_LISTS = [
    [Full(target_modules=["embed_tokens"]), ROWS],
    [ROWS, Full(target_modules=["embed_tokens"])],
    [ROWS, TokenRowsMethod(tokens=(3, 5), where="embeddings")],
    [Lora(r=2, target_modules=["embed_tokens"]), ROWS, Full(target_modules=["embed_tokens"])],
]


@pytest.mark.parametrize("methods", TABLE_LISTS, ids=lambda ms: "+".join(m.name() for m in ms))
def test_token_rows_are_added_to_what_came_before(methods):
    """Embeddings of every token: the base's row and what each method, folded alone into the base, moved it by."""
    model = tiny.decoder(dtype=torch.float64)
    adapter = moved(model, methods)
    table = model.embed_tokens.weight()
    want = table.clone()
    for slot in adapter.slots:
        want += slot.piece.fold(table, None)[0].detach() - table
    act = adapter.bind(model, Segments.packed([96])).embed_tokens
    got = act.apply(model.embed_tokens, torch.arange(96))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    got.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in adapter.parameters())


def test_rows_alone_are_themselves_to_the_bit():
    model = tiny.decoder(dtype=torch.bfloat16)
    adapter = moved(model, ROWS).float()
    act = adapter.bind(model, Segments.packed([96])).embed_tokens
    rows = adapter.slots[0].piece.rows.to(torch.bfloat16)
    assert torch.equal(
        act.apply(model.embed_tokens, torch.tensor([3, 7, 1])),
        torch.stack([rows[1], rows[0], model.embed_tokens.weight()[1]]),
    )


AGAIN = {"weights": Full(), "rows": TokenRowsMethod(tokens=(72, 15), where="embeddings")}


@pytest.mark.parametrize("second", AGAIN.values(), ids=AGAIN)
def test_a_folder_from_before_keeps_its_function_and_says_so(second, tmp_path):
    """Without the fact that changes are added up, the first weight and the last rows alone count; also saved again."""
    model = tiny.decoder()
    adapter = moved(model, [Full(), second])
    adapter.save(tmp_path / "new")
    facts = json.loads((tmp_path / "new" / "halter.json").read_text())
    assert facts.pop("joined") == "as moved"
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    (tmp_path / "old" / "manifest.json").unlink()
    (tmp_path / "old" / "halter.json").write_text(json.dumps({**facts, "manifest": None}))
    told: list[str] = []
    load_adapter(tmp_path / "new", model, say=told.append)
    assert not told
    old = load_adapter(tmp_path / "old", model, say=told.append)
    assert len(told) == 1 and "recorded before" in told[0]
    alone = adapt(model, Full())
    with torch.no_grad():
        for slot, mine in zip(alone.slots, adapter.slots, strict=False):
            slot.piece.weight.copy_(mine.piece.weight)
        if len(adapter.slots) != 2 * len(alone.slots):  # rows: those of the table itself
            rows = adapter.slots[-1].piece
            alone.slots[0].piece.weight[list(rows.token_ids)] = rows.rows
        want = model(TOKENS[None], adapter=alone)
        bounds.assert_same(model(TOKENS[None], adapter=old), want)
        assert not torch.allclose(model(TOKENS[None], adapter=adapter), want)
        old.save(tmp_path / "again")
        again = load_adapter(tmp_path / "again", model, say=told.append)
        assert len(told) == 2 and torch.equal(model(TOKENS[None], adapter=again), model(TOKENS[None], adapter=old))
