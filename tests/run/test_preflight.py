"""Preflight: every planted mistake in one run, before anything large is loaded; each check against an exact case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import preflight_folders as made
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_data import Data

from halter.errors import Refusal
from halter.files.runs import RunFolder
from halter.planning import fit
from halter.planning.dry import dry_adapter, dry_base
from halter.planning.trace import training_pass
from halter.run import estimate, preflight
from halter.run.opening import OpenOptions, Subject, open_subject
from halter.run.preflight import examine, ready
from halter.training import memory

PLANTED = {
    "unknown option": ("recipe", "did you mean learning_rate"),
    "missing file": ("data-missing", "nowhere.jsonl"),
    "wrong base": ("adapter-mismatch", "(--model)"),
    "targets matching nothing": ("targets-match-nothing", "did you mean q_proj"),
    "longest row that does not fit": ("row-memory", "chat.jsonl:"),
    "disk space": ("disk-space", "4 checkpoints"),
    "no write permission": ("not-a-folder", "taken.txt is a file"),
    "unknown device": ("device-missing", "cuda:99"),
    "precision against dtype": ("recipe", "train.precision is bf16 and model.dtype is float32"),
    "templates that disagree": ("template-differs", "the checkpoint's own"),
    "row with nothing to learn": ("bad-rows", "chat.jsonl:3"),
    "double BOS": ("double-bos", "tokens.jsonl:2"),
    "end that is masked as padding": ("pad-trained", "tokens.jsonl:3"),
    "waiver that is none": ("waiver-unknown", "did you mean double-bos"),
}


@pytest.fixture
def stories(heavy_data: Data) -> Path:
    return heavy_data.base


def plant_all(stories: Path, folder: Path) -> Path:
    """A recipe with every mistake of PLANTED."""
    made.huge_model(stories, folder / "base", {"chat_template": made.OWN_TEMPLATE, "pad_token": "</s>"})
    rows = made.talks(40)
    rows[2]["messages"][1]["loss"] = False
    made.jsonl(folder / "chat.jsonl", rows)
    made.jsonl(
        folder / "tokens.jsonl",
        [
            {"input_ids": [1, 300, 301]},
            {"input_ids": [1, 1, 300, 301, 302]},
            {"input_ids": [1, 300, 2], "labels": [-100, 300, -100]},
        ],
    )
    (folder / "taken.txt").write_text("a file, and no folder")
    adapter = made.adapter_of(stories, folder / "adapter")
    recipe = {
        "model": {"path": str(folder / "base"), "device": "cuda:99", "dtype": "float32"},
        "method": [{"name": "full"}, {"name": "lora", "target_modules": ["qproj"], "init_from": str(adapter)}],
        "data": {
            "train": [str(folder / "chat.jsonl"), str(folder / "tokens.jsonl")],
            "validation": str(folder / "nowhere.jsonl"),
            "template": "alpaca",
        },
        "train": {"lerning_rate": 1e-4, "precision": "bf16", "max_steps": 3},
        "checks": {"allow": ["doubel-bos"]},
        "output_dir": str(folder / "taken.txt" / "run"),
    }
    path = folder / "recipe.json.yaml"
    path.write_text(json.dumps(recipe))
    return path


def test_every_planted_mistake_is_found_in_one_run(stories: Path, tmp_path: Path) -> None:
    recipe = plant_all(stories, tmp_path)
    began = time.monotonic()
    command = [sys.executable, "-m", "halter", "doctor", str(recipe), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ}, check=False)
    seconds = time.monotonic() - began
    assert done.returncode == 2, done.stderr
    problems = json.loads(done.stdout)["problems"]
    told = {p["id"]: json.dumps(p) for p in problems}
    found = [name for name, (id, word) in PLANTED.items() if id in told and word in told[id]]
    print(f"preflight: {len(found)} of {len(PLANTED)} planted mistakes in one run, {seconds:.1f} s with start and load")
    assert found == list(PLANTED), sorted(told)
    # A full 405B model's adapter has other tensors than a small one's, which no waiver helps, as it would base-differs.
    assert not set(told) - {id for id, _ in PLANTED.values()}
    assert not [p for p in problems if not (p["fix"] or p["expected"])]
    assert not list(tmp_path.glob(".halter-*")) and not (tmp_path / "runs").exists()


def recipe_of(base: Path, data: Path, output: Path, **more: Any) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "model": {"path": str(base), "device": "cpu"},
        "method": {"name": "lora", "r": 2, "alpha": 4},
        "data": {"train": str(data), "template": "alpaca", "cache": False},
        "train": {"max_steps": 1, "per_device_train_batch_size": 2},
        "output_dir": str(output),
    }
    for key, value in more.items():
        section, _, name = key.partition("__")
        recipe.setdefault(section, {})[name] = value
    return recipe


@pytest.fixture
def good(stories: Path, tmp_path: Path) -> Iterator[Any]:
    data = made.jsonl(tmp_path / "chat.jsonl", made.talks())

    def make(base: Path = stories, **more: Any) -> dict[str, Any]:
        return recipe_of(base, more.pop("rows", data), tmp_path / "run", **more)

    yield make


def ids(recipe: dict[str, Any], *overrides: str) -> list[str]:
    return [problem.id for problem in examine(recipe, overrides).problems]


def test_a_base_without_a_template_and_the_alpaca_template_work_untouched(good: Any) -> None:
    assert ids(good()) == [] and ready(good()).waived == ()


def test_training_refuses_with_all_problems_and_the_run_folder_is_not_made(good: Any, tmp_path: Path) -> None:
    import halter

    with pytest.raises(Refusal) as caught:
        halter.train(good(model__device="cuda:99", method__target_modules=["nope"], train__report_to=["wandb", "x"]))
    assert {part.id for part in caught.value.parts} >= {"device-missing", "targets-match-nothing", "recipe"}
    assert not (tmp_path / "run").exists()


def test_template_that_differs_from_the_checkpoints_is_refused_and_the_waiver_recorded(
    good: Any, stories: Path, tmp_path: Path
) -> None:
    import halter

    base = tmp_path / "chatty"
    made.small_model(stories, base, {"chat_template": made.OWN_TEMPLATE})
    assert ids(good(base)) == ["template-differs"]
    assert ids(good(base, data__template=None)) == []
    same = tmp_path / "same.jinja"
    same.write_text("{#- the same in other words -#}" + made.OWN_TEMPLATE.replace("'<s>' + ", "'<s>' ~ "))
    assert ids(good(base, data__template=str(same))) == []
    run = halter.train(good(base, checks__allow=["template-differs"]), say=lambda _: None)
    assert run is not None
    for waived in (
        json.loads((run / "waived.json").read_text()),
        json.loads((run / "adapter" / "halter.json").read_text())["waived"],
    ):
        assert [entry["id"] for entry in waived] == ["template-differs"]
        assert "the checkpoint's own" in waived[0]["text"]
    assert RunFolder(run).finished


def test_an_adapter_trained_with_another_template_or_tokenizer_is_told(
    good: Any, stories: Path, tmp_path: Path
) -> None:
    from halter.text.chat.conversations import ChatTemplate
    from halter.text.tokenizer import Tokenizer

    vicuna = ChatTemplate.builtin("vicuna")
    facts = {"template": {"name": "vicuna", "digest": vicuna.digest}, "template_source": vicuna.source}
    digest = Tokenizer.from_folder(stories).digest
    adapter = made.adapter_of(stories, tmp_path / "a", tokenizer={"digest": digest}, **facts)
    assert ids(good(method__init_from=str(adapter))) == ["template-differs"]
    assert ids(good(method__init_from=str(adapter), data__template="vicuna")) == []
    other = made.adapter_of(stories, tmp_path / "b", tokenizer={"digest": "0" * 64})
    assert ids(good(method__init_from=str(other))) == ["tokenizer-differs"]
    nothing = made.adapter_of(stories, tmp_path / "c", template=None)
    assert ids(good(method__init_from=str(nothing))) == ["template-differs"]
    assert ids(good(method__init_from=str(tmp_path / "none"))) == ["file-missing"]


def test_the_wrong_base_is_known_before_it_is_loaded_and_waived_by_name(
    good: Any, stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.small_model(stories, tmp_path / "other")
    adapter = made.adapter_of(tmp_path / "other", tmp_path / "a")
    monkeypatch.setattr("halter.pretrained.load.load_model", None)  # nothing may load the base
    found = examine(good(method__init_from=str(adapter)))
    assert [p.id for p in found.problems] == ["base-differs"]
    found = examine(good(method__init_from=str(adapter), checks__allow=["base-differs"]))
    assert not found.problems and [w["id"] for w in found.waived] == ["base-differs"]


def header_model(stories: Path, folder: Path, edit: Any = None, **changes: Any) -> None:
    """A model whose tokenizer has <h> and <e>, which its chat template needs, as ids 512 and 513."""
    tokens = [
        {
            "id": 512 + n,
            "content": t,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for n, t in enumerate(("<h>", "<e>", "<r>"))
    ]
    template = "{% for m in messages %}{{ '<h>' + m['role'] + '<h>' + m['content'] + '<e>' }}{% endfor %}"
    made.small_model(stories, folder, {"chat_template": template}, edit, vocab_size=515, **changes)
    path = folder / "tokenizer.json"
    kept = json.loads(path.read_text())
    kept["added_tokens"] += tokens
    path.write_text(json.dumps(kept))


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize(
    ("edit", "changes", "told"),
    [
        (None, {}, []),
        (lambda t: t[EMBEDDING][514].zero_(), {}, []),  # <r> is in no row
        (lambda t: t[EMBEDDING][512].zero_(), {}, ["<h>"]),
        (lambda t: t[EMBEDDING][512:514].mul_(0.01), {}, ["<h>", "<e>"]),
        (lambda t: t[EMBEDDING][512:514].mul_(0.05), {}, []),
        (lambda t: t[EMBEDDING][513].copy_(t[EMBEDDING][514]), {}, ["<e>"]),
        (lambda t: t[HEAD][512:514].zero_(), {"tie_word_embeddings": False}, ["<e>"]),  # <h> is never learnt
    ],
)
def test_untrained_rows_that_the_template_needs(
    good: Any, stories: Path, tmp_path: Path, edit: Any, changes: Any, told: list[str]
) -> None:
    header_model(stories, tmp_path / "base", edit, **changes)
    recipe = good(tmp_path / "base", data__template=None)
    problems = examine(recipe).problems
    assert [p.id for p in problems] == (["untrained-tokens"] if told else [])
    assert [wrong.split()[0] for p in problems for wrong in p.found] == told
    if told:
        needed = {"<h>": 512, "<e>": 513}
        assert f"{{name: token_rows, tokens: {[needed[name] for name in told]}}}" in problems[0].fix
        rows = {"name": "token_rows", "tokens": [512, 513]}
        assert ids({**recipe, "method": [{"name": "lora", "r": 2, "alpha": 4}, rows]}) == []
        rows = {"name": "token_rows", "tokens": [100]}
        assert ids({**recipe, "method": [{"name": "lora", "r": 2, "alpha": 4}, rows]}) == ["untrained-tokens"]
        trains = ["q_proj", "embed_tokens", "lm_head"]
        assert ids({**recipe, "method": {"name": "lora", "r": 2, "alpha": 4, "target_modules": trains}}) == []
        assert ids(recipe, "allow=untrained-tokens") == []


def test_only_the_rows_asked_for_are_read(stories: Path) -> None:
    from halter.files.checkpoint import open_checkpoint
    from halter.files.vocabulary_rows import rows_of

    checkpoint = open_checkpoint(stories)
    whole = checkpoint.read(EMBEDDING)
    picked = [511, 0, 7, 7]
    assert torch.equal(rows_of(checkpoint, EMBEDDING, picked), whole[picked].float())
    with pytest.raises(IndexError):
        rows_of(checkpoint, EMBEDDING, [512])


def test_rows_double_bos_pad_and_tokens_without_a_row(good: Any, stories: Path, tmp_path: Path) -> None:
    rows = [{"input_ids": [1, 300 + n % 200, 301, 302]} for n in range(3000)]
    for place in (0, 1700, 2999):
        rows[place]["input_ids"] = [1, 1, *rows[place]["input_ids"]]
    rows[5]["input_ids"] = [300, 1]  # ends in BOS, and the next begins with it: no double
    found = examine(good(rows=made.jsonl(tmp_path / "t.jsonl", rows))).problems
    assert [p.id for p in found] == ["double-bos"]
    assert [o.rsplit(":", 1)[1] for o in found[0].found] == ["1", "1701", "3000"]
    made.small_model(stories, tmp_path / "short", vocab_size=400)
    assert "token-without-row" in ids(good(tmp_path / "short"))


def test_the_configuration_of_another_model_is_told_alone(good: Any, stories: Path, tmp_path: Path) -> None:
    """Tokens beyond its vocabulary are no second mistake, and its tokenizer files are the right ones."""
    made.small_model(stories, tmp_path / "other")
    file = tmp_path / "other" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 105}), "utf-8")
    problems = examine(good(tmp_path / "other")).problems
    assert [one.id for one in problems] == ["checkpoint-mismatch"]
    assert problems[0].fix.startswith("take the config.json that came with these weights")


def test_pad_that_is_learnt_and_ends_that_are_masked(good: Any, stories: Path, tmp_path: Path) -> None:
    word = json.loads((stories / "tokenizer.json").read_text())["model"]["vocab"]
    made.small_model(stories, tmp_path / "word", {"pad_token": "."})
    assert word["."] and ids(good(tmp_path / "word")) == ["pad-trained"]
    assert ids(good(tmp_path / "word", checks__allow=["pad-trained"])) == []
    made.small_model(stories, tmp_path / "unk", {"pad_token": "<unk>"})
    assert ids(good(tmp_path / "unk")) == []
    # Where the pad token is the end of a text, it is learnt by right; rows that mask it are wrong.
    made.small_model(stories, tmp_path / "end", {"pad_token": "</s>"})
    assert ids(good(tmp_path / "end")) == []
    row = [1, 300, 301, 2]
    labels = [[-100, 300, 301, 2], [-100, 300, 301, -100], [-100, -100, -100, 2], [-100, 300, -100, -100]]
    data = made.jsonl(tmp_path / "l.jsonl", [{"input_ids": row, "labels": label} for label in labels])
    found = examine(good(tmp_path / "end", rows=data)).problems
    assert [p.id for p in found] == ["pad-trained"] and [o[-2:] for o in found[0].found] == [":2"]
    assert ids(good(rows=data)) == []  # no pad token at all


def test_the_longest_row_is_reckoned_to_the_token(good: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ready(good())
    need = estimate.sizes(job.recipe, job.config, dry_adapter(job.config, [job.recipe.method.options]), 4)
    adapter = load_free_adapter(job)
    assert need.base == 4 * job.config.num_parameters and need.trained == 16 * adapter
    assert need.checkpoint == 12 * adapter
    tokens = job.data.report.longest
    needs = fit.needs(need.setting)
    exact = needs.bytes(1, tokens)
    shape, method = job.config, job.recipe.method.options
    traced = training_pass(dry_base(shape, torch.float32, None), dry_adapter(shape, [method]), 1, tokens, True)
    assert exact - needs.standing == pytest.approx(traced.total, rel=0.1)  # the step itself, run on paper
    assert exact > need.base + need.trained
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: exact)
    monkeypatch.setattr(estimate, "LIMITS", ())
    assert ids(good()) == []
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: exact - 1)
    found = examine(good()).problems
    assert [p.id for p in found] == ["row-memory"] and f"at most {tokens - 1}" in found[0].fix
    assert job.data.report.longest_origin in found[0].what
    assert ids(good(checks__allow=["row-memory"])) == []
    four = estimate.sizes(job.recipe, job.config, None, 2, "nf4")
    layers = job.config.num_parameters - 512 * 64 - 64 * (2 * job.config.layers + 1)  # all but vocabulary and norms
    assert four.base == pytest.approx(layers * (4 + 0.127) / 8 + 2 * (job.config.num_parameters - layers), rel=2e-3)


def test_a_pass_that_does_not_fit_is_told_before_the_run(good: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ready(good())
    need = estimate.sizes(job.recipe, job.config, dry_adapter(job.config, [job.recipe.method.options]), 4)
    needs, longest = fit.needs(need.setting), job.data.report.longest
    rows = job.largest_pass() // longest
    assert rows > 1
    monkeypatch.setattr(estimate, "LIMITS", ())
    for free, told in ((needs.bytes(rows, longest), 0), (needs.bytes(1, longest), 1)):
        monkeypatch.setattr(memory, "free_memory_bytes", lambda device, free=free: free)
        said: list[str] = []
        assert not examine(good(), say=said.append).problems
        cut = [words for words in said if "train.micro_tokens is" in words]
        most = longest * max(1, fit.most_rows(needs, longest, int(free * estimate.MARGIN)))
        assert len(cut) == told and all(f"train.micro_tokens is {most}, the step" in words for words in cut)


def load_free_adapter(job: Any) -> int:
    """LoRA's count by its formula: r (in + out) for each linear."""
    shape, r = job.config, job.recipe.method.options.r
    return shape.layers * sum(r * sum(shape.layout.at(0, p).shape) for p in tiny.LINEARS)


