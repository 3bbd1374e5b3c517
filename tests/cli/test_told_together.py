"""Several mistakes at once: six lines at 100 columns, in which every refusal has its id; --verbose tells each in full.

The mistakes are planted together in every command that can find several, and made up, of any length and number.
"""

from __future__ import annotations

import io
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playground_run import finished, write_rows

from halter.cli import brief, main
from halter.errors import Refusal, together
from halter.playground import base_folder
from halter.telling import folded

BASE = str(base_folder())

FAULTS: dict[str, tuple[list[str], str]] = {
    "key": (["train.lerning_rate=1"], "lerning_rate"),
    "method's key": (["method.alpa=1"], "alpa"),
    "word": (["data.on_bad=perhaps"], "perhaps"),
    "number": (["train.num_train_epochs=many"], "many"),
    "negative": (["max_steps=-3"], "-3"),
    "precision": (["train.precision=fp31"], "fp31"),
    "rank": (["--r", "0"], "r 0"),
    "rate": (["--learning-rate", "900"], "[learning-rate]"),
    "template": (["--template", "alpacca"], "alpacca"),
    "waiver": (["--allow", "everything"], "everything"),
    "start": (["--init-from", "nowhere/adapter"], "nowhere/adapter"),
    "output": (["--output", "file/run"], "file is a file"),
    "held out": (["--validation", "nothing.jsonl"], "nothing.jsonl"),
    "device": (["model.device=tpu9"], "tpu9"),
}
"""{a mistake: (the words that make it, what its message must hold)}: each stands by itself whatever the others are."""
DATA = {"": "rows.jsonl", "gone": "goood.jsonl", "broken": "broken.jsonl", "strange": "strange.jsonl"}
OTHERS: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "inspect": (
        "inspect",
        [
            ("--model nowhere", "nowhere", "--model {base}"),
            ("--data goood.jsonl", "goood", "--data rows.jsonl"),
            ("--template alpacca", "alpacca", ""),
            ("train.lerning_rate=1", "lerning", ""),
            ("data.on_bad=perhaps", "perhaps", ""),
            ("--html file/page.html", "file", ""),
        ],
    ),
    "compare": (
        "compare",
        [
            ("--model nowhere", "nowhere", "--model {base}"),
            ("--train goood.jsonl", "goood", "--train rows.jsonl"),
            ("--test goood2.jsonl", "goood2", "--test test.jsonl"),
            ("--methods lorra,lora", "lorra", ""),
            ("--output file/c", "file", "--output new"),
            ("--seeds 0", "seeds", ""),
        ],
    ),
    "plan": (
        "plan",
        [
            ("--model nowhere", "nowhere", "--model {base}"),
            ("--method lorra", "lorra", ""),
            ("--memory lots", "lots", ""),
            ("train.lerning_rate=1", "lerning", ""),
        ],
    ),
    "generate": (
        "generate {run}",
        [
            ("--input goood.jsonl", "goood", "--input rows.jsonl"),
            ("--temperature -1", "temperature", ""),
            ("--output file/g", "file", "--output new"),
            ("--max-new-tokens 0", "max", ""),
            ("--dtype fp31", "fp31", ""),
            ("--template alpacca", "alpacca", ""),
        ],
    ),
    "evaluate": (
        "evaluate {run}",
        [
            ("--data goood.jsonl", "goood", "--data rows.jsonl"),
            ("--questions -1", "questions", ""),
            ("--output file/e", "file", "--output new"),
            ("--dtype fp31", "fp31", ""),
        ],
    ),
    "merge": (
        "merge",
        [
            ("nowhere", "nowhere", "{run}"),
            ("--output file/m", "file", "--output new"),
            ("--into gguf", "gguf", ""),
            ("--dtype fp31", "fp31", ""),
        ],
    ),
    "combine": (
        "adapters combine {run}",
        [
            ("nowhere", "nowhere", "{run}"),
            ("--weights one", "one", ""),
            ("--mode sum", "sum", ""),
            ("--output file/c", "file", "--output new"),
        ],
    ),
    "compress": (
        "adapters compress",
        [("nowhere", "nowhere", "{run}"), ("--bits 3", "3", ""), ("--output file/c", "file", "--output new")],
    ),
    "convert": (
        "adapters convert",
        [("nowhere", "nowhere", "{run}"), ("--to onnx", "onnx", ""), ("--output file/c", "file", "--output new")],
    ),
    "playground": (
        "playground export",
        [("file/p", "file", "new"), ("--train 0", "train", ""), ("--test -1", "test", "")],
    ),
    "init": ("init", [("lorra", "lorra", "lora"), ("file/r.yaml", "file", "new.yaml")]),
    "chat": ("chat", [("nowhere", "nowhere", "{run}"), ("--temperature -1", "temperature", "")]),
}
"""{a command that ends at its first mistakes: (its words, (a mistake, what names it, how it is put right))}"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    finished(folder)
    write_rows(folder / "rows.jsonl", 40)
    write_rows(folder / "test.jsonl", 4, split="test")
    (folder / "broken.jsonl").write_text("{no json\n" * 9 + '{"instruction": 3}\n')
    (folder / "strange.jsonl").write_text('{"one": 1, "two": 2}\n' * 9)
    (folder / "file").write_text("a file")
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))


def told(words: list[str], capsys: Any) -> str:
    """The message of a command that is refused, which is at most six lines of a hundred columns."""
    code = main.run(words)
    caught = capsys.readouterr()
    assert code == 2, (words, caught)
    assert "Traceback" not in caught.err and "Errno" not in caught.err, caught.err
    message = caught.err[caught.err.index("halter: ") :].rstrip("\n")
    if "--verbose" not in words:
        assert len(message.split("\n")) <= brief.MOST_LINES, message
        several = "keep this from starting" in message
        assert not several or len(folded(message, 100).split("\n")) <= brief.MOST_LINES, folded(message, 100)
        assert not several or max(map(len, message.split("\n"))) <= 100 * brief.MOST_LINES
        assert message.endswith("]"), message
    return message


def everything(words: list[str], capsys: Any) -> str:
    """All that is told where room is no matter, with the lists that lie in files."""
    message = told([*words, "--verbose"], capsys)
    lists = re.findall(r"all of them are in (\S+\.txt)", message)
    return "\n".join([message, *(Path(name).read_text("utf-8") for name in lists)])


def planted() -> list[tuple[str, str, tuple[str, ...]]]:
    draw = random.Random(5)
    found = []
    for number in range(36):
        command = ("train", "doctor")[number % 2]
        data = draw.choice(list(DATA))
        faults = draw.sample(sorted(FAULTS), draw.randint(1 if data else 2, 5 if data else 6))
        found.append((command, data, tuple(faults)))
    return found


@pytest.mark.parametrize(("command", "data", "faults"), planted())
def test_mistakes_planted_together(command: str, data: str, faults: tuple[str, ...], capsys: Any) -> None:
    words = [command, "--model", BASE, "--data", DATA[data], "--method", "lora"]
    words += [word for fault in faults for word in FAULTS[fault][0]]
    short = told(words, capsys)
    whole = everything(words, capsys)
    assert not [f for f in faults if FAULTS[f][1] not in whole], whole
    ids = set(re.findall(r"\[([a-z][a-z-]+)\]$", whole, re.M))
    assert ids and all(f"[{id}]" in short for id in ids), (ids, short)


@pytest.mark.parametrize("command", OTHERS)
def test_a_command_that_ends_at_its_first_mistakes_names_one_and_the_rest_after_it(command: str, capsys: Any) -> None:
    """Whoever corrects what is named comes to the end of it: each message names a mistake that is still there."""
    lead, mistakes = OTHERS[command]
    for order in (mistakes, random.Random(3).sample(mistakes, len(mistakes))):
        words, left = [lead, *(mistake for mistake, _, _ in order)], list(order)
        while left:
            typed = [word.format(run="run", base=BASE) for part in words for word in part.split()]
            message = told(typed, capsys)
            named = [one for one in left if one[1] in message]
            assert named, (words, message)
            assert not any(Path(new).exists() for new in ("new", "new.yaml")), (
                words
            )  # and the next try finds its place free
            left.remove(named[0])
            words = [named[0][2] if part == named[0][0] else part for part in words]


def test_a_recipe_with_many_mistakes(place: Path, tmp_path: Path, capsys: Any) -> None:
    for count in (1, 2, 5, 13):
        keys = [f"wrong_key_{n}" for n in range(count)]
        file = tmp_path / f"{count}.yaml"
        data = {"model": BASE, "data": {"train": "goood.jsonl"}, "train": dict.fromkeys(keys, 1)}
        file.write_text(json.dumps(data))
        for command in ("train", "doctor"):
            words = [command, str(file), "--template", "alpacca", "--output", "file/run"]
            short, whole = told(words, capsys), everything(words, capsys)
            assert all(f"[{id}]" in short for id in ("recipe", "data-missing", "not-a-folder", "template-unknown"))
            assert all(f"'{key}'" in whole for key in keys) and "did you mean alpaca?" in short, whole


WORDS = st.text(st.sampled_from("abc .:;?,\n"), min_size=1, max_size=200)
REFUSALS = st.builds(
    Refusal,
    st.text("abcdefghij-", min_size=3, max_size=22).filter(lambda id: id.strip("-") == id),
    WORDS,
    where=st.just("") | st.just("a/path/" + "n" * 180) | WORDS,
    expected=st.just("") | WORDS,
    fix=st.text("abc", max_size=150),
    found=st.lists(WORDS, max_size=30),
    waivable=st.booleans(),
    groups=st.just(()) | st.lists(WORDS, min_size=1, max_size=4),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(REFUSALS, min_size=2, max_size=12), st.sampled_from([None, "halter-preflight-20261129-010203.txt"]))
def test_six_lines_whatever_is_wrong(refusals: list[Refusal], kept: str | None) -> None:
    whole = together(refusals)
    text = brief.message(whole, kept, False)
    assert len(folded(f"halter: {text}", 100).split("\n")) <= brief.rows(f"halter: {text}") <= brief.MOST_LINES, text
    assert all(f"[{part.id}]" in text for part in refusals), text
    full = brief.message(whole, kept, True)
    assert all(" ".join(part.fix.split()).rstrip(".") in " ".join(full.split()) for part in refusals)
    assert text == full or "--verbose" in text and (kept is None or kept in text)


def test_the_name_of_the_list_stays_as_it_is_spelt() -> None:
    """Of a sentence only its beginning takes a capital: behind it are names and paths."""
    refusal = Refusal("bad-rows", "rows cannot be used", found=[f"A{n}" for n in range(30)])
    for part in (refusal, together([refusal, Refusal("other", "another mistake")])):
        assert "\nAll of them are in runs/halter-My Run.txt" in brief.message(part, "runs/halter-My Run.txt", True)
