"""generate, chat and evaluate, as typed, on a run that `halter train` made."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from own_data import Data
from sealing import reseal

import halter
from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.cli import main
from halter.cli.chat import HELP, Chat, _read_turn
from halter.errors import Refusal
from halter.generation.options import GenerationOptions
from halter.pretrained.load import load
from halter.recipe.fields import keys_of
from halter.run.opening import Opened, OpenOptions, find, open_subject

ASK = "Tell me a story about a dog."


@pytest.fixture(scope="module")
def model(heavy_data: Data) -> Path:
    return heavy_data.base


@pytest.fixture(scope="module")
def run(heavy_data: Data, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps on sixteen rows, with the Alpaca template; the learning rate is high, so that answers change."""
    folder = tmp_path_factory.mktemp("speaking")
    rows = heavy_data.train.read_text("utf-8").splitlines()
    (folder / "train.jsonl").write_text("\n".join(rows[:16]), "utf-8")
    recipe = {
        "model": {"path": str(model)},
        "method": {"name": "lora", "r": 4},
        "data": {
            "train": str(folder / "train.jsonl"),
            "template": "alpaca",
            "max_length": 512,
            "on_long": "cut",
            "validation": 0.25,
        },
        "train": {"max_steps": 2, "learning_rate": 1e-2, "warmup_steps": 0, "sample_prompts": []},
        "output_dir": str(folder / "run"),
    }
    halter.train(recipe, say=lambda _: None)
    return folder / "run"


