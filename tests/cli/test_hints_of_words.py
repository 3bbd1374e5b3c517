"""Words of a command or a recipe that are none: what is named as meant could stand there, and what is printed works."""

from __future__ import annotations

import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endless import ended
from playground_run import finished, write_rows

import halter
from halter.cli import adapters, chat_words, main, otherwise, strays
from halter.errors import Refusal
from halter.files import yaml12
from halter.files.runs import RunFolder
from halter.playground import base_folder
from halter.recipe import load
from halter.recipe.aliases import ALIASES
from halter.recipe.fields import keys_of
from halter.recipe.sections import SECTIONS, method_class, method_names
from halter.telling import LOGGER

BASE = str(base_folder())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    finished(folder, "runs/mine")
    write_rows(folder / "rows.jsonl", 4)
    (folder / "lf.sh").write_text("CUDA_VISIBLE_DEVICES=0 llamafactory-cli train --stage sft --model_name_or_path m\n")
    theirs = f"model_name_or_path: {BASE}\ndataset: mine\nfinetuning_type: lora\ntemplate: llama3\ncutoff_len: 64\n"
    (folder / "dpo.yaml").write_text(f"{theirs}stage: dpo\n")
    (folder / "deep.yaml").write_text(f"model:\n  path: {BASE}\n  method: lora\ndata: rows.jsonl\n")
    (folder / "sft.yaml").write_text(f"{theirs}stage: sft\n")
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place)
    yield


def said(capsys: Any, *words: str) -> str:
    code = main.run(list(words))
    err = str(capsys.readouterr().err)
    assert code == 2 and "Traceback" not in err and len(err.splitlines()) <= 6, err
    return err


