"""Several methods as one PEFT folder (LoRA with trained token rows first of all), against peft's logits."""

from __future__ import annotations

import json

import bounds
import pytest
import tiny
import torch

from halter.adapters import peft_together
from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.errors import Refusal
from halter.files.tensors import read_tensors
from halter.methods.dora import Dora
from halter.methods.excitor import Excitor
from halter.methods.lora import Lora
from halter.methods.token_rows import TokenRowsMethod as Rows

peft = pytest.importorskip("peft")
TOKENS = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(2))
TOKENS[0, 3], TOKENS[1, 7], TOKENS[1, 9] = 41, 7, 60  # the trained ones stand in it
NAMES = ["q_proj", "v_proj"]

THEIRS = [
    (True, [41, 7], 1),
    (True, {"embed_tokens": [7, 41], "lm_head": [7, 41]}, 1),
    (False, [41, 7], 1),
    (False, {"lm_head": [41, 7]}, 1),
    (False, {"embed_tokens": [7, 41], "lm_head": [7, 41]}, 1),
    (False, {"embed_tokens": [7, 41], "lm_head": [60]}, 2),
    (True, {"model.embed_tokens": [60]}, 1),
    (True, {"lm_head": [41, 7]}, 1),
    (True, {"embed_tokens": [7, 41], "lm_head": [60]}, 2),
]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("tied", "indices", "rows"), THEIRS, ids=str)
def test_we_read_what_peft_writes(tied, indices, rows, dora, tmp_path):
    model = tiny.decoder(tiny.config(tied=tied))
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=NAMES,
        init_lora_weights=False,
        use_dora=dora,
        trainable_token_indices=indices,
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(tiny.peer(model), config).eval()
    for name, parameter in theirs.named_parameters():
        if "trainable_tokens" in name:
            parameter.data.add_(torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    adapter = load_adapter(tmp_path / "theirs", model)
    assert [m.name() for m in adapter.methods] == ["dora" if dora else "lora"] + ["token_rows"] * rows
    with torch.no_grad():
        want = theirs(TOKENS).logits
        assert float((want - model(TOKENS)).abs().max()) > 1e-1
        bounds.assert_same(model(TOKENS, adapter=adapter), want)
    adapter.save(tmp_path / "again")
    before = read_tensors(tmp_path / "theirs" / "adapter_model.safetensors")
    after = read_tensors(tmp_path / "again" / "adapter_model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


LORA = Lora(r=4, target_modules=NAMES)
OURS = [
    (True, [LORA, Rows((41, 7))]),
    (False, [Rows((41, 7)), LORA]),
    (False, [LORA, Rows((7, 41), where="embeddings")]),
    (False, [LORA, Rows((60,), where="head")]),
    (True, [Dora(r=4, target_modules=NAMES), Rows((7,))]),
    (False, [Lora(r=4, target_modules=["q_proj", "lm_head"]), Rows((7,), where="embeddings")]),
    (False, [LORA, Rows((7, 41), where="embeddings"), Rows((60,), where="head")]),
    (True, [LORA, Rows((41, 7), where="head", keep_tied=False)]),
    (True, [LORA, Rows((7,), where="embeddings", keep_tied=False), Rows((60,), where="head", keep_tied=False)]),
]


@pytest.mark.parametrize(("tied", "methods"), OURS, ids=lambda v: str(v)[:60])
def test_peft_reads_what_we_write(tied, methods, tmp_path):
    model = tiny.decoder(tiny.config(tied=tied))
    adapter = adapt(model, methods)
    tiny.jitter(adapter)
    adapter.save(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(tiny.peer(model), tmp_path / "ours").eval()
    with torch.no_grad():
        want = model(TOKENS, adapter=adapter)
        bounds.assert_same(theirs(TOKENS).logits, want)
        assert torch.equal(model(TOKENS, adapter=load_adapter(tmp_path / "ours", model)), want)
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert not set(config) - set(peft.LoraConfig().to_dict())
    assert json.loads((tmp_path / "ours" / "halter.json").read_text())["servable_by"] == ["halter", "peft"]


@pytest.mark.parametrize(
    ("tied", "methods"),
    [
        (False, [Lora(r=4, target_modules=["q_proj", "embed_tokens"]), Rows((7,))]),
        (True, [Lora(r=4, target_modules=["q_proj", "lm_head"]), Rows((7,))]),
        (True, [LORA, Rows((7,), where="embeddings", keep_tied=False)]),  # peft ties the head's rows to them
        (True, [LORA, Rows((7,), keep_tied=False)]),
        (True, [LORA, *(Rows((7,), where=table, keep_tied=False) for table in ("embeddings", "head"))]),
        (True, [Rows((7,)), Rows((9,))]),
        (False, [LORA, Lora(r=2, target_modules=["k_proj"]), Rows((7,))]),
        (False, [LORA, Rows((7,)), Excitor(adapter_layers=1)]),
    ],
    ids=lambda v: str(v)[:40],
)
def test_what_peft_cannot_say_is_not_said_to_be_peft(tied, methods, tmp_path):
    model = tiny.decoder(tiny.config(tied=tied))
    adapter = adapt(model, methods)
    tiny.jitter(adapter)
    adapter.save(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["peft_type"] == "HALTER_SEVERAL"
    assert json.loads((tmp_path / "a" / "halter.json").read_text())["servable_by"] == ["halter"]
    with torch.no_grad():
        again = model(TOKENS, adapter=load_adapter(tmp_path / "a", model))
        assert torch.equal(again, model(TOKENS, adapter=adapter))


@pytest.mark.parametrize(
    ("tied", "change", "reason"),
    [(False, {"q_proj": [3]}, "rows are of embed_tokens"), (False, [7, 96], "token-rows"), (False, ["a"], "invalid")],
)
def test_rows_that_are_not_ours_are_refused(tied, change, reason, tmp_path):
    model = tiny.decoder(tiny.config(tied=tied))
    adapt(model, [LORA, Rows((7,))]).save(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text()) | {"trainable_token_indices": change}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "a" / "halter.json").unlink()
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(Refusal) as caught:
        load_adapter(tmp_path / "a", model)
    assert caught.value.id in ("adapter-unsupported", "token-rows", "adapter-unreadable")
    assert reason in str(caught.value)


def test_rows_beside_pairs_are_counted_and_missing_ones_named(tmp_path):
    model = tiny.decoder()
    adapt(model, [LORA, Rows((7, 9))]).save(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    config["trainable_token_indices"] = [7, 9, 11]
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "a" / "halter.json").unlink()
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(Refusal, match=r"part1\.model\.embed_tokens.*\(2, 32\), not \(3, 32\)"):
        load_adapter(tmp_path / "a", model)


def test_the_base_matrices_that_peft_saves_along_are_recognised(tmp_path):
    model = tiny.decoder()
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=NAMES, trainable_token_indices=[7])
    theirs = peft.get_peft_model(tiny.peer(model), config)
    theirs.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    assert any(".base_layer." in name for name in read_tensors(tmp_path / "a" / "adapter_model.safetensors"))
    assert load_adapter(tmp_path / "a", model).num_trainable == _count(theirs)
    with pytest.raises(Refusal, match="differs from the base's"):
        load_adapter(tmp_path / "a", tiny.decoder(seed=5))


def _count(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_folder_of_both_from_before_this_layout_is_read(tmp_path, monkeypatch):
    model = tiny.decoder()
    adapter = adapt(model, [LORA, Rows((7, 41))])
    tiny.jitter(adapter)
    with monkeypatch.context() as earlier:
        earlier.setattr(peft_together, "together", lambda methods, shape: False)
        adapter.save(tmp_path / "a")
    assert any("part1." in name for name in read_tensors(tmp_path / "a" / "adapter_model.safetensors"))
    with torch.no_grad():
        again = model(TOKENS, adapter=load_adapter(tmp_path / "a", model))
        assert torch.equal(again, model(TOKENS, adapter=adapter))
