"""LoRA against peft: folders both ways, logits, gradients, option by option, and what is refused."""

from __future__ import annotations

import json

import bounds
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.data.pack import Batch
from halter.errors import Refusal
from halter.files.tensors import read_tensors
from halter.training.schedule import make as make_schedule
from halter.training.step import take_step
from halter.training.trainee import Trainee

peft = pytest.importorskip("peft")
TOKENS = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(2))

OPTIONS = [
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": "all-linear", "rslora": True, "r": 4},
    {"target_modules": r".*\.(0|1)\.mlp\.(up|down)_proj"},
    {"target_modules": ["q_proj", "lm_head", "embed_tokens"], "alpha": 12.0},
    {"target_modules": ["k_proj", "gate_proj"], "layers": (1,), "alpha": 3.0},
    {
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5},
        "alpha_pattern": {"v_proj": 64.0},
        "target_modules": "all-linear",
    },
    {"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_peft_reads_what_we_write(options, tmp_path):
    model = tiny.decoder()
    adapter = adapt(model, "lora", **{"r": 8, **options})
    tiny.jitter(adapter)
    adapter.save(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(tiny.peer(model), tmp_path / "ours").eval()
    counts = sum(p.numel() for n, p in theirs.named_parameters() if "lora_" in n)
    assert counts == adapter.num_trainable
    with torch.no_grad():
        bounds.assert_same(model(TOKENS, adapter=adapter), theirs(TOKENS).logits)


NOTHING = [
    ("lora", lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=0, target_modules=["q_proj"])),
    (
        "lora",
        lambda: peft.LoraConfig(
            task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "o_proj", "embed_tokens"], alpha_pattern={"o_proj": 0}
        ),
    ),
    ("dora", lambda: peft.LoraConfig(task_type="CAUSAL_LM", lora_alpha=0, target_modules=["v_proj"], use_dora=True)),
    ("loha", lambda: peft.LoHaConfig(task_type="CAUSAL_LM", r=4, alpha=0, target_modules=["q_proj"])),
    ("lokr", lambda: peft.LoKrConfig(task_type="CAUSAL_LM", r=4, alpha=0, target_modules=["q_proj"])),
]