def refused(method: str, *given: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        load({"model": "a", "data": "b", "method": method}, given)
    return caught.value


def usable(method: str) -> set[str]:
    """Every key that a loose flag of a recipe with this method may be."""
    sections = [*SECTIONS.values(), method_class(method)]
    return {key for section in sections for key in keys_of(section)} | {"method", "output_dir", "init_from", *SECTIONS}


EVERY_KEY = sorted({key for name in method_names() for key in keys_of(method_class(name))} | ALIASES.keys())


@pytest.mark.parametrize("method", ["full", "prefix_tuning", "ia3", "lora", "bitfit", "loreft"])
def test_no_key_is_named_as_meant_that_would_be_refused_in_its_turn(method: str) -> None:
    """Every other method's options and every alias: what is refused is never suggested, nor what this method lacks."""
    met = 0
    for key in EVERY_KEY:
        for given in (f"{key}=8", f"method.{key}=8"):
            try:
                load({"model": "a", "data": "b", "method": method}, [given])
            except Refusal as refusal:
                for near in re.findall(r"did you mean (\w+)\?", str(refusal)):
                    assert near != key and near in usable(method), (given, str(refusal))
                met += "unknown key" in str(refusal)
    assert met > 20


@pytest.mark.parametrize(
    ("method", "given", "told"),
    [
        ("full", "r=8", "full has no such option (lora, dora, "),
        ("prefix_tuning", "method.alpha=8", "it has num_virtual_tokens, "),
        ("prefix_tuning", "lora_alpha=8", "prefix_tuning has no such option (lora, "),
        ("lora", "method.alhpa=8", "did you mean alpha?"),
        ("lora", "learning_rte=8", "did you mean learning_rate?"),
        ("lora", "method.lora_alhpa=8", "did you mean alpha?"),
    ],
)
def test_an_option_of_another_method_is_named_as_one(method: str, given: str, told: str) -> None:
    assert told in str(refused(method, given))


def test_a_key_too_short_to_be_near_to_any_names_none() -> None:
    assert "did you mean" not in str(refused("lora", "x=8")) and "did you mean" not in str(refused("lora", "l=8"))


FEW = "--max-steps 1 --per-device-train-batch-size 2 --r 2"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("{base} rows.jsonl", "--model {base} --data rows.jsonl"),
        ("{base} --data rows.jsonl", "--model {base}"),
        ("rows.jsonl --model {base}", "--data rows.jsonl"),
        ("--model {base} --data rows.jsonl train.seed 3", "train.seed=3"),
        ("--model {base} --data rows.jsonl seed 3", "seed=3"),
    ],
)
def test_a_stray_word_is_typed_as_the_hint_says(
    words: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, told = words.format(base=BASE), told.format(base=BASE)
    err = said(capsys, "train", *words.split())
    assert f": {told}. [usage]" in err, err
    stray = [word for word in shlex.split(told) if not word.startswith("--") and "=" not in word]
    stray += told.split("=") if "=" in told else []
    rest = [word for word in words.split() if word not in stray or words.split().index(word) and "=" not in told]
    rest = [] if told.count("--") == 2 else rest
    assert main.run(["train", *rest, *told.split(), *FEW.split(), "--output", str(tmp_path / "out")]) == 0


def test_other_stray_words_name_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--resume --output runs/mine goes on with it" in said(capsys, "train", "runs/mine")
    assert "runs/mine/recipe.yaml is the recipe of a run" in said(capsys, "train", "runs/mine")
    assert "keep one of them" in said(capsys, "train", "a.yaml", "b.yaml")
    assert "b.jsonl" in said(capsys, "train", "--model", BASE, "--data", "rows.jsonl", "b.jsonl")
    assert f": --model {BASE} --train rows.jsonl. [" in said(capsys, "compare", BASE, "rows.jsonl")
    assert ": --model llama-3.1-8b. [" in said(capsys, "plan", "llama-3.1-8b")
    assert ": --model meta-llama/Llama-3.2-1B. [" in said(capsys, "plan", "meta-llama/Llama-3.2-1B")
    err = said(capsys, "inspect", "DoRA", "--model", BASE, "--data", "rows.jsonl")
    assert ": --method dora; several: --method A,B. [" in err
    assert "no such" in said(capsys, "plan", "nowhere.yaml").lower()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("plan --model llama-3.1-8b --gpu 4090", "--gpu (here --on)"),
        ("plan --preset 8b --vram=24GB", "--preset (here --model), --vram (here --memory)"),
        ("compare --model {base} --train rows.jsonl --test_file rows.jsonl", "--test_file (here --test)"),
    ],
)
def test_flags_of_other_programs_are_told_as_ours_also_where_any_key_is_a_flag(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *rest = words.format(base=BASE).split()
    assert f"Found: {told}. Fix: halter {verb} --help" in said(capsys, verb, *rest)


def test_the_sections_that_a_stray_word_may_name_are_those_of_a_recipe() -> None:
    assert set(strays.NAMES) == {*SECTIONS, "method"}


@pytest.mark.parametrize(
    ("words", "flags"),
    [("", "--model DIR --data FILE"), (f"--model {BASE}", "--data FILE"), ("--data rows.jsonl", "--model DIR")],
)
def test_what_is_lacking_is_named_as_a_flag(words: str, flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = said(capsys, "train", "--r", "2", *words.split())
    assert f"Fix: add {flags}; " in err, err


def test_the_help_that_is_named_is_that_of_the_very_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("diff runs/mine", "compress runs/mine --bits 2 --output x", "convert", "convert runs/mine --nope"):
        err = said(capsys, "adapters", *words.split())
        command = re.search(r"halter (adapters \w+ --help) lists", err)
        assert command is not None and "Value error" not in err, err
        assert main.run(command[1].split()) == 0
        assert f"halter adapters {words.split()[0]}" in capsys.readouterr().out
    err = said(capsys, "adapters", "diff", "runs/mine")
    assert "it is typed halter adapters diff FOLDER OTHER" in err
    assert main.run(["adapters", "diff", "runs/mine", "runs/mine"]) == 0


@pytest.mark.parametrize("word", ["none", "None", "null"])
def test_none_is_null_where_a_key_takes_no_other_words(word: str) -> None:
    recipe = load({"model": {"path": "a", "quantize": word if word != "null" else None}, "data": "b"})
    assert recipe.model.quantize is None
    given = [f"quantize={word}", f"max_steps={word}", f"layers={word}", f"limit={word}"]
    recipe = load({"model": "a", "data": "b"}, given)
    assert recipe.model.quantize is recipe.train.max_steps is recipe.data.limit is None


def test_none_stays_a_word_where_words_are_taken() -> None:
    assert load({"model": "a", "data": "b"}, ["output_dir=none"]).output_dir == "none"
    assert load({"model": "a", "data": "b"}, ["offload=none"]).model.offload == "none"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model:\n\tpath: a\n", "indent with spaces"),
        ("method:\n  name: lora\n   r: 8\n", "line 3 is indented by 3 and line 2 above it by 2"),
        ("data:\n    train: a\n  limit: 3\n", "line 3 is indented by 2, as no key above is"),
        ("data:\n  train: a: b\n", "quotes"),
        ("data: [a, b\nmodel: x\n", "close what is opened above"),
        ("model: 'a\n", "close what is opened above"),
        ("model: @a\n", "into quotes"),
        ("model\ndata: b\n", "quotes"),
        (
            'model: "C:\\models\\x"\n',
            r"model: 'C:\models\x', in single quotes or in none, or with slashes: C:/models/x",
        ),
        ('data:\n  train: "C:\\Users\\anna"\n', r"train: 'C:\Users\anna', in single quotes"),
        ("- a\nb: c\n", "halter init lora FILE writes a recipe"),
    ],
)
def test_a_recipe_that_is_no_yaml_says_what_to_do(text: str, told: str) -> None:
    with pytest.raises(Refusal, match="not valid YAML") as caught:
        yaml12.parse(text, "r.yaml")
    assert told in caught.value.fix and re.match(r"r\.yaml:\d+:\d+", caught.value.where)


