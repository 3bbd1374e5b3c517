"""Whole runs on a real checkpoint: what a recipe asks for happens, and the folder says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import bounds
import pytest
import torch

import halter
from halter.adapters.loading import load_adapter
from halter.errors import Refusal
from halter.files.disk import temporary_name
from halter.files.runs import RunFolder
from halter.pretrained.load import load_model


@pytest.fixture
def recipe(heavy_data, tmp_path):
    """A recipe of four small steps on a base that tells stories; keys are changed by dotted name."""

    def make(name="run", **changes):
        base = {
            "model": {"path": str(heavy_data.base), "device": "cpu"},
            "method": {"name": "lora", "r": 2, "alpha": 4},
            "data": {
                "train": f"{heavy_data.train}#24",
                "validation": f"{heavy_data.test}#4",
                "template": "alpaca",
                "max_length": 320,
                "on_long": "cut",
            },
            "train": {"per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-2, "save_steps": 2},
            "output_dir": str(tmp_path / name),
        }
        for key, value in changes.items():
            section, _, inner = key.partition("__")
            if inner:
                base[section] = {**base[section], inner: value}
            else:
                base[section] = value
        return base

    return make


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tensors(run):
    from halter.files.tensors import read_tensors

    return read_tensors(run / "adapter" / "adapter_model.safetensors")


def quiet(*args, **kwargs):
    said = []
    return halter.train(*args, say=said.append, **kwargs), "\n".join(said)


def test_a_run_leaves_what_it_promises(recipe):
    run, said = quiet(recipe())
    assert "of them learned" in said and "4 rows for the held-out loss" in said
    worst = r"memory at its worst: about [\d.]+ \w+ planned for micro-batches of \d+ tokens; "
    assert re.search(
        worst + r"[\d.]+ \w+ (measured beyond what this process had taken before$|taken: there was room)",
        said,
        re.MULTILINE,
    )
    steps = [line for line in lines(run) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4] and all(line["attempt"] == 1 for line in steps)
    losses = [line["eval_loss"] for line in lines(run) if "eval_loss" in line]
    assert len(losses) == 2 and losses[-1] < losses[0]
    assert [step for step, _ in RunFolder(run).checkpoints()] == [2, 4]
    facts = json.loads((run / "adapter" / "halter.json").read_text())
    assert facts["template"]["name"] == "alpaca" and len(facts["base"]["digest"]) == 64 and facts["recipe"]["model"]
    with pytest.raises(Refusal, match="run-finished"):
        quiet(recipe())


def test_the_same_recipe_gives_the_same_bits_and_another_seed_others(recipe):
    runs = [quiet(recipe(name, train__seed=seed))[0] for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    a, b, c = map(tensors, runs)
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], c[k]) for k in a)


def test_resume_continues_and_refuses_another_recipe(recipe):
    whole, _ = quiet(recipe("whole", method__dropout=0.1))
    part, _ = quiet(recipe("part", method__dropout=0.1))
    for folder in ("adapter", "checkpoints/step-0000004"):
        import shutil

        shutil.rmtree(part / folder)
    with pytest.raises(Refusal, match="run-unfinished"):
        quiet(recipe("part", method__dropout=0.1))
    with pytest.raises(Refusal) as caught:
        quiet(recipe("part", method__r=3), resume=True)
    assert caught.value.id == "run-differs" and any(one.startswith("method.r: ") for one in caught.value.found)
    again, said = quiet(recipe("part", method__dropout=0.1), resume=True)
    assert "step-0000002" in said
    assert all(torch.equal(v, tensors(again)[k]) for k, v in tensors(whole).items())
    assert [line["step"] for line in lines(again) if line.get("attempt") == 2 and "loss" in line] == [3, 4]


def test_a_run_that_died_in_its_first_write_stands_in_nobodys_way(recipe):
    given = recipe("early")
    folder = Path(given["output_dir"])
    folder.mkdir(parents=True)
    temporary_name(folder / "recipe.yaml").write_text("model:")  # killed while it was being written
    trial = temporary_name(folder / ".halter-00112233")  # killed while trying whether one may write here
    trial.mkdir()
    run, _ = quiet(given)
    assert (run / "adapter").is_dir() and not trial.exists()
    other = recipe("other")
    Path(other["output_dir"]).mkdir(parents=True)
    (Path(other["output_dir"]) / "thesis.txt").write_text("mine")
    for place in (other["output_dir"], "/"):  # above which there is nothing
        with pytest.raises(Refusal, match="not-a-run"):
            quiet({**other, "output_dir": place})


def test_dry_run_shows_and_writes_nothing(recipe):
    run, said = quiet(recipe(), dry_run=True)
    assert run is None and "4 steps of 4 rows" in said and "% of them learned" in said and "max_steps: 4" in said
    assert not (RunFolder(recipe()["output_dir"]).path).exists()


def test_qlora_in_one_word(recipe, heavy_data):
    run, said = quiet(recipe(method={"name": "qlora", "r": 4}))
    facts = json.loads((run / "adapter" / "halter.json").read_text())
    assert facts["quantize"] == "nf4" and "paged_adamw_32bit" in said
    small = load_model(heavy_data.base, "float32", "nf4")
    adapter = load_adapter(run / "adapter", small)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert float((small(tokens, adapter=adapter) - small(tokens)).abs().max()) > 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precisions(recipe, precision):
    """fp16 scales its loss; the adapter stays in fp32 and learns in each."""
    run, _ = quiet(recipe(train__precision=precision, train__max_steps=8))
    steps = [line for line in lines(run) if "loss" in line]
    assert min(line["loss"] for line in steps[3:]) < steps[0]["loss"]
    assert sum(line["applied"] for line in steps) >= 3  # fp16 may first find its scale
    assert all(t.dtype == torch.float32 for t in tensors(run).values())


def test_warm_start_several_methods_and_trackers(recipe, tmp_path):
    first, _ = quiet(recipe("first"))
    second, _ = quiet(recipe("second", method__init_from=str(first / "adapter"), train__learning_rate=0.0))
    assert all(torch.equal(v, tensors(second)[k]) for k, v in tensors(first).items())
    both = [{"name": "lora", "r": 2}, {"name": "full", "target_modules": ["norm"]}]
    third, _ = quiet(recipe("third", method=both, train__report_to=["tensorboard"]))
    names = set(tensors(third))
    assert any("lora_A" in n for n in names) and any("norm" in n for n in names)
    assert list((third / "tensorboard").glob("events*"))


def test_a_warm_start_that_does_not_fit_is_refused_and_others_are_told(recipe):
    first, _ = quiet(recipe("first"))
    with pytest.raises(Refusal) as caught:
        quiet(recipe("second", method={"name": "lora", "r": 1, "alpha": 4, "init_from": str(first / "adapter")}))
    assert caught.value.id == "init-from-differs" and "needs rank 2, and has 1" in caught.value.found[0]
    hybrid = [
        {"name": name, "init_from": str(first / "adapter"), **o} for name, o in (("bitfit", {}), ("lora", {"r": 4}))
    ]
    third, said = quiet(recipe("third", method=hybrid, train__learning_rate=0.0))
    assert f"bitfit starts afresh: {first / 'adapter'} holds none" in said
    assert f"lora starts from lora of {first / 'adapter'}" in said
    was, now = tensors(first), tensors(third)
    for name in was:
        if name.endswith("lora_B.weight"):
            found = next(t for n, t in now.items() if n.endswith(name.removeprefix("base_model.model.")))
            assert torch.equal(found[:, :2], was[name]) and not found[:, 2:].any()


def test_patience_needs_a_held_out_loss(recipe):
    with pytest.raises(Refusal, match="no-validation"):
        quiet(recipe(data__validation=None, train__early_stopping_patience=1))


def test_a_stopped_try_leaves_no_stale_recipe(recipe):
    with pytest.raises(Refusal):
        quiet(recipe(method__init_from="/nowhere"))
    run, _ = quiet(recipe(method__r=3))
    assert "r: 3" in (run / "recipe.yaml").read_text()


def test_early_stopping_keeps_the_best(recipe):
    """The best evaluation is step 1's; the result is the adapter of that step, bit for bit."""
    changes = {"train__eval_steps": 1, "train__save_steps": 1, "train__save_total_limit": None}
    changes |= {"train__learning_rate": 0.5, "train__early_stopping_patience": 2, "train__warmup_steps": 0.999}
    changes["checks"] = {"allow": ["learning-rate"]}
    run, _ = quiet(recipe(**changes, train__max_steps=40))
    losses = [line["eval_loss"] for line in lines(run) if "eval_loss" in line]
    best = losses.index(min(losses))
    assert 0 < best == len(losses) - 3 and losses[-1] > losses[best]  # the start counts as an evaluation
    folder = RunFolder(run).path / "checkpoints" / f"step-{best:07d}"
    kept = RunFolder(run).load_checkpoint(folder).tensors["adapter-0"]
    assert {n.removeprefix("base_model.model."): t for n, t in tensors(run).items()}.keys() == kept.keys()
    assert all(torch.equal(t, kept[n.removeprefix("base_model.model.")]) for n, t in tensors(run).items())