@pytest.mark.parametrize(("name", "config"), NOTHING)
def test_a_strength_of_nothing_is_read_as_peft_reads_it_and_told(name, config, tmp_path):
    """peft loads it; the update is then zero, and Halter says so. No training here begins that way."""
    model = tiny.decoder()
    theirs = peft.get_peft_model(tiny.peer(model), config()).eval()
    with torch.no_grad():
        for parameter in (p for p in theirs.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) / 4)
    theirs.save_pretrained(tmp_path / "theirs")
    heard = []
    adapter = load_adapter(tmp_path / "theirs", model, say=heard.append)
    opened = peft.PeftModel.from_pretrained(tiny.peer(model), tmp_path / "theirs").eval()
    with torch.no_grad():
        ours = model(TOKENS, adapter=adapter)
        bounds.assert_same(ours, opened(TOKENS).logits)
        if name != "dora" and "alpha_pattern" not in str(heard):
            assert torch.equal(ours, model(TOKENS))
    assert adapter.methods[0].name() == name and any("0: the update that it scales is nothing" in one for one in heard)
    adapter.save(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(model(TOKENS, adapter=load_adapter(tmp_path / "ours", model)), ours)
    with pytest.raises(Refusal, match="learns-nothing"):
        adapt(model, adapter.methods[0])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_we_read_what_peft_writes(options, tmp_path):
    model = tiny.decoder()
    renamed = {"alpha": "lora_alpha", "rslora": "use_rslora", "layers": "layers_to_transform"}
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        init_lora_weights=False,
        **{renamed.get(k, k): list(v) if isinstance(v, tuple) else v for k, v in options.items()},
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(tiny.peer(model), config).eval()
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    adapter = load_adapter(tmp_path / "theirs", model)
    with torch.no_grad():
        want = theirs(TOKENS).logits
        assert float((want - model(TOKENS)).abs().max()) > 1e-2
        bounds.assert_same(model(TOKENS, adapter=adapter), want)
    adapter.save(tmp_path / "again")
    before = read_tensors(tmp_path / "theirs" / "adapter_model.safetensors")
    after = read_tensors(tmp_path / "again" / "adapter_model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_the_file_is_named_and_shaped_as_peft_documents(tmp_path):
    adapter = adapt(tiny.decoder(), "lora", r=4, target_modules=["q_proj", "embed_tokens"])
    adapter.save(tmp_path / "a")
    tensors = read_tensors(tmp_path / "a" / "adapter_model.safetensors")
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    assert tensors[f"{q}.lora_A.weight"].shape == (4, 32) and tensors[f"{q}.lora_B.weight"].shape == (32, 4)
    e = "base_model.model.model.embed_tokens"
    assert tensors[f"{e}.lora_embedding_A"].shape == (4, 96) and tensors[f"{e}.lora_embedding_B"].shape == (32, 4)
    assert all(t.dtype == torch.float32 for t in tensors.values())
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["inference_mode"] is True
    assert not set(config) - set(peft.LoraConfig().to_dict())  # peft warns of keys it does not know
    facts = json.loads((tmp_path / "a" / "halter.json").read_text())
    assert "vLLM" in facts["servable_by"]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    st.booleans(),
    st.lists(st.integers(3, 25), min_size=1, max_size=5),
    st.integers(1, 6),
    st.integers(0, 50),
)
def test_gradients_equal_transformers_and_peft(heads, tied, lengths, r, seed):
    """The same rows padded in one batch there and packed here: norm-relative 1e-5 in fp32, losses to 1e-6."""
    model = tiny.decoder(tiny.config(heads=heads[0], kv_heads=heads[1], tied=tied), seed=seed)
    adapter = adapt(model, "lora", r=r, alpha=2.0 * r)
    tiny.jitter(adapter)
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 96, (n,), generator=g) for n in lengths]
    prompts = [n // 3 for n in lengths]

    config = peft.LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=2 * r, target_modules="all-linear")
    theirs = peft.get_peft_model(tiny.peer(model), config)
    state = {
        f"base_model.model.{n}".replace(".weight", ".default.weight"): getattr(s.piece, a).detach()
        for n, s, a in adapter.named_tensors()
    }
    theirs.load_state_dict(state, strict=False)
    width = max(lengths)
    ids = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
    mask = torch.stack([torch.arange(width) < n for n in lengths]).long()
    labels = ids.masked_fill(mask == 0, -100)
    for row, n in enumerate(prompts):
        labels[row, :n] = -100
    count = int((labels[:, 1:] != -100).sum())
    loss = theirs(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=count).loss
    loss.backward()
    grads = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}

    targets = [torch.full_like(row, -100) for row in rows]
    for row, target, n in zip(rows, targets, prompts, strict=True):
        start = max(n - 1, 0)
        target[start:-1] = row[start + 1 :]
    data = Batch(torch.cat(rows), torch.cat(targets), lengths, prompts, list(range(len(rows))))
    kept: dict[str, torch.Tensor] = {}
    for name, p in adapter.trainable().items():
        p.register_post_accumulate_grad_hook(lambda p, name=name: kept.__setitem__(name, p.grad.clone()))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    one = Trainee(adapter, torch.optim.SGD(adapter.parameters(), lr=0.0), make_schedule("constant", 1, 0), scaler)
    record = take_step(model, [one], [[data]])[0]
    assert record.target_tokens == count
    assert abs(record.loss - float(loss)) < 1e-6 * max(1.0, float(loss))
    ours = torch.cat([kept[n].flatten() for n in kept])
    peers = torch.cat([grads[f"base_model.model.{n}".replace(".weight", ".default.weight")].flatten() for n in kept])
    assert float((ours - peers).norm() / peers.norm()) < 1e-5


