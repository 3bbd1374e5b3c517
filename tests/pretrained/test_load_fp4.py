"""Checkpoints that bitsandbytes quantised to 4-bit floats, what load_in_4bit does unless told otherwise: every path on
which the codes become numbers, held against bitsandbytes' own dequantising."""

from __future__ import annotations

import shutil
from pathlib import Path

import bounds
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_models import logits_of, tiny_llama
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from halter.adapters.adapter import adapt
from halter.errors import Refusal
from halter.export.merge import merge
from halter.export.requantise import merge_quantised
from halter.model.linear import DenseLinear
from halter.model.nf4_linear import NF4Linear
from halter.model.storages import held_in
from halter.numerics import nf4, nf4_packed
from halter.planning.dry import base_bytes, dry_base
from halter.pretrained.digest import digest_base
from halter.pretrained.load import load_model

functional = pytest.importorskip("bitsandbytes.functional")

TOKENS = torch.tensor([[1, 5, 9, 100, 42, 7, 7, 3]])
SIZES = {"hidden_size": 128, "intermediate_size": 192}


@pytest.fixture(scope="module", params=[True, False], ids=["double", "single"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Path, Path]:
    """(double quantisation, 16-bit folder, the folder that transformers and bitsandbytes made of it)."""
    folder = tmp_path_factory.mktemp("fp4")
    tiny_llama(attention_bias=True, **SIZES).to(torch.bfloat16).save_pretrained(folder / "16")
    rule = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=request.param)
    assert rule.bnb_4bit_quant_type == "fp4"
    oracle = AutoModelForCausalLM.from_pretrained(folder / "16", quantization_config=rule, device_map="cpu")
    oracle.save_pretrained(folder / "4")
    return request.param, folder / "16", folder / "4"


def dequantised(folder: Path, name: str, dtype: torch.dtype) -> torch.Tensor:
    """A weight of a bitsandbytes folder, by bitsandbytes itself, rounded once, to ``dtype``."""
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if k.startswith(f"{name}.")}
    state = functional.QuantState.from_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items()}, "cpu")
    state.dtype = dtype
    return functional.dequantize_4bit(load_file(folder / "model.safetensors")[name], state)


def linears(model) -> dict[str, NF4Linear]:
    return {place.path: m for place, m in model.places() if place.name in tiny.LINEARS}


def dense_twin(folder: Path, model):
    """The same decoder with every weight as bitsandbytes dequantises it."""
    twin = load_model(folder, dtype=model.dtype, device="cpu")
    for place, linear in list(twin.places()):
        if place.name in tiny.LINEARS:
            weight = dequantised(folder, f"{place.path}.weight", model.dtype)
            twin.set_linear(place, DenseLinear(weight, linear.bias))
    return twin


def test_the_codebook_is_bitsandbytes() -> None:
    torch.testing.assert_close(nf4.codebook(table="fp4"), functional.get_4bit_type("fp4", device="cpu"), rtol=0, atol=0)


