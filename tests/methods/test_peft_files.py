"""Files that peft users have and that are not plain: pickles, other tasks, unknown kinds, biases and copies."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.adapters.describing import describe
from halter.adapters.loading import load_adapter
from halter.cli import main
from halter.contract.registry import names
from halter.errors import Refusal
from halter.files.tensors import read_tensors
from halter.methods.bitfit import Bitfit
from halter.methods.dora import Dora
from halter.methods.full import Full
from halter.methods.ia3 import Ia3
from halter.methods.lora import Lora
from halter.methods.norm_tuning import NormTuning
from halter.methods.token_rows import TokenRowsMethod as Rows
from halter.pretrained.save import save_model

peft = pytest.importorskip("peft")
TOKENS = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(2))
BIASED = {"attention_bias": True, "mlp_bias": True}
LORA = Lora(r=4, target_modules=["q_proj", "v_proj"])
OTHERS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")

OURS = [
    ({}, [LORA, Full(("lm_head", "norm"))]),
    ({}, [Full(("input_layernorm", "model.layers.1.mlp.up_proj")), LORA]),
    ({}, [LORA, Rows((3, 5), where="embeddings"), Full(("lm_head",))]),
    ({"tied": True}, [LORA, Full(("embed_tokens",), keep_tied=False)]),
    (BIASED, [LORA, Bitfit("all-linear", "base")]),
    (BIASED, [LORA, Bitfit(("q_proj", "v_proj"), "base")]),
    (BIASED, [Dora(r=4, target_modules=["q_proj", "up_proj"]), Bitfit("all-linear", "base")]),
    (BIASED, [Lora(r=4, lora_bias=True, rslora=True), Full(("lm_head",))]),
    (BIASED, [LORA, Full(("o_proj",)), Bitfit(OTHERS, "base")]),
    ({}, [Dora(r=4, target_modules=["q_proj", "embed_tokens"])]),
    ({}, [Ia3(), Full(("lm_head",))]),
    ({}, [NormTuning(), Full(("lm_head",))]),
]


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("sizes", "methods"), OURS, ids=lambda v: str(v)[:70])
def test_peft_reads_what_we_write_beside_a_method(sizes, methods, tmp_path):
    model = tiny.decoder(tiny.config(**sizes))
    adapter = adapt(model, methods)
    with torch.no_grad():
        assert torch.equal(model(TOKENS, adapter=adapter), model(TOKENS))
    tiny.jitter(adapter)
    adapter.save(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(tiny.peer(model), tmp_path / "ours").eval()
    with torch.no_grad():
        want = model(TOKENS, adapter=adapter)
        torch.testing.assert_close(theirs(TOKENS).logits, want, rtol=2e-5, atol=2e-5)
        assert torch.equal(model(TOKENS, adapter=load_adapter(tmp_path / "ours", model)), want)
        for name in ("halter.json", "manifest.json"):
            (tmp_path / "ours" / name).unlink()
        torch.testing.assert_close(model(TOKENS, adapter=load_adapter(tmp_path / "ours", model)), want)
    assert describe(tmp_path / "ours")["parameters"] == adapter.num_trainable


@pytest.mark.parametrize(
    ("sizes", "methods"),
    [
        ({}, [LORA, Full(("q_proj",))]),  # peft does not adapt what it saves whole
        ({"tied": True}, [LORA, Full(("embed_tokens",))]),  # one matrix for both
        (BIASED, [LORA, Bitfit("all-linear")]),  # biases beside the base's
        (BIASED, [LORA, Bitfit(("k_proj",), "base")]),  # neither all nor those of the pairs
        (BIASED, [Bitfit("all-linear", "base"), Dora(r=4)]),  # dora would scale them
        (BIASED, [Ia3(), Bitfit("all-linear", "base")]),
    ],
    ids=lambda v: str(v)[:60],
)
def test_what_peft_cannot_say_stays_halters(sizes, methods, tmp_path):
    model = tiny.decoder(tiny.config(**sizes))
    adapter = adapt(model, methods)
    tiny.jitter(adapter)
    adapter.save(tmp_path / "a")
    assert config_of(tmp_path / "a")["peft_type"] == "HALTER_SEVERAL"
    with torch.no_grad():
        again = model(TOKENS, adapter=load_adapter(tmp_path / "a", model))
        assert torch.equal(again, model(TOKENS, adapter=adapter))


@pytest.mark.filterwarnings("ignore")
def test_a_copy_takes_the_place_of_a_pair_and_the_bias_stands_there_three_times(tmp_path):
    """Targets inside modules_to_save are not adapted by peft; with bias: all it files a copy's bias thrice."""
    model = tiny.decoder(tiny.config(**BIASED))
    tried = (
        {"target_modules": "all-linear", "modules_to_save": ["self_attn"]},
        {"modules_to_save": ["o_proj"], "bias": "all"},
        {"modules_to_save": ["q_proj"], "target_modules": ["q_proj", "up_proj"]},
    )
    for number, options in enumerate(tried):
        torch.manual_seed(0)
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **options)
        theirs = peft.get_peft_model(tiny.peer(model), config).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter)) if parameter.requires_grad else None
        theirs.save_pretrained(tmp_path / f"a{number}")
        adapter = load_adapter(tmp_path / f"a{number}", model)
        with torch.no_grad():
            want = theirs(TOKENS).logits
            torch.testing.assert_close(model(TOKENS, adapter=adapter), want, rtol=2e-5, atol=2e-5)