@pytest.mark.parametrize(("key", "id"), [("data", "data-missing"), ("model", "model-not-found")])
@pytest.mark.parametrize("path", [r"data\train.jsonl", r"C:\new\rows.jsonl", r"a\b\f.jsonl"])
def test_a_path_whose_backslashes_became_other_signs_is_told_so(key: str, id: str, path: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        f'model: {BASE}\ndata: a.jsonl\n{key}: "{path}"\n'.replace(
            f"model: {BASE}\n" if key == "model" else "data: a.jsonl\n", ""
        )
    )
    found = halter.doctor(tmp_path / "r.yaml", say=lambda _: None).problems
    (told,) = [one for one in found if one.id == id and "double quotes" in one.fix]
    assert f"'{path}', in single quotes" in told.fix and path.replace("\\", "/") in told.fix
    assert told.where == path and not re.search(r"[\x00-\x1f]", str(told))


def test_a_recipe_that_is_no_yaml_is_told_before_torch_is_imported(tmp_path: Path) -> None:

    (tmp_path / "tab.yaml").write_text("model:\n\tpath: a\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    for verb in ("train", "doctor", "inspect"):
        for name in ("tab.yaml", "list.yaml", "not-there.yaml"):
            code = (
                "import sys\nfrom halter.cli import main\n"
                f"code = main.run([{verb!r}, {str(tmp_path / name)!r}])\n"
                "assert code == 2 and 'torch' not in sys.modules, sorted(sys.modules)"
            )
            ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert ended.returncode == 0, (verb, name, ended.stderr)
            assert "halter: " in ended.stderr


def test_answers_of_a_piped_chat_stand_apart(tmp_path: Path) -> None:
    """Where nobody types, the ends of lines that somebody would have typed are not between the answers."""
    lines = "Hello\nHello\n/help\n"
    command = [sys.executable, "-m", "halter", "chat", BASE, "--template", "raw", "--max-new-tokens", "2", "--quiet"]
    ended = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    first, second, third, *_ = ended.stdout.partition("commands.\n")[2].split("\n\n")
    assert first.strip() and second.strip() and "/adapter" in third


RUN = f"--model {BASE} --data rows.jsonl"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--validation 10%", "data.validation=0.1"),
        ("--validation '10 %'", "data.validation=0.1"),
        ("--validation 5%", "data.validation=0.05"),
        ("--validation 10 %", "--validation 0.1"),
        ("--eval-steps 25%", "train.eval_steps=0.25"),
        ("\u2014seed 2", "--seed"),
        ("\u2013lr 1e-4", "--lr"),
        ("\u2013\u2013max-length 300", "--max-length"),
        ("--deterministic \u2014seed 2", "--seed"),
        ("-\u2013seed=2", "--seed"),
        ("train.seed = 2", "train.seed=2"),
        ("train.seed =2", "train.seed=2"),
        ("train.seed= 2", "train.seed=2"),
        ("--seed = 2", "--seed=2"),
        ("--epochs 0,5", "train.num_train_epochs=0.5"),
        ("--max-steps 1k", "train.max_steps=1000"),
        ("--max-steps 1,000", "train.max_steps=1000"),
        ("--max-steps '\"2\"'", "train.max_steps=2"),
        ("--max-steps 2,5", "train.max_steps=100"),
        ("--alpha --r 2", "--alpha 32"),
        ("--max-steps", "--max-steps 100"),
        ("--quantize 4bit", "model.quantize=nf4"),
        ("--quantize 8bit", "model.quantize=int8"),
        ("--quantize int4", "model.quantize=nf4"),
        ("--quantize 4", "model.quantize=nf4"),
        ("--train-on response", "data.train_on=responses"),
    ],
)
def test_a_value_that_cannot_be_is_told_as_the_one_that_can(
    given: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    err = said(capsys, "train", *RUN.split(), *shlex.split(given))
    fix = err.split("Fix: ")[1].replace("\n", " ")
    assert re.search(rf"(?<![\w.-]){re.escape(told)}(?![\w=-]|\.\w)", fix), err
    value = told if "=" in told or " " in told else f"{told} {re.split('[ =]', given)[-1]}"
    load({"model": "a", "data": "b"}, [value.removeprefix("--").replace(" ", "=")])


def test_a_long_dash_is_told_by_commands_with_flags_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert "write --max-new-tokens" in said(capsys, "generate", BASE, "\u2014max-new-tokens", "2")
    assert "write --bits" in said(capsys, "adapters", "compress", "runs/mine", "\u2014bits", "2", "--output", "x")
    assert "begins with" not in said(capsys, "generate", "nowhere", "--prompt", "\u2014hello", "--prompt", "\u2014you")


@pytest.mark.parametrize("words", ["--weights 0.5 0.25", "--weights 0.5, 0.25", "--weights 0.5 ,0.25"])
def test_weights_with_a_space_between_are_told_as_one_word(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = said(capsys, "adapters", "combine", "runs/mine", "runs/mine", *words.split(), "--output", "both")
    assert "weights are one word" in err and "Fix: --weights 0.5,0.25. " in err, err


def test_an_amount_of_memory_has_a_unit(capsys: pytest.CaptureFixture[str]) -> None:
    err = said(capsys, "plan", "--model", BASE, "--memory", "24")
    assert "24 what?" in err and "Fix: --memory 24GB. " in err, err


@pytest.mark.parametrize(
    ("text", "told", "better"),
    [
        (
            "train:\n  max_steps: 2\ntrain:\n  seed: 2\n",
            "put both under one train:",
            "train:\n  max_steps: 2\n  seed: 2\n",
        ),
        ("train:\n  seed: 2\n  seed: 3\n", "keep one of them", "train:\n  seed: 3\n"),
        ('model = "m260"\n\n[train]\nseed = 2\n', "YAML has model: m260,", "model: m260\ntrain:\n  seed: 2\n"),
        ('# mine\nmodel = "m260"\ndata = "b"\n', "YAML has model: m260,", "model: m260\ndata: b\n"),
        ("[train]\nseed = 2\n", "YAML has train: and its keys indented below", "train:\n  seed: 2\n"),
    ],
)
def test_a_key_twice_and_toml_say_what_yaml_has(text: str, told: str, better: str) -> None:
    with pytest.raises(Refusal, match=r"r\.yaml:\d+:\d+") as caught:
        yaml12.parse(text, "r.yaml")
    assert told in caught.value.fix, caught.value
    assert isinstance(yaml12.parse(better, "r.yaml").data, dict)
    assert yaml12.parse("[a, b]\n").data == ["a", "b"] and yaml12.parse("[train]\n").data == ["train"]


def test_a_number_in_quotes_is_told_to_leave_them_out(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text('model: a\ndata: b\ntrain:\n  max_steps: "2"\n')
    with pytest.raises(Refusal, match=r"train\.max_steps=2, and leave the quotes out"):
        load(file)


def test_what_is_so_anyway_is_not_told_as_read_as_another_key() -> None:
    recipe = load({"model": "a", "data": "b", "method": {"r": 4, "task_type": "CAUSAL_LM", "bias": "none"}})
    assert [note.split(": ", 1)[1] for note in recipe.notes] == [
        "task_type: CAUSAL_LM is so here anyway",
        "bias: none is so here anyway",
    ]
    with pytest.raises(Refusal, match="bitfit"):
        load({"model": "a", "data": "b", "method": {"bias": "all"}})


def test_backslashes_are_told_as_the_slashes_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sets").mkdir(exist_ok=True)
    write_rows(Path("sets/rows.jsonl"), 2)
    assert "did you mean runs/mine?" in said(capsys, "generate", "runs\\mine", "--prompt", "a")
    assert "did you mean runs/mine?" in said(capsys, "adapters", "show", "runs\\mine")
    assert "did you mean runs/mine/recipe.yaml?" in said(capsys, "train", "runs\\mine\\recipe.yaml")
    err = said(capsys, "train", "--model", BASE, "--data", "sets\\rows.jsonl", "--output", "runs/other")
    assert "did you mean sets/rows.jsonl?" in err


def test_a_run_without_its_recipe_prints_the_whole_command(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.adapter.mkdir(parents=True)
    (run.adapter / "halter.json").write_text("{}")
    lost = run.without_recipe()
    assert lost is not None and f"halter train --model DIR --data FILE --output {run.path}-2" in lost.fix


def test_swapped_arguments_are_told_once() -> None:
    import halter

    with pytest.raises(Refusal) as caught:
        halter.load_adapter(halter.load(BASE)[0], "runs/mine")  # type: ignore[arg-type]
    assert "base and folder are swapped" in caught.value.fix and "not loaded" not in caught.value.fix


@pytest.mark.parametrize(("word", "meant"), [("4bit", "nf4"), ("8bit", "int8"), ("int4", "nf4"), ("nf5", "nf4")])
def test_a_storage_under_another_name_is_told_by_generate(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    err = said(capsys, "generate", BASE, "--prompt", "a", "--quantize", word)
    assert f"did you mean --quantize {meant}?" in err, err
    assert "did you mean" not in said(capsys, "generate", BASE, "--prompt", "a", "--quantize", "zebra")


def test_a_folder_with_a_long_number_in_its_name_is_no_weight() -> None:
    with ended(20):
        assert not adapters._is_weight(f"{'1' * 60}-lora")
    assert adapters._is_weight("0.5,") and adapters._is_weight(",-0.25,1") and not adapters._is_weight("0.5-1")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("merge {base} out/merged", "out/merged stands without a flag. Fix: halter merge "),
        ("adapters convert {base} --to gguf --output g", "convert_hf_to_gguf.py makes GGUF of DIR. ["),
        ("inspect runs/mine", "runs/mine/recipe.yaml is the recipe of a run. ["),
        ("chat hello", "hello: there is no such folder."),
        ("compare --template alpaca --methods lora dora", "Fix: --methods dora; several: --methods A,B. ["),
        ("train --template alpaca --method lora dora --r 8", "Fix: --method dora; several: --method A,B. ["),
        ("compare runs/mine runs/mine", "halter adapters diff RUN RUN shows how two differ. ["),
        (
            "train --resume --output runs/mine --method dora",
            "runs/mine: this run trains lora, and dora is asked. Fix: ",
        ),
        ("demo --model {base}", "the demo brings its own model and rows; yours: halter train --model DIR --data FILE"),
        ("init --method dora d.yaml", "halter init METHOD FILE"),
        ("plan --model mistral-7b", "which are LLaMA's alone"),
        ("train --model {base} --data a --resume_from_checkpoint r1", "Fix: halter train --resume --output r1. ["),
        ("train deep.yaml", "it is a section of its own: its name begins at the left margin"),
        ("train lf.sh", "halter init --from lf.sh halter-recipe.yaml writes a recipe"),
        ("train dpo.yaml", "asks for training that Halter does not do"),
        ("train sft.yaml", "halter-recipe.yaml, fill in data.train there, then: halter train halter-recipe.yaml. ["),
    ],
)
def test_words_are_told_as_what_they_can_be_there(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb, *rest = words.format(base=BASE).split()
    err = said(capsys, verb, *rest)
    assert told in err, err


def test_short_flags_are_those_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main.run(["generate", BASE, "--prompt", "Hi", "--max-new-tokens", "1", "-q"]) == 0
    finally:
        logging.getLogger(LOGGER).setLevel(logging.NOTSET)
    assert "note:" not in capsys.readouterr().err
    assert main.run(["-h"]) == main.run(["plan", "-h"]) == 0


def test_a_command_of_other_programs_is_never_told_as_one_that_loses_something() -> None:
    assert "/temperature X or /system TEXT" in chat_words.unknown("/set") and "/reset" in chat_words.unknown("/clear")


def test_a_model_that_is_still_a_pair_is_told_so() -> None:
    pair = halter.load(BASE, say=lambda _: None)
    with pytest.raises(Refusal, match="a pair, the model and the tokenizer") as refused:
        halter.generate(pair, "Hi")  # type: ignore[call-arg, arg-type]
    assert "model, tokenizer = halter.load(" in refused.value.fix


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("deploy runs/mine --port 8000", "halter serve MODEL --adapters FOLDER"),
        ("export runs/mine --format gguf", "halter merge runs/mine --output merged writes a model folder; llama.cpp's"),
        ("quantize", "--quantize nf4"),
        ("finetune", "halter train --model DIR --data FILE --method lora"),
        ("run runs/mine", 'halter generate runs/mine --prompt "..."'),
        ("pull llama3", "--model OWNER/NAME"),
        ("list", "halter adapters list"),
        ("push runs/mine", "hf upload OWNER/NAME runs/mine/adapter"),
        ("eval runs/mine", "halter evaluate runs/mine --data FILE"),
        ("combine", "halter adapters combine"),
        ("trian", "did you mean halter train?"),
        ("xyzzy", "halter --help lists them"),
        ("adapters merge runs/mine runs/mine", "halter adapters combine A B --output both"),
        ("adapters ls", "halter adapters list FOLDER"),
        ("adapters shwo", "did you mean halter adapters show?"),
    ],
)
def test_the_words_of_other_programs_are_told_what_does_it_here(words: str, told: str, capsys: Any) -> None:
    err = said(capsys, *words.split())
    assert told in err and "unknown-command" in err


def test_the_table_of_other_programs_words_holds_none_of_ours_and_names_commands_that_there_are() -> None:
    for table, ours in ((otherwise.COMMANDS, main.VERBS), (otherwise.ADAPTERS, adapters.COMMANDS)):
        words = [word for theirs in table for word in theirs.split()]
        assert len(words) == len(set(words)) and not set(words) & set(ours)
        for here in table.values():
            for verb, second in re.findall(r"halter ([a-z]+)(?: ([a-z]+))?", here):
                assert verb in main.VERBS, here
                assert verb != "adapters" or not second or second in adapters.COMMANDS, here


@pytest.mark.parametrize("typed", ["--output-dir OUT", "--output-dir=OUT", "--output_dir OUT", "output_dir=OUT"])
def test_the_output_folder_by_its_name_in_a_recipe(typed: str, tmp_path: Path) -> None:
    """Every key of a recipe is also a flag."""
    few = "--max-steps 1 --per-device-train-batch-size 2".split()
    words = [
        "train",
        "--model",
        BASE,
        "--data",
        "rows.jsonl",
        *few,
        *typed.replace("OUT", str(tmp_path / "run")).split(),
    ]
    assert main.run(words) == 0 and RunFolder(tmp_path / "run").finished