@pytest.mark.parametrize("kernels", ["", "torch"])
def test_it_is_read_as_it_is(folders, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALTER_NF4", kernels)
    _, _, four = folders
    model = load_model(four, dtype="bfloat16", device="cpu")
    assert held_in(model) == "fp4" and len(linears(model)) == 14
    index = torch.tensor([[3, 0], [7, 3]])
    for name, linear in linears(model).items():
        assert linear.storage == "fp4" and linear.dtype == torch.bfloat16
        want = dequantised(four, f"{name}.weight", torch.bfloat16)
        assert torch.equal(linear.weight(), want) and torch.equal(linear.rows(index), want[index])


@pytest.mark.parametrize("kernels", ["", "torch"])
def test_logits_and_gradients_are_those_of_the_dequantised_weights(folders, kernels: str, monkeypatch) -> None:
    """transformers' logits in fp32; then LoRA beside it, against the same pieces over dense weights."""
    monkeypatch.setenv("HALTER_NF4", kernels)
    _, plain, four = folders
    oracle = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    with torch.no_grad():
        for name, module in oracle.named_modules():
            if name.rpartition(".")[2] in tiny.LINEARS:
                module.weight.copy_(dequantised(four, f"{name}.weight", torch.float32))
    model = load_model(four, dtype="float32", device="cpu")
    bounds.assert_same(model(TOKENS).detach(), logits_of(oracle, TOKENS))
    gradients = []
    for base in (model, dense_twin(four, model)):
        adapter = adapt(base, "lora", r=4, seed=3)
        base(TOKENS, adapter=adapter).square().mean().backward()
        gradients.append([p.grad for p in adapter.parameters()])
    assert any(bool(g.any()) for g in gradients[0])
    for got, want in zip(*gradients, strict=True):
        bounds.assert_same(got, want)


@pytest.mark.skipif(not nf4_packed.available(), reason="no packed product on this machine (AVX512-BF16)")
def test_the_packed_product_knows_its_table(folders) -> None:
    _, _, four = folders
    model = load_model(four, dtype="bfloat16", device="cpu")
    for linear in linears(model).values():
        x = torch.randn(3, linear.in_features, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        copy = nf4_packed.pack(linear.data)
        assert copy is not None
        off = bounds.product(x, linear.weight().float(), torch.bfloat16, weights=2)
        bounds.assert_within(nf4_packed.product(x, copy), x.double() @ linear.weight().double().t(), off)


def test_what_it_is_written_as_bitsandbytes_reads(folders) -> None:
    double, _, four = folders
    linear = load_model(four, device="cpu").layers[0].up_proj
    parts = linear.to_bitsandbytes()
    shape = (linear.out_features, linear.in_features)
    again = NF4Linear.from_bitsandbytes(parts, shape, None, torch.float32)
    assert (
        again.storage == "fp4" and torch.equal(again.codes, linear.codes) and (again.absmax_codes is not None) == double
    )
    inner = {k.removeprefix("weight."): v for k, v in parts.items() if k != "weight"}
    state = functional.QuantState.from_dict(inner, "cpu")
    state.dtype = torch.float32
    assert torch.equal(functional.dequantize_4bit(parts["weight"], state), again.weight())


def test_another_storage_is_not_asked_for_and_a_wrong_table_is_refused(folders, tmp_path: Path) -> None:
    _, _, four = folders
    with pytest.raises(Refusal, match="stored in fp4, and nf4 is asked for") as caught:
        load_model(four, quantize="nf4")
    assert caught.value.id == "quantisation-differs"
    shutil.copytree(four, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    at = "model.layers.0.mlp.up_proj.weight"
    state = bytes(tensors[f"{at}.quant_state.bitsandbytes__fp4"].tolist()).replace(b'"fp4"', b'"nf4"')
    tensors[f"{at}.quant_state.bitsandbytes__fp4"] = torch.tensor(list(state), dtype=torch.uint8)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(Refusal, match="is quant_type 'nf4', not 'fp4'"):
        load_model(tmp_path / "m")
    tensors[f"{at}.quant_state.bitsandbytes__fp4"] = load_file(four / "model.safetensors")[
        f"{at}.quant_state.bitsandbytes__fp4"
    ]
    tensors[f"{at}.quant_map"] = nf4.codebook().clone()
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(Refusal, match="another 4-bit codebook"):
        load_model(tmp_path / "m")
    tensors = load_file(four / "model.safetensors")
    for part in [name for name in tensors if name.startswith(f"{at}.")]:
        if part.endswith("__fp4"):
            tensors[part.replace("fp4", "nf4")] = tensors.pop(part)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(Refusal, match="stored in fp4 and nf4"):
        load_model(tmp_path / "m")


def test_merging_plans_and_digests_know_it(folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALTER_CACHE", str(tmp_path))
    double, _, four = folders
    assert digest_base(four).storage["quantised"] == ["fp4"]
    model = load_model(four, dtype="float32", device="cpu")
    if double:
        assert base_bytes(dry_base(model.config, torch.float32, "fp4")).total == base_bytes(model).total
    adapter = adapt(model, "lora", r=4)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        merge(model, adapter, tmp_path / "dense", base="dequantised")
        merged = linears(load_model(tmp_path / "dense", "bfloat16", device="cpu"))
        for name, linear in merged.items():
            weight = dequantised(four, f"{name}.weight", torch.float32)
            assert torch.equal(linear.weight(), adapter.fold(name, weight, None)[0].to(torch.bfloat16))
        for kind in ("nf4", "int8"):
            merge_quantised(model, adapter, tmp_path / kind, kind, base="dequantised")
            merged = load_model(tmp_path / kind, "float32", device="cpu")
            assert held_in(merged) == kind
    assert NF4Linear.quantize(torch.ones(64, 64)).storage == "nf4"