def test_a_run_that_only_gets_worse_ends_as_it_began(recipe):
    changes = {"train__learning_rate": 5.0, "train__eval_steps": 1, "train__early_stopping_patience": 1}
    changes["checks"] = {"allow": ["learning-rate"]}
    run, _ = quiet(recipe(**changes, train__max_steps=20, train__warmup_steps=0))
    losses = [line["eval_loss"] for line in lines(run) if "eval_loss" in line]
    assert len(losses) == 2 and losses[1] > losses[0]
    assert all(not t.any() for n, t in tensors(run).items() if "lora_B" in n)


def test_the_checkpoint_before_a_spike_is_kept_and_named(recipe, heavy_data, monkeypatch):
    from halter.training import step

    gather = step.gather

    def leap(model, trainees, micros, checkpointing=False):
        gathered = gather(model, trainees, micros, checkpointing)
        if trainees[0].step + 1 == 13:
            gathered.losses.mul_(20)
        return gathered

    monkeypatch.setattr(step, "gather", leap)
    run, told = quiet(recipe(train__max_steps=20, train__save_steps=4, train__save_total_limit=1))
    assert [step for step, _ in RunFolder(run).checkpoints()] == [12, 20]
    said = next(line for line in told.splitlines() if "leapt" in line)
    assert "step 13:" in said and "checkpoint of step 12 is kept" in said and f"{heavy_data.train.name}:" in said
    alarm = next(line for line in lines(run) if "alarm" in line)
    assert alarm["step"] == 13 and len(alarm["rows"]) == 4 == len(alarm["rows_before"])
    assert RunFolder(run).load_checkpoint(RunFolder(run).checkpoints()[-1][1]).state["spared"] == [12]