def test_what_we_lack_is_refused_with_the_reason(tmp_path):
    model = tiny.decoder()
    for change, reason in (
        ({"modules_to_save": ["lm_(head|tail)"]}, "names no modules"),
        ({"bias": "some"}, "neither all nor lora_only"),
        ({"layers_pattern": ["blocks"]}, "a LLaMA's layers are called layers"),
        ({"trainable_token_indices": {"q_proj": [3]}}, "rows are of embed_tokens"),
        ({"layer_replication": [[0, 1]]}, "replicated layers"),
        ({"fan_in_fan_out": True}, "transposed"),
        ({"megatron_config": {"a": 1}}, "Megatron"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"peft_type": "FOURIERFT"}, "FOURIERFT"),
    ):
        folder = tmp_path / reason
        adapt(model, "lora").save(folder)
        config = json.loads((folder / "adapter_config.json").read_text()) | change
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "halter.json").unlink()
        (folder / "manifest.json").unlink()
        with pytest.raises(Refusal) as caught:
            load_adapter(folder, model)
        assert caught.value.id == "adapter-unsupported" and reason in str(caught.value)


def test_bare_parameters_that_a_model_has_not_are_refused_by_name(tmp_path):
    model = tiny.decoder()
    adapt(model, "lora").save(tmp_path / "one")
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    (tmp_path / "one" / "adapter_config.json").write_text(json.dumps(config | {"target_parameters": ["experts.w1"]}))
    for own in ("halter.json", "manifest.json"):
        (tmp_path / "one" / own).unlink()
    with pytest.raises(Refusal, match="experts.w1") as caught:
        load_adapter(tmp_path / "one", model)
    assert caught.value.id == "targets-match-nothing"


def test_unknown_keys_of_newer_peft_are_tolerated(tmp_path):
    model = tiny.decoder()
    adapt(model, "lora").save(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text()) | {"a_key_of_2030": {"x": [1]}}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "a" / "halter.json").unlink()
    (tmp_path / "a" / "manifest.json").unlink()
    assert load_adapter(tmp_path / "a", model).methods[0].r == 16


def test_a_target_that_matches_nothing_lists_what_exists():
    model = tiny.decoder()
    for target, wrong in (
        (["q_proj", "c_attn"], "c_attn"),
        ("query", "query"),
        (["model.layers.9.self_attn.q_proj"], "model.layers.9.self_attn.q_proj"),
    ):
        with pytest.raises(Refusal) as caught:
            adapt(model, "lora", target_modules=target)
        assert caught.value.id == "targets-match-nothing" and wrong in caught.value.found
        assert "down_proj" in str(caught.value)
    with pytest.raises(Refusal, match="layer 2"):
        adapt(model, "lora", layers=[2])
    with pytest.raises(Refusal, match="regular expression"):
        adapt(model, "lora", target_modules="(")
    with pytest.raises(Refusal, match="lora-options"):
        adapt(model, "lora", r=0)
    with pytest.raises(Refusal, match="rank.*target_modules"):
        adapt(model, "lora", rank=4)


@pytest.mark.parametrize(
    "preset_name,targets,r,count",
    [
        ("llama-1-7b", ["q_proj", "v_proj"], 8, 4_194_304),
        ("llama-3-8b", "all-linear", 16, 41_943_040),
        ("llama-2-70b", "all-linear", 64, 828_375_040),
        ("llama-1-65b", ["q_proj", "k_proj", "v_proj", "o_proj"], 8, 41_943_040),
    ],
)
def test_counts_are_exact(preset_name, targets, r, count):
    from halter.contract.registry import find
    from halter.model.config import preset

    shape, method = preset(preset_name), find("lora")(r=r, target_modules=targets)
    with torch.device("meta"):
        pieces = [piece for layer in range(shape.layers) for piece in method.build(shape, layer).values()]
    assert sum(p.numel() for piece in pieces for p in piece.parameters()) == count
