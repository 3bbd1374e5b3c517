"""LoRA's kin against peft: DoRA, PiSSA, OLoRA, LoRA+ and the ways to begin."""

from __future__ import annotations

import json

import bounds
import pytest
import tiny
import torch

import halter
from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.contract.registry import find
from halter.errors import Refusal
from halter.files.tensors import read_tensors
from halter.methods.lora import Lora
from halter.model.config import preset
from halter.model.nf4_linear import NF4Linear

peft = pytest.importorskip("peft")
TOKENS = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(2))
SHAPES = [{}, {"kv_heads": 4}, {"attention_bias": True, "mlp_bias": True}, {"tied": True, "kv_heads": 1}]


def loss_of(logits):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())


def theirs_of(model, config):
    torch.manual_seed(0)
    return peft.get_peft_model(tiny.peer(model), config).eval()


def copied(adapter, theirs):
    """Give peft's adapter the trainable tensors of ours."""
    own = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in adapter.trainable().items():
            own[key_of(name)].copy_(parameter)
    return own


def key_of(name):
    """peft's name of a parameter in memory."""
    path, _, kind = name.rpartition(".lora_")
    return f"base_model.model.{path}.lora_{kind.removesuffix('.weight')}.default.weight"


DORA = [
    {"target_modules": "all-linear"},
    {"target_modules": ["q_proj", "down_proj"], "alpha": 3.0},
    {"target_modules": ["v_proj"], "layers": [1], "r": 2},
    {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"q_proj": 1.0}},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", DORA, ids=str)
def test_dora_both_ways_with_peft(shape, options, tmp_path):
    model = tiny.decoder(tiny.config(**shape))
    adapter = adapt(model, "dora", **{"r": 4, **options})
    tiny.jitter(adapter)
    adapter.save(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(tiny.peer(model), tmp_path / "ours").eval()
    with torch.no_grad():
        ours = model(TOKENS, adapter=adapter)
        bounds.assert_same(ours, theirs(TOKENS).logits)
        assert float((ours - model(TOKENS)).abs().max()) > 1e-2
    theirs.save_pretrained(tmp_path / "theirs")
    back = load_adapter(tmp_path / "theirs", model)
    assert back.methods[0].name() == "dora" and back.num_trainable == adapter.num_trainable
    with torch.no_grad():
        bounds.assert_same(model(TOKENS, adapter=back), ours)


def test_doras_gradients_are_pefts():
    """The norm takes no part in them, there as here."""
    model = tiny.decoder(tiny.config(attention_bias=True))
    adapter = adapt(model, "dora", r=4)
    tiny.jitter(adapter)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=list(tiny.LINEARS), use_dora=True, lora_dropout=0.0
    )
    theirs = theirs_of(model, config)
    own = copied(adapter, theirs)
    loss_of(model(TOKENS, adapter=adapter)).backward()
    loss_of(theirs(TOKENS).logits).backward()
    for name, parameter in adapter.trainable().items():
        want = own[key_of(name)].grad
        assert float((parameter.grad - want).norm()) < 1e-4 * float(want.norm()), name


def test_doras_dropout_is_the_authors_form():
    """Both products see the dropped input: y + (g - 1) W x' + g s B A x', with x' our own mask applied."""
    from halter.methods.dora import DoraAct, row_norms
    from halter.model.linear import DenseLinear
    from halter.numerics.dropout import dropout

    g = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 5, generator=g), torch.randn(6, generator=g)
    a, b, m = torch.randn(2, 5, generator=g), torch.randn(6, 2, generator=g), torch.rand(6, generator=g)
    x = torch.randn(7, 5, generator=g)
    module = DenseLinear(weight, bias)
    gain = m / row_norms(weight, a, b, 0.5)
    masked = dropout(x, 0.4, 11)
    assert not torch.equal(masked, x)
    want = (x @ weight.T + bias) + (gain - 1) * (masked @ weight.T) + gain * 0.5 * (masked @ a.T @ b.T)
    act = DoraAct(module, gain, a, b, 0.5, 0.4, 11)
    bounds.assert_same(act.act(x, module(x)), want)
    bounds.assert_same(row_norms(weight, a, b, 0.5), (weight + 0.5 * b @ a).norm(dim=1))


