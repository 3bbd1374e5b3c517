"""Rows as people have them: read by themselves, the reading told, what is not read named, every hint one that works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers as tiny

from halter.cli import main
from halter.data import told
from halter.data.columns import understand
from halter.data.load import Loaded, load_examples
from halter.data.options import DataOptions
from halter.data.row_files import Fault
from halter.data.sources import read_source
from halter.errors import Refusal
from halter.files import yaml12
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

ALPACA = ChatTemplate.builtin("alpaca")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(tiny.llama3(tmp_path_factory.mktemp("llama3")))


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def load(tokenizer: Tokenizer, path: str, template: ChatTemplate = ALPACA, **options: Any) -> Loaded:
    options = {"max_length": 100_000, "cache": False} | options
    return load_examples(DataOptions(train=path, **options), tokenizer, template)


# (row, what is asked, what is learned, what is not read): the data set or the habit it comes from
EVERYONES: dict[str, tuple[dict[str, Any], str, str, list[str]]] = {
    "prompt, response": ({"prompt": "Q", "response": "A"}, "Q", "A", []),
    "question, answer": ({"question": "Q", "answer": "A"}, "Q", "A", []),
    "dolly": ({"instruction": "Q", "context": "C", "response": "A", "category": "qa"}, "Q|C", "A", ["category"]),
    "orca": ({"id": "1", "system_prompt": "S", "question": "Q", "response": "A"}, "S|Q", "A", ["id"]),
    "metamath": ({"query": "Q", "response": "A", "type": "x"}, "Q", "A", ["type"]),
    "input, output": ({"input": "Q", "output": "A"}, "Q", "A", []),
    "any case": ({"Instruction": "Q", "Input": "C", "Output": "A"}, "Q|C", "A", []),
    "any case and blanks": ({"System Prompt": "S", "Question": "Q", "Best Answer": "A"}, "S|Q", "A", []),
    "flan": ({"inputs": "Q", "targets": "A", "task": "t"}, "Q", "A", ["task"]),
    "math": ({"problem": "Q", "solution": "A", "level": "5"}, "Q", "A", ["level"]),
    "gsm8k": ({"question": "Q", "answer": "A #### 3"}, "Q", "A #### 3", []),
    "numbers as answers": ({"question": "Q", "answer": 18}, "Q", "18", []),
    "boolq": ({"question": "Q", "passage": "C", "answer": True}, "Q|C", "true", []),
    "conversation": (
        {"conversation": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        "Q",
        "A",
        [],
    ),
    "exchanges": ({"conversation": [{"human": "Q", "assistant": "A"}], "topic": 1}, "Q", "A", ["topic"]),
    "texts in turn": ({"dialog": ["Q", "A"]}, "Q", "A", []),
    "mmlu": (
        {"subject": "s", "question": "Q", "choices": ["x", "y"], "answer": "B"},
        "Q\nA. x\nB. y",
        "B",
        ["subject"],
    ),
    "mmlu of the hub": ({"question": "Q", "choices": ["x", "y"], "answer": 1}, "Q\nA. x\nB. y", "B", []),
    "medqa": (
        {"question": "Q", "options": {"A": "x", "B": "y"}, "answer": "y", "answer_idx": "B"},
        "Q\nA. x\nB. y",
        "B",
        ["answer"],
    ),
    "arc of the hub": (
        {"id": "1", "question": "Q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"},
        "Q\nA. x\nB. y",
        "A",
        ["id"],
    ),
    "pubmedqa": (
        {"question": "Q", "contexts": ["c", "d"], "long_answer": "L", "final_decision": "yes"},
        "Q|c\nd",
        "yes",
        ["long_answer"],
    ),
    "scienceqa": (
        {"question": "Q", "hint": "H", "choices": ["x", "y"], "answer": 0, "lecture": "L"},
        "H\nQ\nA. x\nB. y",
        "A",
        ["lecture"],
    ),
    "xcopa": (
        {"premise": "P", "choice1": "x", "choice2": "y", "question": "effect", "label": 1},
        "P\nWhat happened as a result?\nA. x\nB. y",
        "B",
        [],
    ),
    "social iqa": (
        {"context": "C", "question": "Q", "answerA": "x", "answerB": "y", "answerC": "z", "label": "3"},
        "C\nQ\nA. x\nB. y\nC. z",
        "C",
        [],
    ),
    "dialogsum": ({"fname": "f", "dialogue": "D", "summary": "A"}, "Summarise this dialogue.|D", "A", ["fname"]),
    "cnn": ({"article": "D", "highlights": "A"}, "Summarise this article.|D", "A", []),
    "legalbench": ({"instruction": "Q", "text": "C", "label": "Yes"}, "Q|C", "Yes", []),
    "task columns before text": ({"question": "Q", "answer": "A", "text": "rendered"}, "Q|rendered", "A", []),
    "alpaca with more": (
        {"instruction": "Q", "output": "A", "text": "rendered", "answer": "x"},
        "Q",
        "A",
        ["text", "answer"],
    ),
    "hh transcript by data.columns": (
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q"},
        "Q",
        "A",
        ["rejected"],
    ),
}


@pytest.mark.parametrize("name", EVERYONES)
def test_what_everyone_has_is_read_by_itself(name: str) -> None:
    row, asked, learned, unread = EVERYONES[name]
    columns = {"messages": "chosen"} if "chosen" in row else {}
    reader = understand([row], DataOptions(train="x", columns=columns), "x")
    messages = reader.read(row).messages or []
    before = [message["content"] for message in messages[:-1]]
    said = [text for m, text in zip(messages, before) for text in (text, m.get("input")) if text]
    assert ("|".join(said), messages[-1]["content"]) == (asked, learned)
    assert reader.ignored(row) == unread
    assert "learned: " in reader.told and not set(unread) & set(re.findall(r"\w+", reader.told))


def test_each_instance_is_a_row(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"id": "a", "instruction": "Q", "instances": [{"input": "", "output": "A"}, {"input": "C", "output": "B"}]}]
    found = load(tokenizer, write(tmp_path / "a.jsonl", rows))
    assert len(found.train) == 2 and "### Input:\nC" in tokenizer.decode(found.train[1].tokens.tolist())


def test_the_reading_and_what_is_not_read_are_told_for_every_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"question": "Q", "answer": "A", "lang": "en"}])
    write(tmp_path / "b.jsonl", [{"question": "Q2", "answer": "A", "lang": "en"}])
    write(tmp_path / "c.jsonl", [{"text": "T"}] + [{"text": "T2", "url": "late"}])
    report = load(tokenizer, str(tmp_path)).report
    assert told.readings(report.readings, report.ignored) == [
        "a.jsonl, b.jsonl: asked: question; learned: answer; not read: lang",
        "c.jsonl: plain text, no chat template; learned: all of text; not read: url",
    ]


# Answers that people marked as bad


def test_answers_marked_as_bad_are_not_learned_unless_asked_for(tokenizer: Tokenizer, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    for mark in ("label", "kto_tag"):
        rows = [{"messages": [talk[0], {**talk[1], "content": f"A{n}"}], mark: n % 2 == 0} for n in range(10)]
        path = write(tmp_path / f"{mark}.jsonl", rows)
        found = load(tokenizer, path)
        assert len(found.train) == 5 and found.report.notes["rejected_dropped"] == 5
        assert "5 marked as bad answers left out" in str(found.report)
        assert all(int(found.train.origin(n).rsplit(":", 1)[1]) % 2 for n in range(5))
        (sentence,) = told.notes(found.report, aside=False)
        assert sentence.startswith("5 rows are left out") and "data.on_rejected=learn" in sentence
        learned = load(tokenizer, path, on_rejected="learn")
        assert len(learned.train) == 10 and learned.report.notes["rejected_learned"] == 5
        with pytest.raises(Refusal, match=f"marked as bad .{mark}: false.: 5 rows"):
            load(tokenizer, path, on_rejected="stop")
    csv = tmp_path / "kto.csv"
    csv.write_text("prompt,completion,label\nQ,A,True\nQ,B,False\n", "utf-8")
    assert len(load(tokenizer, str(csv)).train) == 1
    none = write(tmp_path / "none.jsonl", [{"prompt": "Q", "completion": "A", "label": False}])
    with pytest.raises(Refusal, match="1 of 1 rows are marked as bad answers.*data.on_rejected=learn"):
        load(tokenizer, none)
    asked = write(tmp_path / "asked.jsonl", [{"question": "Q", "label": False}, {"question": "Q2", "label": True}])
    own = load(tokenizer, asked, columns={"prompt": "question", "completion": "{label}"})
    assert len(own.train) == 2, "a label that is learned is no mark"


# Ids


def test_rows_may_repeat_an_id_and_the_hint_keeps_them(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [
        {"id": n % 5, "lang": lang, "question": f"{lang} {n}", "answer": str(n)} for lang in "abc" for n in range(5)
    ]
    path = write(tmp_path / "mgsm.jsonl", rows)
    found = load(tokenizer, path)
    assert len(found.train) == 15 and found.report.notes == {"repeated_ids": 10}
    with pytest.raises(Refusal) as caught:
        load(tokenizer, path, id_column="id")
    assert "data.id_column=null" in caught.value.fix and caught.value.groups == (f"duplicate id: 10 rows, {path}:6-15",)
    assert len(load(tokenizer, path, id_column=None).train) == 15, "the hint, followed"


# Faults, told together


def test_equal_faults_are_told_together_in_six_lines(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rows: list[Any] = [{"instruction": "Q", "output": "A"} for _ in range(20)]
    path = write(tmp_path / "mixed.jsonl", rows + [{"messages": talk} for _ in range(20)])
    with pytest.raises(Refusal) as caught:
        load(tokenizer, path)
    (line,) = caught.value.groups
    assert line == f"missing key instruction, output (has messages): 20 rows, {path}:21-40"
    assert len(caught.value.found) == 20
    many = [
        *rows,
        {},
        *({"instruction": "Q", "output": n % 3 and " "} for n in range(9)),
        {"instruction": 1, "output": "A"},
    ]
    with pytest.raises(Refusal) as caught:
        load(tokenizer, write(tmp_path / "many.jsonl", many))
    assert main._report(caught.value, debug=False) == 2
    assert len(capsys.readouterr().err.strip().split("\n")) <= 6
    assert "data.on_bad=skip" in str(caught.value)


def test_places_of_faults() -> None:
    faults = [Fault(f"a.jsonl:{n}", f"empty answer in message {n}") for n in (1, 2, 3, 7, 9, 12)]
    assert told.grouped(faults) == ["empty answer: 6 rows, a.jsonl:1-3, 7, 9, ..."]
    assert told.grouped([Fault("a.json[3]", "x"), Fault("b.txt", "y")]) == ["x: 1 row, a.json:3", "y: 1 row, b.txt"]


# Hints


def follow(fix: str) -> dict[str, str]:
    """The columns that a hint names, as the command line reads them."""
    found = re.search(r"data\.columns='(\{.*?\})'", fix)
    assert found, fix
    return dict(yaml12.parse(f"value: {found[1]}", source="x").data["value"])


PAIRS = {
    "prompt": {"prompt": "Q", "chosen": " A", "rejected": "B"},
    "question": {"question": "Q", "chosen": "A", "rejected": "B"},
    "hh": {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
    "llama-factory": {
        "conversations": [{"from": "human", "value": "Q"}],
        "chosen": {"from": "gpt", "value": "A"},
        "rejected": {"from": "gpt", "value": "B"},
    },
    "trl": {
        "prompt": [{"role": "user", "content": "Q"}],
        "chosen": [{"role": "assistant", "content": "A"}],
        "rejected": [{"role": "assistant", "content": "B"}],
    },
    "trl, whole": {
        "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "B"}],
    },
    "bare": {"chosen": "A", "rejected": "B", "Score Difference": 3},
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_advice_for_pairs_learns_the_chosen_answer(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [PAIRS[name]])
    with pytest.raises(Refusal) as caught:
        load(tokenizer, path)
    assert caught.value.id == "data-preference"
    (example,) = load(tokenizer, path, columns=follow(caught.value.fix)).train
    learned = tokenizer.decode(example.tokens[example.supervised].tolist()).strip()
    assert learned == "A" and (name == "bare" or "Q" in tokenizer.decode(example.tokens.tolist()))


@pytest.mark.parametrize(
    "row",
    [
        {"id": "7", "my question": "Q", "my answer": "A"},
        {"sentence_en": "Q", "sentence_fr": "A", "lang": "fr"},
        {"headline": "Q", "body text": "A", "url": "u"},
        {"only": "A", "n": 3},
    ],
)
def test_the_hint_for_unknown_columns_is_made_of_them_and_works(
    row: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = write(tmp_path / "strange.jsonl", [row])
    with pytest.raises(Refusal) as caught:
        load(tokenizer, path)
    assert caught.value.id == "data-format"
    (example,) = load(tokenizer, path, columns=follow(caught.value.fix)).train
    assert tokenizer.decode(example.tokens[example.supervised].tolist()).strip() == "A"


@pytest.mark.parametrize(
    "row",
    [
        {"frage": "Q{n}", "antwort": "A{n}", "quelle": "faq"},
        {"pregunta": "Q{n}", "respuesta": "A{n}", "tema": "x"},
        {"回答": "A{n}", "问题": "Q{n}", "来源": "x"},
        {"domanda": "Q{n}", "zzz": "A{n}", "www": "the same"},
        {"aaa": "Q{n}", "bbb": "A{n}", "ccc": "the same"},
        {"aaa": "Q{n}", "bbb": "A{n}", "ccc": "doc-{n}", "Fonte": "{n} wikipedia"},
    ],
)
def test_no_column_that_says_the_same_everywhere_is_proposed(
    row: dict[str, str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Nor ids and sources; and the words of a few other languages are known."""
    rows = [{key: text.format(n=n) for key, text in row.items()} for n in range(9)]
    rows = [{k: v.replace("Q", "is it ").replace("A", "so it is ") for k, v in one.items()} for one in rows]
    path = write(tmp_path / "strange.jsonl", rows)
    with pytest.raises(Refusal) as caught:
        load(tokenizer, path)
    examples = load(tokenizer, path, columns=follow(caught.value.fix)).train
    learned = {tokenizer.decode(one.tokens[one.supervised].tolist()).strip() for one in examples}
    assert len(learned) == 9 and all(text.startswith("so it is") for text in learned), learned


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"aa": "x {n}", "bb": "y {n}", "cc": "z {n}"}, "{instruction: ASKED, output: ANSWER}', in capitals one of aa"),
        (
            {"frage": "x {n}", "bb": "y {n}", "cc": "z {n}"},
            "{instruction: frage, output: ANSWER}', in capitals one of bb",
        ),
    ],
)
def test_what_nobody_can_guess_is_left_open(
    row: dict[str, str], told: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = write(tmp_path / "s.jsonl", [{k: v.format(n=n) for k, v in row.items()} for n in range(4)])
    with pytest.raises(Refusal) as caught:
        load(tokenizer, path)
    assert told in caught.value.fix


def test_answers_in_lists_are_told_and_the_command_takes_the_first(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": "Is it?", "answers": ["up", "not down"]}] * 2
    path = write(tmp_path / "FILE.jsonl", rows)
    with pytest.raises(Refusal) as caught:
        load(tokenizer, path)
    assert "answers holds lists, and one text is learned" in caught.value.fix
    command = re.search(r"python -c .* > first.jsonl", caught.value.fix)
    assert command is not None
    subprocess.run(command[0].replace("python", sys.executable, 1), shell=True, check=True)
    example = load(tokenizer, str(tmp_path / "first.jsonl")).train[0]
    assert tokenizer.decode(example.tokens[example.supervised].tolist()).strip() == "up"
    with pytest.raises(Refusal) as caught:
        load(tokenizer, path, columns={"instruction": "question", "output": "answers"})
    assert "output holds lists, and one text is learned" in caught.value.fix


def test_a_column_that_is_not_there_is_named_with_the_nearest(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"qestion": "Q", "answer": "A"}])
    with pytest.raises(Refusal, match=r"question \(did you mean qestion\?\)"):
        load(tokenizer, path, columns={"instruction": "question", "output": "answer"})


