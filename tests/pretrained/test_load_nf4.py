"""4-bit loading: quantised while read, and checkpoints that bitsandbytes quantised, both held against transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_models import logits_of, tiny_llama
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from halter.errors import Refusal
from halter.model.linear import Linear
from halter.pretrained.digest import digest_base, digest_model
from halter.pretrained.load import load_model

functional = pytest.importorskip("bitsandbytes.functional")

TOKENS = torch.tensor([[1, 5, 9, 100, 42, 7, 7, 3]])
SIZES = {"hidden_size": 128, "intermediate_size": 192}


@pytest.fixture(scope="module", params=[True, False], ids=["double", "single"])
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Path, Path]:
    """(double quantisation, 16-bit folder, the folder that transformers and bitsandbytes made of it)."""
    folder = tmp_path_factory.mktemp("nf4")
    tiny_llama(attention_bias=True, **SIZES).to(torch.bfloat16).save_pretrained(folder / "16")
    rule = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=request.param,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    oracle = AutoModelForCausalLM.from_pretrained(folder / "16", quantization_config=rule, device_map="cpu")
    oracle.save_pretrained(folder / "4")
    return request.param, folder / "16", folder / "4"


def dequantised(folder: Path, name: str, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A weight of a bitsandbytes folder, by bitsandbytes itself, rounded once, to ``dtype``."""
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if k.startswith(f"{name}.")}
    state = functional.QuantState.from_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items()}, "cpu")
    state.dtype = dtype
    return functional.dequantize_4bit(load_file(folder / "model.safetensors")[name], state)


def linears(model) -> dict[str, Linear]:
    return {place.path: m for place, m in model.places() if place.name in tiny.LINEARS}


def test_quantising_while_reading_gives_bitsandbytes_weights(quantised: tuple[bool, Path, Path]) -> None:
    double, plain, four = quantised
    model = load_model(plain, quantize="nf4", double_quant=double, dtype="bfloat16", device="cpu")
    assert len(linears(model)) == 14
    stored = load_file(four / "model.safetensors")
    for name, linear in linears(model).items():
        assert linear.storage == "nf4" and linear.dtype == torch.bfloat16
        assert torch.equal(linear.codes, stored[f"{name}.weight"])
        differ = (linear.weight() != dequantised(four, f"{name}.weight")).float().mean()
        # With double quantisation bitsandbytes' CPU kernel misses the nearest of 256 scales here and there.
        assert differ <= (0.02 if double else 0)
    truth = load_file(plain / "model.safetensors")
    assert torch.equal(model.lm_head.weight(), truth["lm_head.weight"]) and model.lm_head.storage == "dense"
    assert torch.equal(model.embed_tokens.weight(), truth["model.embed_tokens.weight"])
    assert torch.equal(model.layers[1].q_proj.bias, truth["model.layers.1.self_attn.q_proj.bias"])


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_a_folder_that_bitsandbytes_quantised_is_read_as_it_is(quantised: tuple[bool, Path, Path], quantize) -> None:
    _, _, four = quantised
    model = load_model(four, quantize=quantize, dtype="bfloat16", device="cpu")
    for name, linear in linears(model).items():
        assert linear.storage == "nf4" and linear.dtype == torch.bfloat16
        assert torch.equal(linear.weight(), dequantised(four, f"{name}.weight"))


def test_logits_in_fp32_are_those_of_the_dequantised_weights(quantised: tuple[bool, Path, Path]) -> None:
    """Against transformers with every weight dequantised by bitsandbytes, computed in fp32: 1e-4."""
    _, plain, four = quantised
    oracle = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    with torch.no_grad():
        for name, module in oracle.named_modules():
            if name.rpartition(".")[2] in tiny.LINEARS:
                module.weight.copy_(dequantised(four, f"{name}.weight", torch.float32))
        logits = load_model(four, dtype="float32", device="cpu")(TOKENS)
    assert logits.dtype == torch.float32
    assert (logits - logits_of(oracle, TOKENS)).abs().max() < 1e-4


def test_bytes_stored_under_another_dtype_are_the_same_bytes(
    quantised: tuple[bool, Path, Path], tmp_path: Path
) -> None:
    """bnb_4bit_quant_storage: what FSDP needs, the codes seen as bf16."""
    _, _, four = quantised
    shutil.copytree(four, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].view(-1).view(torch.bfloat16).reshape(-1, 1)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    model = load_model(tmp_path / "m", dtype="bfloat16", device="cpu")
    assert torch.equal(model.layers[0].up_proj.weight(), dequantised(four, name))


def test_every_fault_of_a_quantised_folder_is_in_one_refusal(
    quantised: tuple[bool, Path, Path], tmp_path: Path
) -> None:
    _, _, four = quantised
    shutil.copytree(four, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    at = "model.layers.0.mlp."
    state = ".weight.quant_state.bitsandbytes__nf4"
    for place, old, new in (
        ("gate_proj", b"192, 128", b"128, 192"),
        ("up_proj", b'"blocksize": 64', b'"blocksize": 32'),
        ("down_proj", b"quant_type", b"quant_kind"),
    ):
        text = bytes(tensors[f"{at}{place}{state}"].tolist())
        assert old in text
        tensors[f"{at}{place}{state}"] = torch.tensor(list(text.replace(old, new)), dtype=torch.uint8)
    del tensors["model.layers.1.self_attn.k_proj.weight.absmax"]
    tensors["model.layers.1.self_attn.v_proj.weight"] = torch.zeros(3, 1, dtype=torch.uint8)
    short = "model.layers.1.self_attn.o_proj.weight.absmax"
    tensors[short] = tensors[short][:-1].clone()
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(Refusal) as caught:
        load_model(tmp_path / "m")
    assert caught.value.id == "checkpoint-mismatch"
    text = "\n".join(caught.value.found)
    assert len(caught.value.found) == 6
    for name in ("gate_proj", "up_proj", "down_proj", "k_proj", "v_proj", "o_proj"):
        assert name in text


def test_the_digest_in_memory_sees_4_bit_storage(
    quantised: tuple[bool, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALTER_CACHE", str(tmp_path))
    _, _, four = quantised
    model = load_model(four, device="cpu")
    before = digest_model(model)
    assert digest_model(load_model(four, device="cpu")) == before
    model.layers[1].v_proj.codes[7] ^= 1
    assert digest_model(model) != before
    assert digest_base(four).storage["quantised"] == ["nf4"]
