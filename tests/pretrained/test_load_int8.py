"""8-bit loading: quantised while read, and folders that transformers and bitsandbytes stored in 8 bits."""

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
from halter.model.int8_linear import Int8Linear
from halter.pretrained.digest import digest_base, digest_model
from halter.pretrained.load import load_model

functional = pytest.importorskip("bitsandbytes.functional")

TOKENS = torch.tensor([[1, 5, 9, 100, 42, 7, 7, 3]])
SIZES = {"hidden_size": 128, "intermediate_size": 192}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(16-bit folder, the folder that transformers and bitsandbytes made of it with load_in_8bit)."""
    folder = tmp_path_factory.mktemp("int8")
    tiny_llama(attention_bias=True, **SIZES).to(torch.bfloat16).save_pretrained(folder / "16")
    oracle = AutoModelForCausalLM.from_pretrained(
        folder / "16", quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    oracle.save_pretrained(folder / "8")
    return folder / "16", folder / "8"


def linears(model) -> dict[str, Int8Linear]:
    return {place.path: m for place, m in model.places() if place.name in tiny.LINEARS}


@pytest.mark.parametrize("which", [0, 1], ids=["quantised while read", "stored so"])
def test_both_ways_give_bitsandbytes_codes(folders: tuple[Path, Path], which: int) -> None:
    model = load_model(folders[which], quantize=None if which else "int8", dtype="bfloat16", device="cpu")
    stored, truth = (load_file(folder / "model.safetensors") for folder in reversed(folders))
    assert len(linears(model)) == 14
    for name, linear in linears(model).items():
        assert linear.storage == "int8" and linear.dtype == torch.bfloat16
        assert torch.equal(linear.codes, stored[f"{name}.weight"])
        assert torch.equal(linear.absmax, stored[f"{name}.SCB"])
        theirs = functional.int8_vectorwise_dequant(stored[f"{name}.weight"], stored[f"{name}.SCB"])
        torch.testing.assert_close(linear.weight(), theirs.bfloat16(), rtol=2**-8, atol=0)
    assert torch.equal(model.lm_head.weight(), truth["lm_head.weight"]) and model.lm_head.storage == "dense"
    assert torch.equal(model.layers[1].q_proj.bias, truth["model.layers.1.self_attn.q_proj.bias"])


def test_logits_in_fp32_are_those_of_the_dequantised_weights(folders: tuple[Path, Path]) -> None:
    """Against transformers with every weight dequantised by bitsandbytes, computed in fp32: 1e-4."""
    plain, eight = folders
    oracle, stored = (
        AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32),
        load_file(eight / "model.safetensors"),
    )
    with torch.no_grad():
        for name, module in oracle.named_modules():
            if name.rpartition(".")[2] in tiny.LINEARS:
                module.weight.copy_(functional.int8_vectorwise_dequant(stored[f"{name}.weight"], stored[f"{name}.SCB"]))
        logits = load_model(eight, dtype="float32", device="cpu")(TOKENS)
    assert (logits - logits_of(oracle, TOKENS)).abs().max() < 1e-4


def test_weights_alone_in_8_bits_are_nearer_to_the_dense_model_than_llm_int8(folders: tuple[Path, Path]) -> None:
    """transformers' own forward rounds the activations too; the difference is what that costs."""
    plain, eight = folders
    dense = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(eight, device_map="cpu")
    with torch.no_grad():
        wanted = logits_of(dense, TOKENS)
        ours = load_model(eight, dtype="float32", device="cpu")(TOKENS)
        away = (theirs(TOKENS).logits.float() - wanted).norm()
    assert float((ours - wanted).norm()) < float(away) < 0.2 * float(wanted.norm())


def test_a_folder_of_before_weight_format_is_read(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[1], tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "weight_format" not in n}, tmp_path / "m" / "model.safetensors")
    with torch.no_grad():
        a, b = (load_model(folder, device="cpu")(TOKENS) for folder in (tmp_path / "m", folders[1]))
    assert torch.equal(a, b)


def test_every_fault_of_an_8_bit_folder_is_in_one_refusal(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[1], tmp_path / "m")
    tensors, at = load_file(tmp_path / "m" / "model.safetensors"), "model.layers.0.mlp."
    tensors[f"{at}gate_proj.weight"] = tensors[f"{at}gate_proj.weight"].t().contiguous()
    tensors[f"{at}up_proj.weight_format"] = torch.tensor(2, dtype=torch.uint8)
    tensors[f"{at}down_proj.SCB"] = tensors[f"{at}down_proj.SCB"].half()
    short = "model.layers.1.self_attn.o_proj.SCB"
    tensors[short] = tensors[short][:-1].clone()
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    del tensors["model.layers.1.self_attn.v_proj.SCB"]
    tensors["model.embed_tokens.SCB"] = torch.ones(3)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(Refusal) as caught:
        load_model(tmp_path / "m")
    assert caught.value.id == "checkpoint-mismatch"
    text = "\n".join(caught.value.found)
    for name in ("gate_proj.weight has", "up_proj.weight has a weight_format", "down_proj.weight has SCB", "o_proj"):
        assert name in text
    assert "k_proj.weight lacks" in text and "v_proj.weight is stored as" in text
    assert "embed_tokens.weight is stored in 8 bits" in text


def test_a_folder_in_one_storage_is_not_quantised_to_another(folders: tuple[Path, Path]) -> None:
    with pytest.raises(Refusal, match="quantisation-differs"):
        load_model(folders[1], quantize="nf4")
    with pytest.raises(Refusal, match="unknown-quantisation"):
        load_model(folders[0], quantize="int4")  # type: ignore[arg-type]
    load_model(folders[1], quantize="int8")


def test_scales_that_cannot_be_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[1], tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.SCB"][5] = float("nan")
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(Refusal, match="int8-state"):
        load_model(tmp_path / "m", device="cpu")


def test_the_digest_in_memory_sees_8_bit_storage(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALTER_CACHE", str(tmp_path))
    model = load_model(folders[1], device="cpu")
    before = digest_model(model)
    assert digest_model(load_model(folders[1], device="cpu")) == before
    model.layers[1].v_proj.absmax[7] *= 2
    assert digest_model(model) != before
    assert digest_base(folders[1]).storage["quantised"] == ["int8"]