def test_the_largest_pass_is_tried_first(recipe, monkeypatch):
    """Memory must run out before step 1, not in the middle: the pass with the longest row is tried first."""
    from halter.training import step

    sizes, accumulate = [], step._accumulate

    def seen(model, trainees, micro, targets, number, checkpointing):
        sizes.append((trainees[0].step, max(micro[0].lengths)))
        return accumulate(model, trainees, micro, targets, number, checkpointing)

    monkeypatch.setattr(step, "_accumulate", seen)
    for seed in range(3):
        sizes.clear()
        one_row = {"train__per_device_train_batch_size": 1, "train__max_steps": 24, "data__max_length": 1000}
        quiet(recipe(f"seed{seed}", train__seed=seed, **one_row))
        assert sizes[0] == (0, max(length for _, length in sizes))


def test_what_is_lost_or_cannot_be_is_said(recipe):
    """Rows left out, a length that the base does not have, a run that is not named, a blank that was not filled in."""
    _, said = quiet(recipe(data__on_long="drop", data__max_length=4096), dry_run=True)
    assert "note: this base knows 512 positions" in said
    assert "of 24 rows have more than 512 tokens and are left out: --on-long cut keeps " in said
    with pytest.raises(Refusal, match="nothing-to-resume"):
        quiet(recipe(output_dir=None), resume=True)
    with pytest.raises(Refusal, match="still PATH_OR_HUB_ID"):
        quiet(recipe(model__path="PATH_OR_HUB_ID"))
    with pytest.raises(Refusal, match="rows are longer than 8 tokens.*raise --max-length"):
        quiet(recipe(data__on_long="drop", data__max_length=8))


def test_another_template_and_an_unfinished_checkpoint_are_told(recipe, monkeypatch):
    """What is opened with another template is warned of; a checkpoint says how its run goes on."""
    from halter.run.opening import OpenOptions, find, open_subject

    run, _ = quiet(recipe())
    said = []
    open_subject(find(run), said.append, OpenOptions(template="llama-2"))
    assert [line for line in said if "trained with the template alpaca, and llama-2 is used" in line]
    said.clear()
    open_subject(find(run), said.append)
    assert not [line for line in said if "template" in line]

    class Killed(BaseException):
        pass

    save = RunFolder.save_checkpoint

    def dying(self, at, *args, **how):
        save(self, at, *args, **how)
        raise Killed

    monkeypatch.setattr(RunFolder, "save_checkpoint", dying)
    with pytest.raises(Killed):
        quiet(recipe("cut"))
    folder = RunFolder(recipe("cut")["output_dir"]).path
    with pytest.raises(Refusal, match=f"train --resume --output {folder}"):
        find(folder / "checkpoints" / "step-0000002")


def test_a_warm_start_takes_over_the_date_that_its_adapter_was_told(recipe, tmp_path):
    from halter.recipe import load
    from halter.run.prepare import prepare

    template = tmp_path / "dated.jinja"
    template.write_text(
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    first, _ = quiet(recipe("first", data__template=str(template), data__template_date="2024-02-03"))
    job = prepare(load(recipe("second", data__template=str(template), method__init_from=str(first / "adapter"))))
    assert job.recipe.data.template_date == "2024-02-03"


def test_sample_prompts_are_answered(recipe):
    run, said = quiet(recipe(train__sample_prompts=["Tell a story."], train__max_steps=1))
    assert said.count("'Tell a story.' ->") == 2 and run is not None


def test_activation_checkpointing_changes_nothing(recipe):
    on, off = (quiet(recipe(way, train__activation_checkpointing=way))[0] for way in ("on", "off"))
    assert all(torch.equal(v, tensors(on)[k]) for k, v in tensors(off).items())


def test_peft_reads_the_result(recipe, heavy_data):
    peft = pytest.importorskip("peft")
    import transformers

    run, _ = quiet(recipe())
    folder = heavy_data.base
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(folder), run / "adapter")
    model, _ = halter.load(folder)
    tokens = torch.randint(0, 512, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = model(tokens, adapter=halter.load_adapter(run / "adapter", model))
        bounds.assert_same(got, theirs(tokens).logits)