# Real files

REFUSED = {
    "dpo_en_demo": "data-preference",
    "hh_harmless_train": "data-preference",
    "hh_harmless_test": "data-preference",
    "tinystories_pairs_train": "data-preference",
    "tinystories_pairs_test": "data-preference",
    "mt_bench_questions": "data-format",
    "mt_bench_reference_gpt4": "data-format",
}
PLAIN = {
    "c4_demo",
    "tinystories_test",
    "tinystories_val",
    "winobias",
    "tinyshakespeare",
    "wikitext2_valid",
    "wikitext2_test",
    "tinystories_train_head",
    "winobias_female_occupations",
    "winobias_male_occupations",
}
FOLDERS = ("instruct", "chat", "preference", "eval", "text")


def test_every_real_file_is_read_or_refused_with_a_way_out(shared: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """20 rows of each of the 53 files; which are plain text, which are refused, and nothing between."""
    files = sorted(path for folder in FOLDERS for path in (shared / "data" / folder).iterdir() if path.is_file())
    assert len(files) == 53
    plain, refused = set(), {}
    for file in files:
        rows = [one[1] for one in islice(read_source(str(file)), 20) if not isinstance(one, Fault)]
        path = write(tmp_path / f"{file.stem}.jsonl", rows)
        try:
            found = load(tokenizer, path, ChatTemplate.builtin("llama-3"), on_bad="skip")
        except Refusal as refusal:
            refused[file.stem] = refusal.id
            if refusal.id == "data-preference":
                chosen = load(tokenizer, path, columns=follow(refusal.fix)).train
                assert len(chosen) == 20, file
            continue
        taken = len(rows) - found.report.notes["rejected_dropped"]
        assert len(found.train) >= taken - 1, (file, found.report.faults)
        (reading,) = found.report.readings.values()
        if reading.startswith("plain text"):
            plain.add(file.stem)
    assert (plain, refused) == (PLAIN, REFUSED)


def test_what_is_learned_is_told_as_train_on_has_it() -> None:
    reading = "asked: instruction, input; learned: output; not read: id"
    assert told.as_learned(reading, "responses") == reading
    assert "input; learned: every token, as data.train_on says; not" in told.as_learned(reading, "all")
    assert "learned: the last answer" in told.as_learned(reading, "last_response")