def test_dora_over_4_bits_is_dora_over_the_dequantised_weights():
    dense, small = tiny.decoder(), tiny.decoder()
    for layer in range(2):
        for place in tiny.LINEARS:
            made = NF4Linear.quantize(small.module(layer, place).weight())
            small.set_linear(small.layout.at(layer, place), made)
            dense.module(layer, place).weight().copy_(made.weight())
    adapter = adapt(small, "dora", r=4)
    tiny.jitter(adapter)
    with torch.no_grad():
        bounds.assert_same(small(TOKENS, adapter=adapter), dense(TOKENS, adapter=adapter))


@pytest.mark.parametrize("name, init", [("pissa", "pissa"), ("olora", "olora")])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_started_pairs_move_as_pefts_do(name, init, shape):
    """peft changes the base to W - s B0 A0 and trains B A; ours keeps the base. Function and gradients are the same."""
    model = tiny.decoder(tiny.config(**shape))
    options = {"niter": 0} if name == "pissa" else {}
    adapter = adapt(model, name, r=4, alpha=6.0, **options)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6.0, target_modules=list(tiny.LINEARS), init_lora_weights=init
    )
    theirs = theirs_of(model, config)
    for path, product in products(theirs).items():  # singular vectors may have another sign: their product has not
        slot = next(slot for slot in adapter.slots if slot.path == path)
        bounds.assert_same(slot.piece.b @ slot.piece.a, product)
    own = copied(adapter, theirs)  # from the same A and B, so that the gradients can be compared
    with torch.no_grad():
        for parameter in adapter.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    copied(adapter, theirs)
    ours = model(TOKENS, adapter=adapter)
    assert float((ours - model(TOKENS)).detach().abs().max()) > 1e-2
    bounds.assert_same(ours, theirs(TOKENS).logits)
    loss_of(ours).backward()
    loss_of(theirs(TOKENS).logits).backward()
    for name_, parameter in adapter.trainable().items():
        want = own[key_of(name_)].grad
        assert float((parameter.grad - want).norm()) < 1e-3 * float(want.norm()), name_


def products(theirs):
    tensors = {n: p.detach() for n, p in theirs.named_parameters() if "lora_" in n}
    found = {}
    for name, b in tensors.items():
        if "lora_B" in name:
            path = name.removeprefix("base_model.model.").removesuffix(".lora_B.default.weight")
            found[path] = b @ tensors[name.replace("lora_B", "lora_A")]
    return found