def typed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main.run([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def spoken(model: Path, run: Path | None, prompt: Any, template: str | None, count: int) -> str:
    """The same through the library."""
    base, tokenizer = load(model, say=lambda _: None)
    adapter = None if run is None else load_adapter(run / "adapter", base)
    return halter.generate(base, tokenizer, prompt, adapter, template=template, max_new_tokens=count)[0].text


def test_generate_speaks_as_the_library_does(capsys: pytest.CaptureFixture[str], run: Path, model: Path) -> None:
    wanted = spoken(model, run, ASK, "alpaca", 24)
    base = spoken(model, None, ASK, "alpaca", 24)
    assert wanted != base
    for named in (
        [run],
        [run / "adapter"],
        ["--model", model, "--adapter", run],
        [model, "--adapter", run / "adapter"],
    ):
        assert typed(capsys, "generate", *named, "--prompt", ASK, "--max-new-tokens", 24)[:2] == (0, wanted + "\n")
    assert typed(capsys, "generate", run, "--base", "--prompt", ASK, "--max-new-tokens", 24)[1] == base + "\n"
    raw = spoken(model, run, "Once upon", None, 24)
    code, out, _ = typed(capsys, "generate", run, "--template", "raw", "--prompt", "Once upon", "--max-new-tokens", 24)
    assert (code, out) == (0, raw + "\n")


def test_generate_from_a_file_to_a_file(
    capsys: pytest.CaptureFixture[str], run: Path, model: Path, tmp_path: Path
) -> None:
    asked, told = tmp_path / "asked.jsonl", tmp_path / "told.jsonl"
    rows = [{"instruction": "Finish.", "input": "A cat", "id": 7}, {"prompt": ASK, "id": 8}]
    asked.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    code, out, err = typed(capsys, "generate", run, "--input", asked, "--output", told, "--max-new-tokens", 16)
    assert (code, out) == (0, "") and "2 answers" in err
    lines = [json.loads(line) for line in told.read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == [7, 8]
    turn = [{"role": "user", "content": "Finish.", "input": "A cat"}]
    assert lines[0]["answer"] == spoken(model, run, turn, "alpaca", 16)
    assert lines[1]["answer"] == spoken(model, run, ASK, "alpaca", 16)
    code, _, err = typed(capsys, "generate", run, "--input", asked, "--output", told)
    assert code == 2 and "[already-exists]" in err


def test_generate_prints_json(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    code, out, _ = typed(
        capsys, "generate", run, "--prompt", ASK, "--prompt", "Hi", "--json", "--max-new-tokens", 200, "--stop", "."
    )
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [line["prompt"] for line in lines] == [ASK, "Hi"]
    assert all("." not in line["answer"] and line["finish_reason"] == "stop" for line in lines)


@pytest.mark.parametrize(
    ("arguments", "id"),
    [
        (["generate", "--prompt", "x"], "nothing-named"),
        (["generate", "{run}"], "nothing-asked"),
        (["generate", "{run}", "--adapter", "{run}", "--prompt", "x"], "two-adapters"),
        (["generate", "{run}", "--prompt", "x", "--temperature", "-1"], "generation-options"),
        (["generate", "{run}", "--prompt", "x", "--temperature", "hot"], "usage"),
        (["generate", "{run}", "--prompt", "x", "--template", "none such"], "template-unknown"),
        (["generate", "--model", "{model}", "--adapter", "{model}", "--prompt", "x"], "not-an-adapter"),
        (["evaluate", "--model", "{model}"], "no-data"),
        (["evaluate", "{run}", "--data", "nothing.jsonl"], "data-missing"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], run: Path, model: Path, arguments: list[str], id: str) -> None:
    code, _, err = typed(capsys, *(a.format(run=run, model=model) for a in arguments))
    assert code == 2 and f"[{id}]" in err


def test_help_is_the_options_own(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("generate", "chat", "evaluate"):
        code, out, _ = typed(capsys, verb, "--help")
        text = " ".join(out.split())
        assert code == 0
        for key in (*keys_of(GenerationOptions).values(), *keys_of(OpenOptions).values()):
            assert f"--{key.name.replace('_', '-')}" in text and key.doc[:60] in text


def test_an_unfinished_run(run: Path, tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    for name in ("recipe.yaml", "metrics.jsonl"):
        shutil.copy(run / name, tmp_path / "begun" / name)
    with pytest.raises(Refusal) as refusal:
        find(tmp_path / "begun")
    assert refusal.value.id == "run-unfinished"


def test_a_base_that_moved_is_named_by_hand(run: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(run / "adapter", folder)
    facts = json.loads((folder / "halter.json").read_text("utf-8"))
    del facts["base"], facts["recipe"]
    (folder / "halter.json").write_text(json.dumps(facts), "utf-8")
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    config["base_model_name_or_path"] = None
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    reseal(folder)
    with pytest.raises(Refusal) as refusal:
        find(folder)
    assert refusal.value.id == "base-unknown"
    assert find(folder, model=str(model)).base == str(model)


def test_a_relative_base_is_found_from_anywhere(run: Path, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(run / "adapter", folder)
    facts = json.loads((folder / "halter.json").read_text("utf-8"))
    facts["base"]["name"] = facts["recipe"]["model"]["path"] = "models/stories"
    (folder / "halter.json").write_text(json.dumps(facts), "utf-8")
    reseal(folder)
    monkeypatch.chdir(tmp_path)
    assert find(folder).base == str(model.resolve())


def test_the_template_of_training_is_used_even_where_the_built_in_one_changed(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(run / "adapter", folder)
    facts = json.loads((folder / "halter.json").read_text("utf-8"))
    facts["template_source"] = facts["template_source"].replace("### Response:", "### Answer:")
    facts["template"]["digest"] = "0" * 64
    (folder / "halter.json").write_text(json.dumps(facts), "utf-8")
    reseal(folder)
    opened = open_subject(find(folder), lambda _: None)
    assert opened.template is not None and "### Answer:" in opened.template.source


def test_another_tokenizer_is_refused_and_said_where_that_is_waived(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    said: list[str] = []
    shutil.copytree(run / "adapter", folder)
    facts = json.loads((folder / "halter.json").read_text("utf-8"))
    facts["tokenizer"]["digest"] = "0" * 64
    (folder / "halter.json").write_text(json.dumps(facts), "utf-8")
    reseal(folder)
    with pytest.raises(Refusal) as refusal:
        open_subject(find(folder), said.append)
    assert refusal.value.id == "tokenizer-differs" and refusal.value.waivable and not said
    opened = open_subject(find(folder), said.append, OpenOptions(allow=("tokenizer-differs",)))
    assert opened.adapter is not None and any("waived, tokenizer-differs" in line for line in said)


def test_evaluate(capsys: pytest.CaptureFixture[str], heavy_data: Data, run: Path) -> None:
    arguments = ["evaluate", run, "--data", heavy_data.test, "--limit", 6, "--questions", 2, "--max-new-tokens", 8]
    code, out, _ = typed(capsys, *arguments, "--json")
    report = json.loads(out)
    assert code == 0 and report["rows"] == 6 and report["answers"] == 2 and report["template"] == "alpaca"
    assert report["adapter"]["loss"] < report["base"]["loss"]
    folder = run / "evaluations/001-evaluation"
    assert json.loads((folder / "report.json").read_text("utf-8")) == report
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 2 and all(line["prompt"].startswith("<s>") for line in lines)
    assert all(line["prompt"].endswith("### Response:\n") for line in lines)
    code, out, _ = typed(capsys, *arguments)
    assert code == 0 and (run / "evaluations/002-evaluation").is_dir()
    assert f"{report['base']['loss']:.4f}" in out and f"{report['adapter']['loss']:.4f}" in out


def test_evaluate_takes_the_runs_validation_rows(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    """The loss that training logged at its end is the one found again."""
    code, out, _ = typed(capsys, "evaluate", run, "--questions", 0, "--json", "--output", tmp_path / "scores")
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    last = [line["eval_loss"] for line in logged if "eval_loss" in line][-1]
    assert code == 0 and json.loads(out)["adapter"]["loss"] == pytest.approx(last, rel=1e-6)


@pytest.fixture(scope="module")
def opened(run: Path) -> Opened:
    return open_subject(find(run), lambda _: None)


def chat(opened: Opened, *lines: str, **options: Any) -> tuple[Chat, str]:
    said: list[str] = []
    made = Chat(opened, GenerationOptions(**({"max_new_tokens": 12} | options)), write=said.append)
    for line in lines:
        made.handle(line)
    return made, "".join(said)


def test_chat_answers_as_generate_does_with_the_history(opened: Opened) -> None:
    made, said = chat(opened, ASK, "And then?")
    roles = [message["role"] for message in made.history]
    assert roles == ["user", "assistant"] * 2 and made.history[2]["content"] == "And then?"
    wanted = halter.generate(
        opened.model, opened.tokenizer, made.history[:3], opened.adapter, template=opened.template, max_new_tokens=12
    )[0]
    assert made.history[3]["content"] == wanted.text.strip() and wanted.text in said


def test_chat_switches_adapters_and_keeps_the_history(opened: Opened, run: Path, tmp_path: Path) -> None:
    other = adapt(opened.model, "full")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.05)
    other.facts = dict(opened.adapter.facts) if opened.adapter is not None else {}
    other.save(run.parent / "other")
    made, said = chat(opened, ASK, "/base", ASK, "/adapter other", ASK, "/adapter run", "/adapter")
    assert list(made.loaded) == ["/base", "run", "other"] and made.current == "run"
    assert len(made.history) == 6 and "/base, run, other" in said
    adapters = (opened.adapter, None, made.loaded["other"][0])
    for turn, adapter in enumerate(adapters):
        asked = made.history[: 2 * turn + 1]
        wanted = halter.generate(
            opened.model, opened.tokenizer, [asked], adapter, template=opened.template, max_new_tokens=12
        )
        assert made.history[2 * turn + 1]["content"] == wanted[0].text.strip()


def test_chat_tells_adapters_of_one_name_apart_from_each_other_and_from_the_base(
    run: Path, tmp_path: Path, model: Path
) -> None:
    for place in ("base", "two/base"):
        shutil.copytree(run, tmp_path / place)
    begun = open_subject(find(tmp_path / "base"), lambda _: None)
    made, said = chat(begun, "/adapter", f"/adapter {tmp_path}/two/base")
    assert "/base, base\n" in said and "with adapter base, chat template" in said and "base alone" not in said
    assert list(made.loaded) == ["/base", "base", str(tmp_path / "two/base")]
    assert made.loaded["base"][0] is not made.loaded[made.current][0]


def test_a_checkpoint_stands_for_its_run_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = next((run / "checkpoints").glob("step-*"))
    assert find(checkpoint).adapter == run.resolve() / "adapter"
    assert f"the result of {run.resolve()} is taken" in capsys.readouterr().err


def test_chat_commands(opened: Opened) -> None:
    made, said = chat(opened, ASK, "/reset", "/help", "/nonsense", "")
    assert made.history == [] and HELP in said and "no command /nonsense" in said
    assert made.handle("/quit") is False and made.handle("/help") is True
    with pytest.raises(Refusal) as refusal:
        made.handle("/adapter no such")
    assert refusal.value.id == "no-such-adapter" and made.current == "run"


def test_chat_forgets_the_oldest_turns_when_the_context_is_full(opened: Opened) -> None:
    made, said = chat(opened, *["Tell me more about the dog and the park. " * 4] * 6)
    assert "oldest turn is forgotten" in said and len(made.history) < 12
    before = len(made.history)
    with pytest.raises(Refusal) as refusal:
        made.handle("dog " * 600)
    assert refusal.value.id == "prompt-too-long" and len(made.history) <= before


def test_chat_is_typed(capsys: pytest.CaptureFixture[str], run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ASK}\n/adapter nope\n/base\n"))
    code, out, _ = typed(capsys, "chat", run, "--max-new-tokens", 8)
    assert code == 0 and "chat template: alpaca" in out and "[no-such-adapter]" in out and "base alone" in out


def test_chat_lays_4_bit_weights_out_once_for_all_turns(
    capsys: pytest.CaptureFixture[str], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[str] = []

    @contextmanager
    def noting(model: Any, rows: int, steps: int) -> Iterator[int]:
        held.append(f"rows {rows}, steps {steps}")
        yield 0
        held.append("dropped")

    monkeypatch.setattr("halter.cli.chat.for_decoding", noting)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ASK}\n{ASK}\n"))
    assert typed(capsys, "chat", run, "--max-new-tokens", 8)[0] == 0
    assert held == ["rows 1, steps 8", "dropped"]


def test_chat_with_a_model_that_has_no_template_goes_on_with_each_line(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Once upon a time\n"))
    code, out, _ = typed(capsys, "chat", model, "--max-new-tokens", 12)
    assert code == 0 and spoken(model, None, "Once upon a time", None, 12) in out and "as it stands" in out


def test_chat_takes_a_system_message_a_temperature_and_the_last_question_again(opened: Opened, tmp_path: Path) -> None:
    talk, _ = chat(opened, "/system Be brief.", "/temperature 0.9", ASK)
    assert talk.opening == [{"role": "system", "content": "Be brief."}] and talk.options.temperature == 0.9
    first = talk.history[-1]["content"]
    assert talk.handle("/retry") and len(talk.history) == 2 and talk.history[0]["content"] == ASK
    assert talk.history[-1]["content"] != first
    file = tmp_path / "chat.jsonl"
    assert talk.handle(f"/save {file}") and json.loads(file.read_text()) == {"messages": [*talk.opening, *talk.history]}
    for line, id in (("/retry", "nothing-asked"), (f"/save {file}", "already-exists"), ("/temperature x", "usage")):
        talk.history = [] if line == "/retry" else talk.history
        with pytest.raises(Refusal, match=id):
            talk.handle(line)
    assert talk.handle("/system") and talk.opening == []


def test_chat_reads_several_lines_between_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.StringIO('one\n"""two\nthree\n"""\n"""four"""\n')
    monkeypatch.setattr("sys.stdin", lines)
    assert [_read_turn() for _ in range(4)] == [("one", False), ("two\nthree", True), ("four", True), None]


def test_what_stands_between_quotes_is_no_command(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('"""exit"""\n"""/quit"""\nquit\nnever read\n'))
    made, _ = chat(opened)
    made.run()
    assert [turn["content"] for turn in made.history if turn["role"] == "user"] == ["exit", "/quit"]


def test_a_system_message_without_a_template_is_refused(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["chat", model, "--system", "X"], ["generate", model, "--system", "X", "--prompt", "Hi"]):
        code, _, err = typed(capsys, *words)
        assert code == 2 and "system-unused" in err


def test_generate_reads_standard_input_and_columns(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line is a prompt, a row in JSON is a row; each is answered as --prompt is."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f'{ASK}\n\n{{"prompt": "{ASK}", "id": 7}}\n'))
    short = ["--max-new-tokens", 8, "--json"]
    code, out, _ = typed(capsys, "generate", run, "--input", "-", *short)
    rows = [json.loads(line) for line in out.splitlines()]
    wanted = json.loads(typed(capsys, "generate", run, "--prompt", ASK, *short)[1])
    assert code == 0 and [row["answer"] for row in rows] == [wanted["answer"]] * 2 and rows[1]["id"] == 7
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"ask": ASK}) + "\n" + json.dumps({"ask": "word " * 600}) + "\n")
    code, _, err = typed(capsys, "generate", run, "--input", file, *short)
    assert code == 2 and "--columns" in err
    columns = ["--columns", "{prompt: ask}"]
    code, _, err = typed(capsys, "generate", run, "--input", file, *columns, *short)
    assert code == 2 and "prompt-too-long" in err and "--on-long skip" in err
    code, out, err = typed(capsys, "generate", run, "--input", file, *columns, "--on-long", "skip", *short)
    assert code == 0 and json.loads(out)["answer"] == wanted["answer"] and "skipped: 1 of 2" in err
    code, out, err = typed(capsys, "generate", run, "--input", file, *columns, "--on-long", "cut", *short)
    assert code == 0 and len(out.splitlines()) == 2 and "cut: 1 of 2" in err


def test_generate_reads_rows_by_the_roles_of_the_training(
    capsys: pytest.CaptureFixture[str], run: Path, model: Path, tmp_path: Path
) -> None:
    """The run's data.roles, and data.roles on the command line, give the answer that the known roles give."""
    asked = [("user", ASK), ("assistant", "Once."), ("user", "Go on.")]
    strange = {"user": "customer", "assistant": "agent"}
    for name, names in (("known", {}), ("strange", strange)):
        talk = [{"role": names.get(who, who), "content": said} for who, said in asked]
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"messages": talk}), "utf-8")
        talk.append({"role": names.get("assistant", "assistant"), "content": "The end."})
        (tmp_path / f"train-{name}.jsonl").write_text(json.dumps({"messages": talk}) + "\n", "utf-8")
    recipe = {
        "model": {"path": str(model)},
        "method": {"name": "lora", "r": 4},
        "output_dir": str(tmp_path / "run"),
        "data": {
            "train": str(tmp_path / "train-strange.jsonl"),
            "template": "alpaca",
            "roles": {theirs: ours for ours, theirs in strange.items()},
        },
        "train": {"max_steps": 1, "learning_rate": 1e-2, "warmup_steps": 0, "sample_prompts": []},
    }
    halter.train(recipe, say=lambda _: None)
    short = ["--max-new-tokens", 8, "--json"]

    def answer(*words: object) -> str:
        code, out, err = typed(capsys, "generate", *words, *short)
        assert code == 0, err
        return str(json.loads(out)["answer"])

    wanted = answer(tmp_path / "run", "--input", tmp_path / "known.jsonl")
    assert wanted == answer(tmp_path / "run", "--input", tmp_path / "strange.jsonl")
    assert wanted == answer(tmp_path / "run" / "adapter", "--input", tmp_path / "strange.jsonl")
    code, _, err = typed(capsys, "generate", run, "--input", tmp_path / "strange.jsonl", *short)
    assert code == 2 and (said := "data.roles='{customer: user, agent: assistant}'") in err
    roles = said.replace("'", "")
    by_roles = answer(run, roles, "--input", tmp_path / "strange.jsonl")
    assert by_roles == answer(run, "--input", tmp_path / "known.jsonl")
    for words in ([run, "data.max_length=4", "--input", tmp_path / "known.jsonl"], [run, roles, "--prompt", "Hi"]):
        assert typed(capsys, "generate", *words)[0] == 2


def test_generate_gives_several_answers_and_begins_them(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    words = ["generate", run, "--prompt", ASK, "--max-new-tokens", 8, "--json"]
    code, out, _ = typed(capsys, *words, "--n", 3, "--temperature", 1, "--system", "Be brief.", "--prefill", "Once")
    assert code == 0 and len({json.loads(line)["answer"] for line in out.splitlines()}) > 1
    assert len(out.splitlines()) == 3
    assert typed(capsys, *words, "--n", 3)[0] == 2
    twice = ("generate", run, "--prompt", ASK, "--prompt", "Hi", "--n", 2, "--temperature", 1, "--max-new-tokens", 2)
    heads = [line for line in typed(capsys, *twice)[1].splitlines() if line.startswith("---")]
    assert heads == [f"--- --prompt {prompt} ({n}/2)" for prompt in (1, 2) for n in (1, 2)]


def test_evaluate_takes_columns(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    """Both ways in which a hint may name them, and words that are no key are refused with the right form."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"zq": ASK, "za": f"It ran {n}."}) + "\n" for n in range(3)))
    words = ["evaluate", run, "--data", file, "--questions", 0, "--json"]
    assert typed(capsys, *words, "--output", tmp_path / "no")[0] == 2
    columns = "{instruction: zq, output: za}"
    reports = []
    for number, given in enumerate((["--columns", columns], [f"data.columns={columns}"])):
        code, out, err = typed(capsys, *words, "--output", tmp_path / str(number), *given)
        assert code == 0, err
        reports.append(json.loads(out))
    assert reports[0]["rows"] == 3 and reports[0]["base"] == reports[1]["base"]
    code, _, err = typed(capsys, *words, "--output", tmp_path / "x", "train.seed=3")
    assert code == 2 and "data.KEY=VALUE" in err


@pytest.mark.parametrize(("policy", "hint"), [("drop", "--on-long cut takes"), ("cut", "what is asked fills that")])
def test_rows_that_cutting_does_not_help_are_not_told_to_cut(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path, policy: str, hint: str
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": ASK * 400, "output": "It ran."}, {"instruction": ASK, "output": "It sat."}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("evaluate", run, "--data", file, "--questions", 0, "--on-long", policy, "--output", tmp_path / "out")
    code, _, err = typed(capsys, *words)
    assert code == 0 and "1 of 2 rows have more than" in err
    assert hint in err and err.count("--on-long") == (policy == "drop")


def test_gguf_is_answered_with_what_writes_it(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    code, _, err = typed(capsys, "merge", run, "--output", tmp_path / "merged", "--into", "gguf")
    assert code == 2 and "convert_hf_to_gguf.py" in err and not (tmp_path / "merged").exists()