def older(model, tmp_path):
    """A folder of peft's with its tensors in a pickle, as peft before 0.7 wrote them."""
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False)
    theirs = peft.get_peft_model(tiny.peer(model), config).eval()
    theirs.save_pretrained(tmp_path / "a", safe_serialization=False)
    assert (tmp_path / "a" / "adapter_model.bin").is_file()
    assert not (tmp_path / "a" / "adapter_model.safetensors").exists()
    return tmp_path / "a", theirs


def test_an_older_pefts_pickle_is_read(tmp_path):
    model = tiny.decoder()
    folder, theirs = older(model, tmp_path)
    adapter = load_adapter(folder, model)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS, adapter=adapter), theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)
    told = describe(folder)
    assert told["parameters"] == adapter.num_trainable and told["rank"] == "4"
    adapter.save(tmp_path / "again")  # and becomes a safe file
    assert read_tensors(tmp_path / "again" / "adapter_model.safetensors").keys() == shelf_names(folder)


def shelf_names(folder):
    return torch.load(folder / "adapter_model.bin", weights_only=True).keys()


class Evil:
    def __reduce__(self):
        return (eval, ("open('ran', 'w')",))


@pytest.mark.parametrize("kind", ["code", "code-old", "torn", "nested", "empty"])
def test_a_hostile_pickle_is_refused_and_runs_nothing(kind, tmp_path, monkeypatch):
    model = tiny.decoder()
    folder, _ = older(model, tmp_path)
    file = folder / "adapter_model.bin"
    if kind == "code":
        torch.save({"x": Evil()}, file)
    elif kind == "code-old":
        file.write_bytes(pickle.dumps({"x": Evil()}))
    elif kind == "torn":
        file.write_bytes(file.read_bytes()[:-100])
    elif kind == "nested":
        torch.save({"a": {"b": torch.zeros(2)}}, file)
    else:
        file.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for read in (lambda: load_adapter(folder, model), lambda: describe(folder)):
        with pytest.raises(Refusal, match="tensor-file-damaged"):
            read()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM"])
def test_an_adapter_of_another_task_is_refused_or_waived(task, tmp_path):
    model = tiny.decoder()
    adapt(model, "lora").save(tmp_path / "a")
    for name in ("halter.json", "manifest.json"):
        (tmp_path / "a" / name).unlink()
    changed = config_of(tmp_path / "a") | {"task_type": task}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(changed))
    with pytest.raises(Refusal, match=f"task_type {task}") as caught:
        load_adapter(tmp_path / "a", model)
    assert caught.value.id == "adapter-task"
    assert load_adapter(tmp_path / "a", model, allow=["adapter-task"]).num_trainable


@pytest.mark.filterwarnings("ignore")
def test_the_second_bias_of_adaption_prompt_is_read_told_and_never_written_where_it_was_not_trained(tmp_path, capsys):
    model = tiny.decoder(tiny.config(**BIASED))
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2)
    peft.get_peft_model(tiny.peer(model), config).save_pretrained(tmp_path / "theirs")
    read = load_adapter(tmp_path / "theirs", model)
    assert read.methods[0].second_output_bias and "a second time" in read.notes[0]
    assert not load_adapter(tmp_path / "theirs", tiny.decoder()).notes  # nothing to add where there is no bias
    read.save(tmp_path / "again")
    assert config_of(tmp_path / "again")["peft_type"] == "ADAPTION_PROMPT"
    assert not load_adapter(tmp_path / "again", model).notes  # an option like any other by now

    ours = adapt(model, "llama_adapter", adapter_len=4, gate_scope="layer", gate_activation="identity")
    ours.save(tmp_path / "ours")
    assert config_of(tmp_path / "ours")["peft_type"] == "HALTER_LLAMA_ADAPTER"
    save_model(model, model.config, tmp_path / "base")
    for name, told in (("ours", "second_output_bias false"), ("again", "")):
        code = main.run(
            [
                "adapters",
                "convert",
                str(tmp_path / name),
                "--to",
                "peft",
                "--model",
                str(tmp_path / "base"),
                "--output",
                str(tmp_path / f"{name}-peft"),
            ]
        )
        assert code == (2 if told else 0) and told in capsys.readouterr().err


def test_an_unknown_kind_is_told_with_every_method_once(tmp_path):
    model = tiny.decoder()
    config = peft.FourierFTConfig(task_type="CAUSAL_LM", n_frequency=4, target_modules=["q_proj"])
    peft.get_peft_model(tiny.peer(model), config).save_pretrained(tmp_path / "a")
    with pytest.raises(Refusal, match="FOURIERFT") as caught:
        load_adapter(tmp_path / "a", model)
    assert caught.value.id == "adapter-unsupported"
    assert caught.value.expected.split(", ") == list(names())


def test_slow_patterns_are_refused_before_they_are_matched(tmp_path):
    model = tiny.decoder()
    adapt(model, "norm_tuning").save(tmp_path / "a")
    for name in ("halter.json", "manifest.json"):
        (tmp_path / "a" / name).unlink()
    config = config_of(tmp_path / "a")
    for kind, more in (("LN_TUNING", {}), ("LORA", {"r": 4, "bias": "lora_only"}), ("IA3", {})):
        shutil.copytree(tmp_path / "a", tmp_path / kind)
        changed = config | {"peft_type": kind, "target_modules": "(.*.*.*.*.*.*.*.*)*x", **more}
        (tmp_path / kind / "adapter_config.json").write_text(json.dumps(changed))
        with pytest.raises(Refusal, match="pattern"):
            load_adapter(tmp_path / kind, model)
