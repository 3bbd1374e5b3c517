"""P-tuning against PEFT's PromptEncoder: the vectors that both networks make, gradients, and what is saved."""

from __future__ import annotations

import pytest
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.errors import Refusal

peft = pytest.importorskip("peft")
TOKENS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(2))
PARTS = {"weight_ih": "x", "weight_hh": "h", "bias_ih": "x_bias", "bias_hh": "h_bias"}


def theirs(piece, kind, layers, width):
    """PEFT's encoder with this piece's numbers, and {its parameter's name: ours}."""
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=5,
        token_dim=32,
        num_transformer_submodules=1,
        num_attention_heads=4,
        num_layers=2,
        encoder_reparameterization_type=kind.upper(),
        encoder_hidden_size=width,
        encoder_num_layers=layers,
        encoder_dropout=0.0,
    )
    encoder = peft.PromptEncoder(config).double()
    names = {"embedding.weight": "table"}
    for name, _ in encoder.named_parameters():
        lead, _, rest = name.partition(".")
        if lead == "mlp_head":
            number, part = rest.split(".")
            names[name] = f"head_{int(number) // 2}" + ("_bias" if part == "bias" else "")
        elif lead == "lstm_head":
            part, _, place = rest.partition("_l")
            layer, _, back = place.partition("_")
            names[name] = f"lstm_{layer}_{1 if back else 0}_{PARTS[part]}"
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.copy_(piece.get_parameter(names[name]))
    return encoder, names


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "layers"), [("mlp", 2), ("lstm", 1), ("lstm", 2), ("lstm", 3)])
def test_the_vectors_and_their_gradients_are_pefts(kind, layers):
    model = tiny.decoder(dtype=torch.float64)
    options = {"num_virtual_tokens": 5, "encoder": kind, "encoder_layers": layers, "encoder_size": 12}
    adapter = adapt(model, "p_tuning", **options).double()
    tiny.jitter(adapter)
    piece = adapter.slots[0].piece
    encoder, names = theirs(piece, kind, layers, 12)
    assert sorted(names.values()) == sorted(name for name, _ in piece.named_parameters())
    weight = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want, got = encoder(torch.arange(5)[None])[0], piece.made()
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    (want * weight).sum().backward()
    (got * weight).sum().backward()
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(piece.get_parameter(names[name]).grad, parameter.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_what_is_saved_is_the_vectors_alone(kind, tmp_path):
    model = tiny.decoder()
    adapter = adapt(model, "p_tuning", num_virtual_tokens=5, encoder=kind, encoder_size=12)
    tiny.jitter(adapter)
    adapter.save(tmp_path / "a")
    again = load_adapter(tmp_path / "a", model)
    assert again.methods[0].encoder == "none" and again.num_trainable == 5 * 32
    with torch.no_grad():
        assert torch.equal(model(TOKENS, adapter=again), model(TOKENS, adapter=adapter))
    again.save(tmp_path / "b")
    with torch.no_grad():
        assert torch.equal(model(TOKENS, adapter=load_adapter(tmp_path / "b", model)), model(TOKENS, adapter=adapter))


def test_dropout_between_the_layers_is_the_same_for_the_same_key_and_scales():
    model = tiny.decoder()
    adapter = adapt(model, "p_tuning", num_virtual_tokens=6, encoder="lstm", encoder_dropout=0.5, encoder_size=64)
    piece = adapter.slots[0].piece
    with torch.no_grad():
        plain, one, other = piece.made(), piece.made(7), piece.made(8)
        assert torch.equal(one, piece.made(7)) and not torch.equal(one, other) and not torch.equal(one, plain)
        mean = torch.stack([piece.made(key) for key in range(400)]).mean(0)
    assert float((mean - plain).abs().max()) < float((one - plain).abs().max()) / 3


@pytest.mark.parametrize(
    "wrong", [{"encoder_size": 0}, {"encoder_layers": 0}, {"encoder_dropout": 1.0}, {"num_virtual_tokens": 0}], ids=str
)
def test_networks_that_cannot_be_are_refused(wrong):
    with pytest.raises(Refusal, match="prompt-options"):
        adapt(tiny.decoder(), "p_tuning", **wrong)
