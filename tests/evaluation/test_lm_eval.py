"""What lm-eval is told, against transformers; with the real lm-eval, where it is installed, against its own model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from own_data import Data

import halter
from halter.adapters.adapter import adapt
from halter.cli import main
from halter.errors import Refusal
from halter.evaluation.options import TaskOptions
from halter.evaluation.tasks import Judge, harness_model, task_manager, task_scores
from tests.evaluation import fake_lm_eval

ONCE = {
    "real": ("Once upon a time, there was a little girl named", "Lily"),
    "own": ("Once upon a time, there was a", "p"),
}
"""What each base goes on with, greedily."""


def pairs(data: Data) -> list[tuple[str, str]]:
    once, next_word = ONCE[data.name]
    return [
        (once, f" {next_word}"),
        (f"{once} ", next_word),  # the same: the space goes over to the word
        (once, " spoon and more"),
        ("", "The dog ran."),
        ("word " * 600, "play"),  # cut at the left
    ]


@pytest.fixture(scope="module")
def data(heavy_data: Data) -> Data:
    return heavy_data


@pytest.fixture(scope="module")
def judge(data: Data) -> Judge:
    model, tokenizer = halter.load(str(data.base), "float32", device="cpu", say=lambda _: None)
    return Judge(model, tokenizer)


@pytest.fixture(scope="module")
def reference(data: Data) -> tuple[Any, Any]:
    folder = data.base
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def told(reference: tuple[Any, Any], head: list[int], rest: list[int]) -> tuple[float, bool]:
    """By transformers: the log-likelihood of ``rest``, and whether it is what greedy decoding says."""
    with torch.no_grad():
        logits = reference[0](torch.tensor([[*head, *rest[:-1]]])).logits[0, len(head) - 1 :].double().log_softmax(-1)
    wanted = torch.tensor(rest)
    return logits.gather(1, wanted[:, None]).sum().item(), bool((logits.argmax(-1) == wanted).all())


def test_likelihoods_are_those_of_transformers(judge: Judge, reference: tuple[Any, Any], data: Data) -> None:
    encode = judge.tokenizer.encode
    found = judge.likelihoods(pairs(data))
    assert found[0] == found[1]
    for (context, continuation), (total, greedy) in zip(pairs(data), found, strict=True):
        words = context.rstrip()
        head = [1, *encode(words)] if words else [1]
        rest = [1, *encode(context + continuation)][len(head) :]
        head = head[-(513 - len(rest)) :]  # the last token is predicted and never read
        wanted, likeliest = told(reference, head, rest)
        assert total == pytest.approx(wanted, rel=1e-5, abs=1e-5) and greedy == likeliest
    assert [greedy for _, greedy in found][:3] == [True, True, False]
    with pytest.raises(Refusal, match="long-continuation"):
        judge.likelihoods([("Once", " upon" * 600)])


def test_a_long_text_is_counted_in_pieces(judge: Judge, reference: tuple[Any, Any], data: Data) -> None:
    """Each token once, BOS too; pieces of 512, the last one with the whole context before it."""
    text = "".join(json.loads(line)["text"] for line in data.stories.read_text("utf-8").splitlines()[:4])
    ids = [1, *judge.tokenizer.encode(text)]
    assert 512 < len(ids)
    wanted = told(reference, [1], ids[:512])[0]
    for start in range(512, len(ids), 512):
        end = min(start + 512, len(ids))
        wanted += told(reference, ids[end - 513 : start], ids[start:end])[0]
    short = "Once upon a time"
    found = judge.rolling([text, short])
    assert found[0] == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert found[1] == pytest.approx(told(reference, [1], [1, *judge.tokenizer.encode(short)])[0], rel=1e-5, abs=1e-5)


def test_answers_end_where_the_task_says(judge: Judge, reference: tuple[Any, Any], data: Data) -> None:
    stop = {"real": "girl", "own": "named"}[data.name]
    prompt = "Once upon a time, there was"
    ids = torch.tensor([[1, *judge.tokenizer.encode(prompt)]])
    with torch.no_grad():
        whole = reference[0].generate(ids, max_new_tokens=60, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    text = judge.tokenizer.decode(whole.tolist())
    greedy = {"do_sample": False, "temperature": 0.7}  # lm-eval: without sampling the temperature is nothing
    cut, short, named = judge.until(
        [
            (prompt, {"until": [stop, "."], "max_gen_toks": 60, **greedy}),
            (prompt, {"until": [], "max_gen_toks": 5, **greedy}),
            (prompt, {"until": stop, "max_new_tokens": 60, "temperature": 0.0}),
        ]
    )
    # Decoded by itself, as transformers does it: SentencePiece's first space is not said.
    assert text == reference[1].decode(whole, skip_special_tokens=True)
    assert cut == named == text.split(stop)[0].split(".")[0] and stop in text
    assert short == judge.tokenizer.decode(whole[:5].tolist()) and not short.startswith(" ")


def test_an_adapter_is_scored_as_itself(judge: Judge, data: Data) -> None:
    adapter = adapt(judge.model, "lora", target_modules=["q_proj"])
    with torch.no_grad():
        for name, tensor in adapter.named_parameters():
            if name.endswith(("b", "B", "lora_B")) or tensor.abs().sum() == 0:
                tensor.add_(0.5)
    other = Judge(judge.model, judge.tokenizer, adapter)
    assert other.likelihoods(pairs(data)[:1]) != judge.likelihoods(pairs(data)[:1])
    assert other.rolling(["Once upon a time"]) != judge.rolling(["Once upon a time"])


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(Refusal, match="extra-missing") as caught:
        task_manager(TaskOptions(tasks=("arc_easy",)))
    assert "[eval]" in str(caught.value)
    assert (
        main.run(["evaluate", "--model", "nothing-here", "--tasks", "arc_easy"]) == 2
    )  # before the model is looked for


def test_tasks_that_there_are_not_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_lm_eval.put(monkeypatch)
    with pytest.raises(Refusal, match="unknown-task") as caught:
        task_manager(TaskOptions(tasks=("little,litle", "own")))
    assert caught.value.found == ("litle (did you mean little?)", "own")
    task_manager(TaskOptions(tasks=("own",), task_folder="somewhere"))


def test_a_mistyped_task_is_told_before_every_file_of_tasks_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_lm_eval.put(monkeypatch)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "arc.yaml").write_text("task: arc_easy\ntag: arc\n")
    (tmp_path / "deep" / "_part").write_text("group: 'little'\n")  # which a file may include
    library, read = sys.modules["lm_eval.tasks"], []
    monkeypatch.setattr(library, "__path__", [str(tmp_path)], raising=False)
    monkeypatch.setattr(library, "TaskManager", lambda **_: read.append(1) or fake_lm_eval.Manager())
    with pytest.raises(Refusal, match="unknown-task") as caught:
        task_manager(TaskOptions(tasks=("little,arc_esy", "arc_eas")))
    assert caught.value.found == ("arc_esy (did you mean arc_easy?)", "arc_eas (did you mean arc_easy?)") and not read
    assert task_manager(TaskOptions(tasks=("little",))) and read


def test_evaluate_scores_tasks_without_rows(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], judge: Judge
) -> None:
    fake_lm_eval.put(monkeypatch)
    command = ["evaluate", "--model", str(data.base), "--tasks", "little,group"]
    assert main.run([*command, "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    scores = report["base"]["tasks"]
    assert scores["little/acc"] == 0.5 and scores["group/words:strip"] > 1 and "little/acc_stderr" not in scores
    assert scores["little/nats"] == pytest.approx(judge.rolling(["Once upon a time"])[0])
    assert report["tasks"]["little"] == {"rows": 2, "fewshot": 0, "version": 1.0}
    assert "group/acc" in capsys.readouterr().out


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    """A folder with a task of each kind that lm-eval has, on rows of its own, some beyond the context of 512 tokens."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra eval)")
    folder = tmp_path / "tasks"
    folder.mkdir()
    names, choices = ("Lily", "Tom", "The dog", "A girl", "Mom", "Ben"), ["park", "spoon", "big red house"]
    times = (1, 2, 3, 40, 90, 150)
    rows = [
        {
            "q": f"{name} saw a cat. " * many + f"{name} went to the",
            "choices": choices,
            "answer": n % 2,
            "text": f"{name} saw a dog. " * many,
        }
        for n, (name, many) in enumerate(zip(names, times, strict=True))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"dataset_path: json\ndataset_kwargs:\n  data_files: {folder / 'rows.jsonl'}\ntest_split: train\n"
    choice = 'output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: choices\ndoc_to_target: answer\n'
    rolling = 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
    until = 'output_type: generate_until\ndoc_to_text: "{{q}}"\ndoc_to_target: "park"\n'
    until += 'generation_kwargs:\n  until: ["."]\n  max_gen_toks: 12\n'
    measures = {"choice": ("acc", "acc_norm"), "rolling": ("word_perplexity",), "until": ("exact_match",)}
    for name, text in {"choice": choice, "rolling": rolling, "until": until}.items():
        listed = "metric_list:\n" + "".join(f"  - metric: {measure}\n" for measure in measures[name])
        (folder / f"{name}.yaml").write_text(f"task: own_{name}\n{common}{text}{listed}")
    return folder


def test_the_scores_are_those_of_lm_evals_own_model(own_tasks: Path, judge: Judge, data: Data) -> None:
    """Every score and every answer of HFLM, as it is by default: texts equal, log-likelihoods within 1e-5."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    options = TaskOptions(tasks=("own_choice,own_rolling,own_until",), task_folder=str(own_tasks), fewshot=1)
    scores, facts = task_scores(judge, options)
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(data.base), device="cpu", dtype="float32"),
        tasks=list(options.task_names),
        task_manager=task_manager(options),
        num_fewshot=1,
        bootstrap_iters=0,
    )
    names = {"own_choice/acc", "own_choice/acc_norm", "own_rolling/word_perplexity", "own_until/exact_match"}
    assert names <= scores.keys() and facts["own_choice"]["rows"] == 6
    for name in names:
        task, _, measure = name.partition("/")
        assert scores[name] == pytest.approx(theirs["results"][task][f"{measure},none"], rel=1e-5, abs=1e-5), name
    own = harness_model(judge)
    said: list[str] = []
    for sample in (s for task in options.task_names for s in theirs["samples"][task]):
        for arguments, answers in zip(sample["arguments"], sample["resps"], strict=True):
            (answer,) = answers
            request = type("Request", (), {"args": tuple(arguments)})
            if isinstance(answer, str):
                said += own.generate_until([request])
                assert said[-1] == answer
            elif isinstance(answer, tuple):
                total, greedy = own.loglikelihood([request])[0]
                assert total == pytest.approx(answer[0], rel=1e-5, abs=1e-5) and greedy == answer[1]
            else:
                assert own.loglikelihood_rolling([request])[0] == pytest.approx(np.sum(answer), rel=1e-5, abs=1e-5)
    assert any(said), "some answer must hold a word"


def test_rows_that_the_hub_has_and_no_network_brings_are_named(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own task, whose rows are on the hub: the question is asked once, and nothing is tried after it."""
    pytest.importorskip("lm_eval")
    import datasets
    import huggingface_hub

    asked: list[str] = []

    def unreachable(_: Any, repository: str, timeout: float) -> None:
        asked.append(repository)
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(Refusal, match="the rows of a task cannot be had") as caught:
        task_scores(judge, TaskOptions(tasks=("arc_easy",), task_limit=1))
    assert caught.value.id == "task-data" and caught.value.found == ("arc_easy",) and len(asked) == 1
