"""The small family of docs/guide/add-a-family.md as it stands there: beside transformers, saved, adapted, merged."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.export.merge import merge
from halter.model import families
from halter.model.cache import Cache
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.passes import Pass
from halter.pretrained.load import load_model
from halter.pretrained.save import save_model

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "add-a-family.md"
TOKENS = torch.randint(3, 96, (2, 11), generator=torch.Generator().manual_seed(0))
ROUNDING = {"rtol": 0.0, "atol": 1e-4}  # as of a LLaMA beside transformers'


@pytest.fixture(scope="module")
def sandwich(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The page's file as a module."""
    (source,) = re.findall(r"^```python\n(from __future__.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    path = tmp_path_factory.mktemp("family") / "sandwich.py"
    path.write_text(source, "utf-8")
    spec = importlib.util.spec_from_file_location("sandwich_of_the_page", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(sandwich: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Decoder:
    monkeypatch.setitem(families.FAMILIES, "sandwich", sandwich.SandwichConfig.from_hf)
    plain = tiny.config()
    shared = {field.name: getattr(plain, field.name) for field in fields(ModelConfig)}
    return tiny.decoder(sandwich.SandwichConfig(**shared, second_eps=1e-2))  # so large that it is seen


def theirs(model: Decoder) -> torch.Tensor:
    """Logits of transformers' LLaMA, with the second norm as a hook behind its attention."""
    import transformers

    left_out = ("architectures", "model_type", "second_eps")
    shape = transformers.LlamaConfig(**{k: v for k, v in model.config.to_hf().items() if k not in left_out})
    shape._attn_implementation = "eager"
    other = transformers.LlamaForCausalLM(shape).eval()
    state = {name: getattr(module, buffer) for name, module, buffer in model.tensors()}
    own = {name: state.pop(name) for name in list(state) if "second_norm" in name}
    other.load_state_dict(state)
    assert len(own) == model.config.layers
    for layer, weight in zip(other.model.layers, own.values(), strict=True):

        def second(module: Any, given: Any, out: Any, weight: torch.Tensor = weight) -> Any:
            y = out[0]
            return (y / (y.square().mean(-1, keepdim=True) + 1e-2).sqrt() * weight, *out[1:])

        layer.self_attn.register_forward_hook(second)
    return other(TOKENS).logits


@torch.no_grad()
def test_it_is_transformers_llama_with_the_norm_hooked_in(model: Decoder) -> None:
    want = theirs(model)
    torch.testing.assert_close(model(TOKENS), want, **ROUNDING)
    for layer in model.layers:
        layer.second_norm.scale = torch.zeros_like(layer.second_norm.scale)
    assert float((model(TOKENS) - want).abs().max()) > 0.1  # the norm is seen


@torch.no_grad()
def test_token_by_token_is_the_whole_row(model: Decoder) -> None:
    row, cache = TOKENS[0], Cache(model.config, 1, 1, model.dtype)
    cache.grow(len(row))
    steps = [model.head(model.hidden(Pass(row[i : i + 1], cache.segments([1]), cache=cache))) for i in range(len(row))]
    torch.testing.assert_close(torch.cat(steps), model(row[None])[0], **ROUNDING)


def test_it_is_saved_adapted_and_merged(model: Decoder, tmp_path: Path) -> None:
    save_model(model, model.config, tmp_path / "base")
    again = load_model(tmp_path / "base", say=lambda _: None)
    assert again.config == model.config and again.config.second_eps == 1e-2
    with torch.no_grad():
        assert torch.equal(again(TOKENS), model(TOKENS))
    for name in ("lora", "norm_tuning"):
        adapter = adapt(again, name)
        tiny.jitter(adapter)
        again(TOKENS, adapter=adapter).square().mean().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in adapter.parameters())
        with torch.no_grad():
            want = again(TOKENS, adapter=adapter)
        merge(again, adapter, tmp_path / name)
        merged = load_model(tmp_path / name, say=lambda _: None)
        with torch.no_grad():
            torch.testing.assert_close(merged(TOKENS), want, **ROUNDING)
    assert any(slot.path.endswith("self_attn.second_norm") for slot in adapter.slots)  # found by its kind
