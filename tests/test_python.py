"""The commands as Python functions: the same numbers, typed, raising where a command prints and ends."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playground_run import finished, recipe, write_rows

import halter
from halter.cli import main
from halter.comparison.options import CompareOptions
from halter.comparison.whole import CompareKeywords
from halter.elsewhere import ATTRIBUTES, CALLS, MODULE, WHOSE
from halter.evaluation.options import TaskKeywords, TaskOptions
from halter.generation.options import GenerationOptions
from halter.model.inputs import refuse_cast
from halter.playground import base_folder
from halter.recipe.fields import keys_of
from halter.run.opening import HowKeywords, OpenOptions, WhatKeywords
from halter.run.scored import Scoring
from halter.run.scoring import EvaluateKeywords
from tests.comparison import small

BASE = str(base_folder())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("python"))


def told(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What the command prints as JSON; what came before is forgotten."""
    capsys.readouterr()
    assert main.run([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("keywords", "options"),
    [
        ((WhatKeywords, HowKeywords), (OpenOptions,)),
        ((TaskKeywords,), (TaskOptions,)),
        ((EvaluateKeywords,), (Scoring, OpenOptions, GenerationOptions)),
        ((CompareKeywords,), (CompareOptions,)),
    ],
    ids=lambda v: getattr(v[0], "__name__", ""),
)
def test_keywords_are_the_options(keywords: tuple[Any, ...], options: tuple[Any, ...]) -> None:
    """Names, and types: what a field is, a keyword takes (a sequence or one word where it is a tuple)."""
    given = {name: kind for one in keywords for name, kind in typing.get_type_hints(one).items()}
    declared = {key.name: key.type for kind in options for key in keys_of(kind).values()}
    assert given.keys() == declared.keys()
    for name, kind in declared.items():
        if typing.get_origin(kind) is not tuple:
            assert given[name] == kind, name
    names = [field.name for kind in options for field in fields(kind)]
    assert len(names) == len(set(names))  # or one keyword would mean two options


def test_evaluate_is_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = write_rows(tmp_path / "held.jsonl", 6, split="test")
    words = ["--data", str(held), "--questions", "2", "--max-new-tokens", "4"]
    report = told(capsys, "evaluate", str(run), *words, "--output", str(tmp_path / "one"))
    found = halter.evaluate(run, held, output=tmp_path / "two", questions=2, max_new_tokens=4)
    assert capsys.readouterr().out == ""  # results are returned, not printed
    assert json.loads(json.dumps(found.as_dict())) == report
    assert report == json.loads((tmp_path / "two" / "report.json").read_text())
    assert found.folder == tmp_path / "two" and (found.folder / "predictions.jsonl").is_file()
    assert (found.rows, found.answers, found.learned_tokens) == (6, 2, report["target_tokens"])
    assert found.adapter is not None and found.adapter.loss == report["adapter"]["loss"]
    assert found.base.perplexity == pytest.approx(float(torch.tensor(report["base"]["loss"]).double().exp()), rel=1e-5)
    assert halter.evaluate(BASE, held, questions=0).adapter is None  # and nothing is written for a model
    with pytest.raises(halter.Refusal) as caught:
        halter.evaluate(run, held, max_new_token=4)  # type: ignore[call-arg]
    assert caught.value.id == "unknown-option" and caught.value.found == (
        "max_new_token (did you mean max_new_tokens?)",
    )


def test_plan_is_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["model.path=llama-3.2-1b", "method.name=qlora", "data.max_length=64"]
    report = told(capsys, "plan", *keys)
    found = halter.plan(overrides=keys)
    mapping = {"model": {"path": "llama-3.2-1b"}, "method": {"name": "qlora"}, "data": {"max_length": 64}}
    for one in (found, halter.plan(mapping)):
        same = json.loads(json.dumps(one.as_dict()))
        assert {**same, "budget": None} == {**report, "budget": None}  # what is free changes while we look
    assert found.fits == (found.forecast.training.total <= found.budget) and found.choices == ()
    with pytest.raises(halter.Refusal, match="unknown-device"):
        halter.plan(overrides=keys, on="abacus")
    small = {**mapping, "model": {"path": BASE}, "method": {"name": "lora"}}
    named = halter.plan(small, model="llama-3.2-1b", method=["qlora"])  # over the recipe's, as the flags are
    assert named.forecast.training.total == found.forecast.training.total
    together = halter.plan(small, method=["lora", "bitfit"]).forecast.training.total
    assert together > halter.plan(small).forecast.training.total


def test_merge_is_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's folder, a model beside it, and both loaded: one model, bit for bit."""
    report = told(capsys, "merge", str(run), "--output", str(tmp_path / "command"))
    found = halter.merge(run, output=tmp_path / "named", say=lambda _: None)
    assert report["stored"] == found.stored and report["gap"]["kl"] == found.gap.kl
    halter.merge(BASE, run / "adapter", tmp_path / "beside", dtype="bfloat16", say=lambda _: None)
    model, _ = halter.load(BASE, device="cpu")
    halter.merge(model, halter.load_adapter(run, model), tmp_path / "loaded")
    weights = {
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("command", "named", "beside", "loaded")
    }
    assert len(weights) == 1
    assert halter.merge(run, output=tmp_path / "nf4", into="nf4", say=lambda _: None).kind == "nf4"
    for wrong in (
        lambda: halter.merge(run),
        lambda: halter.merge(model, run, tmp_path / "no"),
        lambda: halter.merge(run, None, tmp_path / "no", output=tmp_path / "no"),
        lambda: halter.merge(model, halter.load_adapter(run, model), tmp_path / "no", device="cpu"),
    ):
        with pytest.raises(halter.Refusal, match="wrong-argument"):
            wrong()
    with pytest.raises(halter.Refusal, match="not-an-adapter"):
        halter.merge(BASE, output=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_inspect_is_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 5)
    report = told(capsys, "inspect", "--model", BASE, "--data", str(rows), "--rows", "2")
    found = halter.inspect({"model": {"path": BASE}, "data": {"train": str(rows)}}, rows=2)
    assert json.loads(json.dumps(found.as_dict())) == report and len(found.rows) == 2 and not found.stops
    with pytest.raises(halter.Refusal, match="usage"):
        halter.inspect(recipe(tmp_path), rows=-1)


def test_doctor_returns_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = recipe(tmp_path)
    found = halter.doctor(good)
    assert found.fine and found.job is not None and found.job.steps == 2 and "recipe" in found.looked
    bad = halter.doctor({**good, "method": {"name": "lorra"}, "train": {"learning_rate": -1.0}})
    assert not bad.fine and any("lorra" in str(problem) for problem in bad.problems)
    machine = halter.doctor()
    assert machine.machine is not None and machine.machine["halter"] == halter.__version__
    assert set(told(capsys, "doctor")) == set(machine.as_dict())
    assert main.run(["doctor", "--model", "nowhere", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["problems"][0]["found"] is not None


def test_compare_is_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = small.source(tmp_path / "source")
    options: dict[str, Any] = {**small.OPTIONS, "methods": "lora,bitfit", "seeds": 1, "search_trials": 1, "tokens": 300}
    test = small.rows(tmp_path / "test.jsonl", 200, 9)
    said: list[str] = []
    found = halter.compare(source, output=tmp_path / "out", test=test, say=said.append, **options)
    assert [line.split(": ", 2)[2] for line in said if line.startswith("time:")] == [
        "1 to go, at the pace of the 1 done so far"
    ]
    assert capsys.readouterr().out == ""
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert found.folder == tmp_path / "out" and json.loads(json.dumps(found.as_dict())) == record
    base, lora, _ = found.rows
    assert (base.trainable, lora.name, lora.status) == (0, "lora", "done") and lora.trainable > 0
    assert lora.test_loss == record["rows"][1]["mean"]["test_loss"] and lora.scores["exact_match"] >= 0
    assert all(path.is_file() for path in found.reports)
    with pytest.raises(halter.Refusal, match="nothing-to-compare"):
        halter.compare()


def test_a_run_folder_is_an_adapter(run: Path) -> None:
    model, tokenizer = halter.load(BASE, device="cpu", dtype="float32")
    whole, inner = (halter.load_adapter(place, model) for place in (run, run / "adapter"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), inner.parameters(), strict=True))
    with pytest.raises(halter.Refusal, match=r"max_new_tokens\?"):
        halter.generate(model, tokenizer, "hi", whole, max_new_token=3)  # type: ignore[call-arg]
    with pytest.raises(halter.Refusal, match=r"rank.*\(did you mean|rank"):
        halter.adapt(model, "lora", rank=3)


SCRIPT = """
import halter
from halter.methods.lora import Lora

model, tokenizer = halter.load("base", device="cpu")
adapter = halter.adapt(model, Lora(r=4, alpha=8.0))
texts: list[str] = [one.text for one in halter.generate(model, tokenizer, "hi", adapter, max_new_tokens=3, stop="x")]
loss: float | None = halter.evaluate("run", data="rows.jsonl", questions=0, limit=4).base.loss
bytes_needed: int = halter.plan(overrides=["model.path=llama-3.2-1b"], memory="8GB").forecast.training.total
texts += [row.text for row in halter.inspect("recipe.yaml", rows=2).rows]
for problem in halter.doctor("recipe.yaml").problems:
    texts += [problem.id, *problem.found]
losses = {row.name: row.test_loss for row in halter.compare(quick=True, seeds=2, methods=("lora",)).rows}
"""
WRONG = """
halter.generate(model, tokenizer, "hi", max_new_token=3)
halter.evaluate("run", questions="all")
halter.compare(seed="one")
Lora(rank=4)
halter.plan(memory=8).budget.upper()
"""


NAMES = [(kind, name) for kind, names in CALLS.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=lambda v: v)
def test_what_users_of_transformers_call_is_refused_with_the_right_call(kind: str, name: str, run: Path) -> None:
    model, tokenizer = halter.load(BASE)
    adapter = halter.load_adapter(run, model)
    answer = halter.generate(model, tokenizer, ["Hi"], max_new_tokens=1)[0]
    one: Any = {"model": model, "tokenizer": tokenizer, "adapter": adapter, "answer": answer}[WHOSE[kind]]
    assert type(one).__name__ == kind
    owners = (one, type(one)) if name == "from_pretrained" else (one,)
    for owner in owners:
        with pytest.raises(halter.Refusal) as caught:
            if name == "__getitem__":
                owner["generated_text"]
            (owner if name == "__call__" else getattr(owner, name))("Once upon a time", return_tensors="pt")
        assert caught.value.id == "called-otherwise" and caught.value.fix == CALLS[kind][name]
    for call in re.findall(r"(?:halter|adapter|tokenizer|model|answer)[.](\w+)", CALLS[kind][name]):
        assert any(hasattr(owner, call) for owner in (halter, tokenizer, model, adapter, answer)), call


@pytest.mark.parametrize("name", MODULE)
def test_names_of_others_are_told_by_the_packages_own(name: str) -> None:
    with pytest.raises(AttributeError, match="here it is") as caught:
        getattr(halter, name)
    for own in re.findall(r"halter[.](\w+)", str(caught.value)):
        assert hasattr(halter, own)
    with pytest.raises(AttributeError, match="it has: Callback"):
        halter.nothing_of_anybody  # noqa: B018


@pytest.mark.parametrize("name", ATTRIBUTES["Tokenizer"])
def test_attributes_of_theirs_are_told_by_ours(name: str) -> None:
    model, tokenizer = halter.load(BASE)
    with pytest.raises(AttributeError, match="here it is") as caught:
        getattr(tokenizer, name)
    told = str(caught.value).partition("here it is ")[2].partition(", None where")[0]
    if "padded" not in told:
        eval(told, {"tokenizer": tokenizer, "model": model})
    assert not hasattr(tokenizer, name) and not hasattr(tokenizer, "nothing_of_anybody")


def test_the_right_calls_are_right(run: Path, tmp_path: Path) -> None:
    model, tokenizer = halter.load(BASE)
    adapter = halter.load_adapter(run, model)
    told = "".join(CALLS["Decoder"].values()) + "".join(CALLS["Tokenizer"].values())
    asked = [[{"role": "user", "content": "Hello"}]]
    assert f"halter.generate(model, tokenizer, {json.dumps(asked)}, template=" in told
    assert len(halter.generate(model, tokenizer, asked, template="alpaca", max_new_tokens=2)) == 1
    assert 'halter.generate(model, tokenizer, ["Once upon a time"], max_new_tokens=20)' in told
    assert len(halter.generate(model, tokenizer, ["Once upon a time"], max_new_tokens=20)) == 1
    ids = tokenizer.encode("Once upon a time")
    for hint in (CALLS["Tokenizer"]["__call__"], CALLS["Tokenizer"]["encode_plus"]):  # as transformers' gives ids
        found = re.search(r"torch\.tensor\(.*\]\]\)", hint)
        assert found is not None
        tokens = eval(found[0], {"torch": torch, "tokenizer": tokenizer})
        assert tokens.tolist() == [[tokenizer.bos_id, *ids]] and model(tokens).shape[:2] == (1, len(ids) + 1)
    for wrong in ("text", torch.tensor([[10**6]])):
        with pytest.raises(halter.Refusal) as caught:
            model(wrong)  # type: ignore[arg-type]
        assert "torch.tensor([[tokenizer.bos_id, *tokenizer.encode(TEXT)]])" in caught.value.fix
    assert "tokenizer.bos_id" in CALLS["Tokenizer"]["pad"]
    assert [tokenizer.decode(row) for row in [ids]] == ["Once upon a time"]
    assert [tokenizer.token_id(tokenizer.token(id)) for id in ids] == ids
    halter.merge(model, adapter, tmp_path / "merged")
    adapter.save(tmp_path / "mine")
    assert halter.load(tmp_path / "merged")[1].digest == tokenizer.digest
    assert model.config.num_parameters == sum(tensor.numel() for tensor in {id(t): t for t in model.buffers()}.values())


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_a_base_is_not_cast(name: str) -> None:
    """Its tensors alone would be, and the next call would end in torch's own error."""
    model, _ = halter.load(BASE, device="cpu", dtype="float32")
    dtype = getattr(torch, name)
    short = {"float16": model.half, "bfloat16": model.bfloat16, "float64": model.double}[name]
    for cast in (short, lambda: model.to(dtype), lambda: model.to("cpu", dtype), lambda: model.type(dtype)):
        with pytest.raises(halter.Refusal, match="compute in float32") as caught:
            cast()
        told = re.search(r'dtype="(\w+)"', caught.value.fix)
        assert told is not None and told[1] == ("float32" if name == "float64" else name)
        assert str(halter.load(BASE, device="cpu", dtype=told[1])[0].dtype) == f"torch.{told[1]}"
    assert model.to("cpu").float().eval() is model


def test_a_base_whose_layers_visit_its_device_stays_there() -> None:
    there = lambda tensor: tensor.to("meta")  # noqa: E731
    refuse_cast(there, torch.float32, torch.device("cpu"), streamed=False)
    with pytest.raises(halter.Refusal, match="base-cast"):
        refuse_cast(there, torch.float32, torch.device("cpu"), streamed=True)


def test_a_device_that_is_not_here_is_refused_in_words() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    with pytest.raises(halter.Refusal, match="device-missing"):
        halter.load(BASE, device="cpu")[0].cuda()


def test_a_model_is_called_by_its_own_names() -> None:
    model, _ = halter.load(BASE)
    tokens: Any = torch.tensor([[1, 2]])
    for call in (lambda: model(input_ids=tokens), lambda: model(tokens, labels=tokens), lambda: model()):
        with pytest.raises(halter.Refusal, match="model") as caught:
            call()
        assert caught.value.fix == "model(tokens, adapter=adapter)"


TEXTS, ROWS, ID = "[tokenizer.encode(text) for text in texts]", "[tokenizer.decode(ids) for ids in rows]", "[ID, ID]"
MISTAKEN = [
    ("encode", ["a", "b"], TEXTS),
    ("encode", np.array(["a", "b"]), TEXTS),
    ("encode", None, 'tokenizer.encode("'),
    ("encode", b"a", 'tokenizer.encode("'),
    ("encode", [{"role": "user", "content": "a"}], "halter.generate("),
    ("decode", [[5, 6], [7]], ROWS),
    ("decode", torch.tensor([[5, 6]]), ROWS),
    ("decode", np.array([[5, 6]]), ROWS),
    ("decode", 5, "tokenizer.decode([ID])"),
    ("decode", torch.tensor(5.0), ID),
    ("decode", [1.0, 2.5], ID),
    ("decode", torch.tensor([1.0]), ID),
    ("decode", "text", "tokenizer.encode(TEXT)"),
    ("decode", None, ID),
    ("token", "a", "tokenizer.token_id(TEXT)"),
    ("token_id", 5, "tokenizer.token(ID)"),
]


@pytest.mark.parametrize(("name", "value", "fix"), MISTAKEN, ids=lambda v: str(v)[:20])
def test_a_tokenizer_is_given_what_it_does_not_take(name: str, value: Any, fix: str) -> None:
    _, tokenizer = halter.load(BASE)
    with pytest.raises(halter.Refusal, match="wrong-argument") as caught:
        getattr(tokenizer, name)(value)
    assert fix in caught.value.fix


def test_answers_are_no_ids_and_ids_of_any_library_are() -> None:
    model, tokenizer = halter.load(BASE)
    answers: Any = halter.generate(model, tokenizer, ["Hi", "Ho"], max_new_tokens=2)
    for given, fix in ((answers[0], "answer.text"), (answers, "[answer.text for answer in answers]")):
        with pytest.raises(halter.Refusal) as caught:
            tokenizer.decode(given)
        assert fix in caught.value.fix
    ids = [tokenizer.bos_id, *tokenizer.encode("Hi")]
    wanted = tokenizer.decode(ids)
    assert tokenizer.bos_id is not None and "Hi" in wanted
    for same in (torch.tensor(ids), np.array(ids), iter(ids), tuple(ids), torch.tensor(ids, dtype=torch.int32)):
        assert tokenizer.decode(same) == wanted
    with pytest.raises(halter.Refusal, match=r"skip_special_tokens \(here skip_control\)"):
        tokenizer.decode(ids, skip_special_tokens=True)  # type: ignore[call-arg]
    with pytest.raises(halter.Refusal, match="arguments are missing"):
        tokenizer.encode()  # type: ignore[call-arg]


def test_a_tokenizer_is_no_function() -> None:
    """That calling one is refused in words makes it none."""
    _, tokenizer = halter.load(BASE)
    with pytest.raises(halter.Refusal, match="say: a Tokenizer"):
        halter.train("recipe.yaml", say=tokenizer)  # type: ignore[arg-type]


def test_checkers_read_every_name() -> None:
    """The package's names come when they are asked for, which no checker follows; it reads imports that never run."""
    source = Path(halter.__file__).read_text("utf-8")
    block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    read = {alias.name: one.module for one in block.body if isinstance(one, ast.ImportFrom) for alias in one.names}
    assert ast.unparse(block.test) == "TYPE_CHECKING" and read == halter._HOME


@pytest.mark.nightly  # half a minute, for mypy has torch to read
def test_a_strict_checker_reads_a_users_script(tmp_path: Path) -> None:
    """Every right line is accepted, every wrong one found, by mypy --strict."""
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + WRONG)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary", str(script)]
    # The checker reads the package's own configuration for libraries without types.
    root = Path(halter.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=root)
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    first = SCRIPT.count("\n") + 2
    assert lines == set(range(first, first + len(WRONG.strip().splitlines()))), done.stdout


def test_a_folder_or_rows_in_a_recipes_place(tmp_path: Path, run: Path) -> None:
    """What it is and where it belongs, as Python has it; the call that is told starts."""
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    (tmp_path / "empty").mkdir()
    for function in (halter.train, halter.doctor, halter.plan, halter.inspect, halter.compare):
        for source, told in (
            (BASE, "the folder of a model"),
            (rows, "a file of rows"),
            (tmp_path / "empty", "a folder"),
        ):
            with pytest.raises(halter.Refusal, match=told) as caught:
                function(source)
            assert "did you mean" not in str(caught.value) and "--" not in str(caught.value)
            mapping = ast.literal_eval(caught.value.call.removeprefix("such as "))
            mapping = {key: {"DIR": BASE, "FILE": str(rows)}.get(value, value) for key, value in mapping.items()}
            assert halter.inspect(mapping).rows
        with pytest.raises(halter.Refusal) as caught:
            function(run)
        assert Path(caught.value.fix.split(" is its recipe")[0]) == run / "recipe.yaml"


def test_what_is_given_in_place_of_options(run: Path, tmp_path: Path) -> None:
    model, tokenizer = halter.load(BASE)
    adapter = halter.adapt(model, "lora", r=2)
    asked = tmp_path / "asked.txt"
    asked.write_text("Hi\\nHo\\n")
    answers: Any = halter.generate(model, tokenizer, ["Hi"], max_new_tokens=1)
    refused: dict[str, Any] = {
        "quantize='nf4'": lambda: halter.load(BASE, quantize="4bit"),  # type: ignore[arg-type]
        "rank (here r)": lambda: halter.adapt(model, "lora", rank=2),
        f'halter.load_adapter("{run}", model)': lambda: halter.adapt(model, str(run)),
        "named is given by its folder or name, not loaded": lambda: halter.evaluate(adapter, data="te.jsonl"),  # type: ignore[arg-type]
        f"prompts=open('{asked}').read().splitlines()": lambda: halter.generate(model, tokenizer, asked),  # type: ignore[arg-type]
        "[answer.text for answer in answers]": lambda: halter.generate(model, tokenizer, answers),
        'adapter.save("mine")': lambda: adapter.save(),  # type: ignore[call-arg]
        "folder: a Decoder": lambda: adapter.save(model),  # type: ignore[arg-type]
    }
    for told, call in refused.items():
        with pytest.raises(halter.Refusal) as caught:
            call()
        assert told in str(caught.value), caught.value