@pytest.mark.parametrize("name", ["pissa", "olora"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_started_pairs_are_plain_lora_of_twice_the_rank_to_others(name, shape, tmp_path):
    model = tiny.decoder(tiny.config(**shape))
    adapter = adapt(model, name, r=12)  # more than a key's side of 8 where there is one KV head
    tiny.jitter(adapter)
    adapter.save(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(tiny.peer(model), tmp_path / "ours").eval()
    with torch.no_grad():
        ours = model(TOKENS, adapter=adapter)
        bounds.assert_same(ours, theirs(TOKENS).logits)
    (tmp_path / "ours" / "halter.json").unlink()
    (tmp_path / "ours" / "manifest.json").unlink()
    plain = load_adapter(tmp_path / "ours", model)  # without our own file it is what peft sees
    assert plain.methods[0].name() == "lora" and plain.methods[0].r == 24
    with torch.no_grad():
        bounds.assert_same(model(TOKENS, adapter=plain), ours)


def test_pissa_starts_at_the_largest_singular_directions():
    model = tiny.decoder()
    exact = adapt(model, "pissa", r=3, niter=0)
    fast = adapt(model, "pissa", r=3)
    for one, other in zip(exact.slots, fast.slots, strict=True):
        weight = model.module(one.layer, one.place).weight().double()
        u, s, vt = torch.linalg.svd(weight)
        best = (u[:, :3] * s[:3]) @ vt[:3]
        # A decomposition is exact for a matrix that is off by its roundings; those turn the space of the largest
        # directions by as much of the gap to the next one (Wedin 1972), and B A is summed once more.
        off = bounds.summing(max(weight.shape)) * s[0]
        off = off * (1 + s[0] / (s[2] - s[3] - off)) + bounds.summing(3 + 4) * s[0]
        bounds.assert_within((one.piece.b @ one.piece.a).double(), best, float(off))
        left = (weight - (other.piece.b @ other.piece.a).detach().double()).norm()
        assert float(left) < 1.02 * float((weight - best).norm())
    again = adapt(model, "pissa", r=3)
    assert all(torch.equal(a, b) for a, b in zip(fast.parameters(), again.parameters(), strict=True))


def test_the_ways_to_begin():
    model = tiny.decoder(tiny.config(dim=256, ffn_dim=512, heads=8, head_dim=32))
    gaussian = adapt(model, "lora", r=8, init="gaussian")
    drawn = torch.cat([slot.piece.a.detach().flatten() for slot in gaussian.slots])
    assert float(drawn.std()) == pytest.approx(1 / 8, rel=0.02) and abs(float(drawn.mean())) < 1e-3
    assert not any(slot.piece.b.any() for slot in gaussian.slots)
    orthogonal = adapt(model, "lora", r=8, init="orthogonal")
    for slot in orthogonal.slots:
        assert slot.piece.a.abs().max() > 0.05 and slot.piece.b.abs().max() > 0.05
        assert float((slot.piece.b @ slot.piece.a).abs().max()) < 1e-5
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj"], init_lora_weights="orthogonal")
    a, b = (
        torch.cat([p.detach().flatten() for n, p in theirs_of(model, config).named_parameters() if kind in n])
        for kind in ("lora_A", "lora_B")
    )
    ours_a, ours_b = (
        torch.cat([getattr(s.piece, k).detach().flatten() for s in orthogonal.slots if s.place == "q_proj"])
        for k in ("a", "b")
    )
    assert float(ours_a.std()) == pytest.approx(float(a.std()), rel=0.1)
    assert float(ours_b.std()) == pytest.approx(float(b.std()), rel=0.1)
    with pytest.raises(Refusal, match="even rank"):
        adapt(model, "lora", r=3, init="orthogonal")


def test_lora_plus_is_pefts():
    """The same groups: rates of A, B and the embedding's pair."""
    from peft.optimizers import create_loraplus_optimizer

    model = tiny.decoder()
    targets = ["q_proj", "up_proj", "embed_tokens"]
    adapter = adapt(model, "lora", r=4, target_modules=targets, loraplus_lr_ratio=16.0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets)
    theirs = create_loraplus_optimizer(
        theirs_of(model, config), torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0
    ).param_groups
    sizes = lambda groups: sorted((g["lr"], sum(p.numel() for p in g["params"])) for g in groups if g["params"])  # noqa: E731
    assert sizes(adapter.groups(1e-3, 0.0)) == sizes(theirs)
    assert sum(p.numel() for g in adapter.groups(1e-3, 0.1) for p in g["params"]) == adapter.num_trainable
    with pytest.raises(Refusal, match="loraplus_lr_ratio"):
        adapt(model, "lora", loraplus_lr_ratio=0.0)


def test_alpha_follows_the_rank_unless_it_is_given(tmp_path):
    model = tiny.decoder()
    assert [find("lora")(r=r).alpha for r in (4, 16)] == [8.0, 32.0] and Lora(r=4, alpha=1.0).alpha == 1.0
    assert (find("dora")(r=4).alpha, find("pissa")(r=4).alpha, find("olora")(r=4).alpha) == (8.0, 4.0, 4.0)
    adapt(model, "lora", r=4).save(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["lora_alpha"] == 8
    assert json.loads((tmp_path / "a" / "halter.json").read_text())["methods"][0]["alpha"] == 8.0


COUNTS = {"llama-1-7b": 21_348_352, "llama-1-65b": 106_741_760, "llama-3-8b": 22_347_776, "llama-2-70b": 110_264_320}


@pytest.mark.parametrize("name", COUNTS)
def test_doras_counts(name):
    """mechanisms 0.1: seven linears, r = 8."""
    with torch.device("meta"):
        assert halter.adapters.adapter.Adapter(preset(name), [find("dora")(r=8)]).num_trainable == COUNTS[name]
        plain = halter.adapters.adapter.Adapter(preset(name), [find("lora")(r=8)]).num_trainable
        for kin in ("pissa", "olora"):  # the frozen start is not trained
            assert halter.adapters.adapter.Adapter(preset(name), [find(kin)(r=8)]).num_trainable == plain


@pytest.mark.parametrize("name", ["dora", "pissa", "olora"])
def test_kin_merge(name, tmp_path):
    model = tiny.decoder(tiny.config(attention_bias=True))
    adapter = adapt(model, name, r=4)
    tiny.jitter(adapter)
    report = halter.merge(model, adapter, tmp_path / "merged")
    assert report.gap.largest < 1e-4
    tensors = read_tensors(tmp_path / "merged" / "model.safetensors")
    assert tensors["model.layers.0.self_attn.q_proj.weight"].shape == (32, 32)
