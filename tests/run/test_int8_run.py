"""One run over an 8-bit base from recipe to merged folder, on a real checkpoint."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from bounds import PROMISE, assert_same, summing, unit

import halter
from halter.adapters.loading import load_adapter
from halter.cli.main import run as command
from halter.export.merge import merge, sample_rows
from halter.export.requantise import merge_quantised
from halter.files.tensors import read_tensors
from halter.model.storages import held_in
from halter.planning.dry import base_bytes, dry_base
from halter.pretrained.digest import digest_model
from halter.pretrained.load import load_model
from halter.run.opening import OpenOptions, find, open_subject
from halter.run.preflight import examine
from halter.text.tokenizer import Tokenizer

TOKENS = torch.arange(3, 43).view(2, 20)


class Exact:
    """transformers in float64: the same rows, the adapter's products added to the weights that are told; and what a
    float32 forward of ours may be off (bounds.PROMISE of the largest logit)."""

    def __init__(self, base, adapter, held=None):
        """``held``: the model whose 8-bit weights stand in the place of the checkpoint's, each first shown to be the
        nearest code to it."""
        transformers = pytest.importorskip("transformers")
        self.model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
        tensors = read_tensors(adapter / "adapter_model.safetensors")
        config = json.loads((adapter / "adapter_config.json").read_text())
        for name, module in self.model.named_modules():
            if not isinstance(module, torch.nn.Linear) or not name.startswith("model.layers."):
                continue
            _, _, layer, *_, place = name.split(".")
            weight = module.weight.data
            if held is not None:
                linear = held.module(int(layer), place)
                kept = linear.codes.double() * linear.absmax.double()[:, None] / 127
                step = linear.absmax.double()[:, None] / 127
                assert torch.all((kept - weight).abs() <= step / 2 * (1 + 1e-5))  # rounded once, in float32
                weight = kept
            a, b = (tensors.get(f"base_model.model.{name}.lora_{x}.weight") for x in "AB")
            if a is not None:
                weight = weight + config["lora_alpha"] / config["r"] * (b.double() @ a.double())
            module.weight.data = weight

    def __call__(self, tokens):
        with torch.no_grad():
            return self.model(torch.as_tensor(tokens)).logits

    @staticmethod
    def off(logits):
        """What one of our logits may be off."""
        return PROMISE * float(logits.abs().max())


def divergence(wanted, got):
    """Mean KL(wanted || got) in nats of two lists of float64 logits [T, V], and the largest difference of logits."""
    a, b = torch.cat(wanted).log_softmax(-1), torch.cat(got).log_softmax(-1)
    apart = (torch.cat(wanted) - torch.cat(got)).abs().max()
    return float((a.exp() * (a - b)).sum(-1).mean()), float(apart)


@pytest.fixture(scope="module")
def base(heavy_data):
    return heavy_data.base


@pytest.fixture(scope="module")
def trained(heavy_data, base, tmp_path_factory):
    """(run folder, what was said)."""
    recipe = {
        "model": {"path": str(base), "device": "cpu"},
        "load_in_8bit": True,
        "method": {"name": "lora", "r": 4},
        "data": {
            "train": f"{heavy_data.train}#24",
            "validation": f"{heavy_data.test}#4",
            "template": "alpaca",
            "max_length": 320,
            "on_long": "cut",
        },
        "train": {"per_device_train_batch_size": 4, "max_steps": 6, "learning_rate": 1e-2},
        "output_dir": str(tmp_path_factory.mktemp("int8") / "run"),
    }
    said = []
    return halter.train(recipe, say=said.append), "\n".join(said)


def test_it_learns_and_remembers_how_its_base_was_held(trained, base):
    run, said = trained
    assert "load_in_8bit is read as model.quantize" in said and "parameters, int8)" in said
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert losses[-1] < losses[0] - 0.1
    assert json.loads((run / "adapter" / "halter.json").read_text())["quantize"] == "int8"
    opened = open_subject(find(str(run)), lambda _: None)
    assert held_in(opened.model) == "int8" and opened.adapter is not None
    small = load_model(base, "auto", "int8", "cpu")
    before = digest_model(small)
    with torch.no_grad():
        wanted = small(TOKENS, adapter=load_adapter(run / "adapter", small))
        assert torch.equal(opened.model(TOKENS, adapter=opened.adapter), wanted)
        assert_same(wanted, Exact(base, run / "adapter", small)(TOKENS))
        dense = open_subject(find(str(run)), lambda _: None, OpenOptions(quantize="none"))
        assert held_in(dense.model) is None
        far = dense.model(TOKENS, adapter=dense.adapter)
    assert_same(far, Exact(base, run / "adapter")(TOKENS))
    assert not torch.equal(far, wanted)  # 8 bits are not the weights themselves
    assert digest_model(small) == before


def test_the_plan_counts_the_bytes_that_are_held(base):
    model = load_model(base, "float32", "int8", "cpu")
    planned = base_bytes(dry_base(model.config, torch.float32, "int8"))
    assert planned == base_bytes(model)
    linears = [module for place, module in model.places() if place.name in tiny.LINEARS]
    assert planned.constants == sum(4 * linear.out_features for linear in linears)
    dense = base_bytes(dry_base(model.config, torch.float32, None)).total
    numbers = sum(linear.out_features * linear.in_features for linear in linears)
    assert dense - planned.total == 3 * numbers - planned.constants


@pytest.mark.parametrize("into", ["original", "dequantised"])
def test_it_merges_into_wide_weights(trained, base, tmp_path, into):
    small = load_model(base, "float32", "int8", "cpu")
    adapter = load_adapter(trained[0] / "adapter", small)
    report = merge(small, adapter, tmp_path / "m", base=into, source=base)
    rows = sample_rows(Tokenizer.from_folder(base), small.config)
    trained_as = Exact(base, trained[0] / "adapter", small)
    merged_as = trained_as if into == "dequantised" else Exact(base, trained[0] / "adapter")
    wanted, got = ([exact([row])[0] for row in rows] for exact in (trained_as, merged_as))
    off = max(Exact.off(torch.cat(got)), Exact.off(torch.cat(wanted)))
    assert report.gap.largest <= 2 * off  # two forwards of ours with the same weights
    kl, apart = divergence(wanted, got)
    # Where logits are d apart, the divergence moves by |p - q| <= d for each unit that d or p's logits move (off,
    # twice); then it is summed over the vocabulary in float32.
    vocabulary = got[0].shape[-1]
    summed = summing(vocabulary) * apart + 2 * unit(torch.float32) * float(torch.cat(got).abs().max())
    assert abs(report.trained_gap.kl - kl) <= 4 * off * (apart + 2 * off) + 2 * summed
    assert (kl > 100 * off * off) == (into == "original")
    assert "the quantised model that was trained" in str(report)


def test_it_merges_into_8_bits_which_transformers_opens(trained, base, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "eight"
    assert command(["merge", str(trained[0]), "--output", str(folder), "--into", "int8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "int8" and 0.8 < found["survival"] < 1.2 and len(found["shares"]) == 35
    ours = load_model(folder, "float32", device="cpu")
    assert held_in(ours) == "int8"
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    module = peer.model.layers[2].mlp.up_proj
    assert type(module).__name__ == "Linear8bitLt"
    assert torch.equal(module.weight.data, ours.module(2, "up_proj").codes)
    with torch.no_grad():
        theirs, wanted = peer(TOKENS).logits.float(), ours(TOKENS)
    assert float((theirs - wanted).norm() / wanted.norm()) < 0.05  # its activations are rounded to 8 bits


def test_a_small_update_survives_8_bits_where_4_lose_it(base, tmp_path):
    """An update of 1 % of the weights' norm, into weights that were on the grid before."""
    share = {}
    for kind in ("int8", "nf4"):
        model = load_model(base, "float32", kind, "cpu")
        adapter = halter.adapt(model, "lora", r=8, target_modules=["up_proj"])
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for slot in adapter.slots:
                slot.piece.b.copy_(torch.randn(slot.piece.b.shape, generator=g))
                weight = model.module(slot.layer, "up_proj").weight()
                update = slot.piece.fold(torch.zeros_like(weight), None)[0]
                slot.piece.b.mul_(0.01 * weight.norm() / update.norm())
        survival = merge_quantised(model, adapter, tmp_path / kind, kind, base="dequantised", source=base)
        share[kind] = survival.mean
        assert f"rounded to {'8' if kind == 'int8' else '4'} bits the update is" in str(survival)
    assert share["nf4"] < 0.25 < 0.5 < share["int8"] < 1.3


def test_a_folder_stored_in_8_bits_is_examined_as_such(trained, base, heavy_data, tmp_path):
    from halter.recipe import load as read

    model = load_model(base, "float32", "int8", "cpu")
    merge_quantised(model, load_adapter(trained[0] / "adapter", model), tmp_path / "m", "int8", source=base)
    data = {"train": f"{heavy_data.train}#8", "template": "alpaca"}

    def ids(**options):
        recipe = read({"model": {"path": str(tmp_path / "m"), **options}, "method": "lora", "data": data})
        return [problem.id for problem in examine(recipe).problems]

    assert "quantisation-differs" not in ids() + ids(quantize="int8")
    assert "quantisation-differs" in ids(quantize="nf4")