def test_disk_space_is_that_of_three_checkpoints_or_those_kept(good: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = 12 * load_free_adapter(ready(good()))

    def free(count: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": count})())

    free(3 * one)
    assert ids(good()) == []
    assert ids(good(train__save_total_limit=4)) == ["disk-space"]
    free(3 * one - 1)
    assert ids(good()) == ["disk-space"] and ids(good(checks__allow=["disk-space"])) == []


def test_a_rank_beyond_counting_is_refused(good: Any) -> None:
    assert ids(good(method__r=2**62)) == ["adapter-impossible"]
    assert ids(good(method__r=2**40)) == ["disk-space", "row-memory"]


def test_machine_checks(good: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halter.run.checks_machine.find_spec", lambda name: None)
    assert ids(good(train__report_to=["tensorboard", "wandb"])) == ["missing-extra"]

    def broken() -> None:
        raise ImportError("no such library")

    monkeypatch.setattr("halter.run.checks_machine.import_bitsandbytes", broken)
    assert ids(good(train__optimizer="adamw_8bit")) == ["optimizer-unavailable"]
    assert ids(good(train__optimizer="paged_adamw_32bit")) == []  # torch's on a CPU
    assert ids(good(train__early_stopping_patience=1)) == ["no-validation"]
    assert ids(good(model__dtype="bfloat16", train__precision="bf16")) == []


def test_deterministic_sets_cublas_before_cuda_starts(good: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert ids(good()) == [] and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert ids(good(train__deterministic=True)) == []
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "cublas-workspace" in ids(good(train__deterministic=True))


DATED = "{{ '<s>' + strftime_now('%d %b %Y') }}" + made.OWN_TEMPLATE.replace("'<s>' + ", "")


def test_a_date_is_pinned_and_kept_on_resume(good: Any, stories: Path, tmp_path: Path, monkeypatch: Any) -> None:
    import halter.run.prepare as prepare_module

    class Day:
        @staticmethod
        def today() -> Any:
            import datetime

            return datetime.date(2031, 5, 6)

    monkeypatch.setattr(prepare_module, "date", Day)
    made.small_model(stories, tmp_path / "dated", {"chat_template": DATED})
    recipe = good(tmp_path / "dated", data__template=None)
    job = ready(recipe)
    assert job.recipe.data.template_date == "2031-05-06"
    assert "the day of this run" in job.recipe.defaults["data.template_date"].source
    text = job.tokenizer.decode(job.data.train[0].tokens.tolist(), skip_control=False)
    assert "06 May 2031" in text
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").put("recipe.yaml", "data: {template_date: '2030-01-02'}\n")
    kept = examine(recipe, resume=True).job
    assert kept is not None and kept.recipe.data.template_date == "2030-01-02"
    assert (
        ready(
            good(
                tmp_path / "dated",
                data__template=None,
                data__template_date="2029-03-04",
            )
            | {"output_dir": None}
        ).recipe.data.template_date
        == "2029-03-04"
    )
    assert ready(good() | {"output_dir": None}).recipe.data.template_date is None  # Alpaca's asks for none


def test_names_that_cannot_be_waived_are_refused_when_a_model_is_opened(stories: Path) -> None:
    with pytest.raises(Refusal, match="did you mean base-differs"):
        open_subject(Subject(str(stories)), lambda _: None, OpenOptions(device="cpu", allow=("base-difers",)))


def test_nothing_is_fetched_for_a_run_that_cannot_start(
    good: Any, stories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def hub(path: str, revision: str | None = None, *, weights: bool = True, **_: Any) -> Path:
        asked.append(weights)
        return stories

    monkeypatch.setattr(preflight, "resolve", hub)
    monkeypatch.setattr("halter.run.prepare.located", hub)
    recipe = good()
    recipe["model"]["path"] = "some/model"
    assert examine(recipe, ["method.target_modules=[nope]"]).problems and asked == [False]
    asked.clear()
    assert not examine(recipe).problems and asked == [False, True]


def test_what_is_there_is_looked_at_where_a_source_is_missing(good: Any, tmp_path: Path) -> None:
    rows = made.talks(3)
    rows[1]["messages"][1]["content"] = ""
    sources = [str(made.jsonl(tmp_path / "bad.jsonl", rows)), str(tmp_path / "gone.jsonl")]
    recipe = good()
    recipe["data"] = {**recipe["data"], "train": sources, "validation": str(tmp_path / "gone2.jsonl")}
    found = {p.id: p for p in examine(recipe).problems}
    assert set(found) == {"data-missing", "bad-rows"} and "bad.jsonl:2" in found["bad-rows"].found[0]
    assert sum(p.id == "data-missing" for p in examine(recipe).problems) == 2


def test_a_template_that_is_none_is_told_beside_a_base_that_is_not_there(good: Any, tmp_path: Path) -> None:
    recipe = good()
    recipe["model"] = {**recipe["model"], "path": str(tmp_path / "nowhere")}
    recipe["data"] = {**recipe["data"], "train": str(tmp_path / "gone.jsonl"), "template": "alpacca"}
    found = {p.id: p for p in examine(recipe).problems}
    assert set(found) == {"model-not-found", "data-missing", "template-unknown"}
    assert "did you mean alpaca?" in found["template-unknown"].fix


def test_a_finished_run_is_told_with_the_rest(good: Any, tmp_path: Path) -> None:
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    assert ids(good(), "model.device=cuda:99") == ["device-missing", "run-finished"]


PLACES = [
    ("model", "device"),
    ("model", "dtype"),
    ("model", "quantize"),
    ("model", "revision"),
    ("method", "r"),
    ("method", "target_modules"),
    ("method", "layers"),
    ("method", "rank_pattern"),
    ("method", "name"),
    ("method", "init_from"),
    ("data", "max_length"),
    ("data", "template"),
    ("data", "template_date"),
    ("data", "columns"),
    ("data", "on_bad"),
    ("train", "optimizer"),
    ("train", "max_steps"),
    ("train", "precision"),
    ("train", "save_total_limit"),
    ("train", "report_to"),
    ("train", "deterministic"),
    ("checks", "allow"),
    ("train", "nonsense"),
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**40),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["nf4", "q_proj", "(", "2024-01-01", "full", "llama-2", "adamw_8bit", "stop", "double-bos", "."]),
    st.lists(st.sampled_from(["q_proj", "x", "double-bos", 0, 99, -1]), max_size=3),
    st.dictionaries(st.sampled_from(["q_proj", "(", "prompt"]), st.integers(-1, 4), max_size=2),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=4))
def test_whatever_the_recipe_says_every_problem_is_a_refusal(good: Any, changes: list[Any]) -> None:
    recipe = good()
    for (section, key), value in changes:
        recipe.setdefault(section, {})[key] = value
    found = examine(recipe)
    assert all(problem.id and str(problem) for problem in found.problems)
    assert found.job is not None or found.problems
    if not found.problems:
        assert ready(recipe).steps == found.job.steps
