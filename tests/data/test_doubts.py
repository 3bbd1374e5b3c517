"""What is seldom meant in rows that can be used is told by every command; of rows as they are nothing is said."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers as tiny
from own_data import Data, Own

from halter.cli import main
from halter.data import again, told
from halter.data.load import load_examples
from halter.data.options import DataOptions, Source
from halter.errors import Refusal
from halter.evaluation import questions
from halter.evaluation.texts import token_f1
from halter.generation.prompts import told_of_marks
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

ALPACA = ChatTemplate.builtin("alpaca")
STORIES = [
    {"instruction": f"Tell me a story about a {who}.", "output": f"Once there was a {who} named {name}."}
    for who, name in zip(("cat", "dog", "bird", "fish", "girl", "tree", "boy", "frog"), "ABCDEFGH")
]
BOTH = [(row["instruction"], row["output"]) for row in STORIES]
TURNS = [
    {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]} for ask, answer in BOTH
]
SHARED = [
    {"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]} for ask, answer in BOTH
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(tiny.llama3(tmp_path_factory.mktemp("llama3")))


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def said(tokenizer: Tokenizer, path: str, aside: bool = False, **options: Any) -> list[str]:
    options = {"max_length": 100_000, "cache": False} | options
    return told.notes(load_examples(DataOptions(train=path, **options), tokenizer, ALPACA).report, aside)


def wrapped(form: str) -> list[dict[str, str]]:
    return [{**row, "instruction": form.format(row["instruction"])} for row in STORIES]


MARKED = [
    "### Instruction:\n{}\n\n### Response:\n",
    "[INST] {} [/INST]",
    "<<SYS>>\nBe kind.\n<</SYS>>\n\n{}",
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
    "<|im_start|>user\n{}<|im_end|>",
    "<|user|>\n{}",
    "<|header_start|>user<|header_end|>\n\n{}",
    "<start_of_turn>user\n{}",
    "USER: {} ASSISTANT:",
]


@pytest.mark.parametrize("form", MARKED)
def test_rows_that_hold_a_templates_marks(form: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (line,) = said(tokenizer, write(tmp_path / "a.jsonl", wrapped(form)))
    assert line.startswith("8 rows hold the marks of a chat template already")
    pairs = [{"prompt": row["instruction"], "completion": row["output"]} for row in wrapped(form)]
    assert said(tokenizer, write(tmp_path / "b.jsonl", pairs)) == [], "no template is put around these"


@pytest.mark.parametrize("end", ["</s>", "</s> <|im_end|>\n", "<|eot_id|>", "<|endoftext|>", tiny.EOT])
def test_answers_that_end_in_the_name_of_an_end(end: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (line,) = said(tokenizer, write(tmp_path / "a.jsonl", [{**row, "output": row["output"] + end} for row in STORIES]))
    assert line.startswith("8 answers end in the name of an end")
    within = [{**row, "output": f"The tag {end} ends it."} for row in STORIES]
    assert said(tokenizer, write(tmp_path / "b.jsonl", within)) == []


@pytest.mark.parametrize(("rows", "key"), [(TURNS, "messages"), (SHARED, "conversations")])
def test_conversations_whose_roles_are_swapped(
    rows: list[dict[str, Any]], key: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    swap = {"user": "assistant", "assistant": "user", "human": "gpt", "gpt": "human"}
    which = "role" if key == "messages" else "from"
    wrong = [{key: [{**turn, which: swap[turn[which]]} for turn in row[key]]} for row in rows]
    path = write(tmp_path / "a.jsonl", wrong)
    (line,) = [one for one in said(tokenizer, path) if "swapped" in one]
    assert line.startswith("in 8 conversations the assistant speaks first and the user last")
    # The hint, as it is printed, makes of these rows what was meant.
    pairs = dict(part.split(": ") for part in line.split("data.roles='{")[1].split("}")[0].split(", "))
    right, put_right = (
        load_examples(DataOptions(train=file, cache=False, roles=roles), tokenizer, ALPACA)  # type: ignore[arg-type]
        for file, roles in ((write(tmp_path / "b.jsonl", rows), {}), (path, pairs))
    )
    assert (right.train.digests() == put_right.train.digests()).all()
    assert said(tokenizer, path, roles=pairs) == []


def test_an_answer_that_is_the_question(tokenizer: Tokenizer, tmp_path: Path) -> None:
    echo = [{"instruction": row["output"], "output": row["output"]} for row in STORIES]
    (line,) = said(tokenizer, write(tmp_path / "a.jsonl", echo))
    assert line.startswith("in 8 rows the answer is the question word for word")
    assert said(tokenizer, write(tmp_path / "b.jsonl", [*echo[:3], *STORIES[3:]])) == [], "some need no change"


def test_one_question_with_several_answers_is_a_note(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"instruction": "Capital of France?", "output": city} for city in ("Paris", "London", "Rome", "Rome")]
    path = write(tmp_path / "a.jsonl", rows + STORIES)
    assert said(tokenizer, path) == []
    (line,) = said(tokenizer, path, aside=True)
    assert line == "4 rows ask what another row asks and want another answer (1 questions)"
    two = write(
        tmp_path / "b.jsonl", [{"instruction": "Yes?", "output": "yes"}, {"instruction": "Yes?", "output": "no"}]
    )
    assert said(tokenizer, two, aside=True) == [
        "2 rows ask what another row asks and want another answer (1 questions)"
    ]


def test_rows_as_they_are_say_nothing(data: Data, own: Own, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(own.base)
    for path in (data.train, data.alpaca, data.identity, data.seed_tasks, data.sums, data.stories):
        assert said(tokenizer, str(path), on_bad="skip") == [], path
    for rows in (STORIES, TURNS, SHARED):
        assert said(tokenizer, write(tmp_path / "a.jsonl", rows)) == []


# <unk>

UNKNOWN = [{"instruction": "Tell me.", "output": text} for text in ("Жил был кот", "你好世界", "a 你 b", "plain words")]


def test_answers_that_the_tokenizer_cannot_write_are_counted(own: Own, tmp_path: Path) -> None:
    letters = Tokenizer.from_folder(own.letters)
    path = write(tmp_path / "a.jsonl", UNKNOWN)
    loaded = load_examples(DataOptions(train=path, cache=False), letters, ALPACA)
    by_hand = [int((row.tokens[row.supervised] == letters.unk_id).sum()) for row in loaded.train]
    (line,) = [one for one in told.notes(loaded.report, False) if "<unk>" in one]
    assert line.startswith(f"{sum(by_hand)} tokens of answers, in 3 rows, are <unk>") and sum(map(bool, by_hand)) == 3
    # One rare character in a large file is nothing to speak of.
    many = write(tmp_path / "b.jsonl", [*[{"instruction": "q", "output": "plain words"}] * 300, UNKNOWN[2]])
    assert not any("<unk>" in one for one in said(letters, many))
    bytes_too = Tokenizer.from_folder(own.base)
    assert said(bytes_too, path) == [], "a tokenizer that falls back to bytes knows everything"


def test_what_is_wanted_is_the_files_own_text(own: Own, tmp_path: Path) -> None:
    letters = Tokenizer.from_folder(own.letters)
    options = DataOptions(train=write(tmp_path / "a.jsonl", UNKNOWN), cache=False)
    rows = load_examples(options, letters, ALPACA).train
    texts = again.answers(options, {row.origin for row in rows if not questions.knows_all(row, letters)})
    assert list(texts.values()) == [row["output"] for row in UNKNOWN[:3]]
    wanted = []
    for row, meant in zip(rows, UNKNOWN, strict=True):
        asked = questions.question(replace(row, answer=texts.get(row.origin, "")), letters)
        assert asked is not None and asked.wanted.split() == meant["output"].split()
        blind = questions.question(row, letters)
        assert blind is not None and (questions.REPLACED in blind.wanted) == (row.origin in texts)
        assert row.origin not in texts or blind.wanted.split() != letters.decode(row.tokens[row.supervised]).split()
        wanted.append(blind.wanted)
    # A text that these tokens cannot come of is not believed.
    other = questions.question(replace(rows[2], answer="a 你 c"), letters)
    assert other is not None and other.wanted == wanted[2]
    for answer in ("", " ", "   "):
        assert token_f1(answer, wanted[0]) == token_f1(answer, "😀") == 0.0
    assert token_f1("😀", "🎉") == 0.0 and token_f1("😀!", "😀") == 1.0


def test_evaluate_gives_no_marks_for_a_blank(own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", [{"instruction": "Tell me.", "output": text} for text in ("Жил", "你好世界")])
    args = ["evaluate", str(own.letters), "--data", path, "--template", "alpaca", "--max-new-tokens", "1"]
    assert main.run([*args, "--output", str(tmp_path / "scores")]) == 0
    assert "are <unk>" in "".join(capsys.readouterr())
    lines = [json.loads(line) for line in (tmp_path / "scores" / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert [line["wanted"] for line in lines] == ["Жил", "你好世界"]
    report = json.loads((tmp_path / "scores" / "report.json").read_text("utf-8"))
    assert report["base"]["exact_match"] == report["base"]["token_f1"] == 0.0


def test_train_doctor_and_inspect_say_it_alike(own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", wrapped("[INST] {} [/INST]"))
    args = ["--model", str(own.base), "--data", path, "--data.template", "alpaca"]
    line = "8 rows hold the marks of a chat template already"
    for verb in ("train", "doctor", "inspect"):
        more = ["--max-steps", "1", "--method", "lora", "--output", str(tmp_path / "run")] * (verb == "train")
        assert main.run([verb, *args, *more]) == 0
        assert line in " ".join("".join(capsys.readouterr()).split()), verb


# What is read, named and asked


def test_a_gap_in_a_table_is_no_answer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As in JSON: what pandas writes as NaN is read as NaN again."""
    for suffix, sign in (("csv", ","), ("tsv", "\t")):
        for gap in ("NaN", "nan"):
            rows = [f"q{n}{sign}{gap if n % 2 else 'An answer'}" for n in range(8)]
            (tmp_path / f"a.{suffix}").write_text("\n".join([f"instruction{sign}output", *rows]), "utf-8")
            with pytest.raises(Refusal, match="4 of 8 rows cannot be used.*output is NaN: 4 rows"):
                said(tokenizer, str(tmp_path / f"a.{suffix}"))
    inputs = tmp_path / "b.csv"
    inputs.write_text("instruction,input,output\nq,NaN,A nan is bread\n", "utf-8")
    beside = write(tmp_path / "b.jsonl", [{"instruction": "q", "input": float("nan"), "output": "A nan is bread"}])
    outcomes = []
    for path in (str(inputs), beside):
        try:
            outcomes.append(str(said(tokenizer, path)))
        except Refusal as refusal:
            outcomes.append(refusal.groups[0].split(":")[0])
    assert outcomes[0] == outcomes[1], "a table and JSON are read alike"


def test_one_column_for_both_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"q": f"ask {n}", "a": f"answer {n}"} for n in range(4)])
    for columns in ({"instruction": "a", "output": "a"}, {"prompt": "a", "completion": "{a}"}):
        with pytest.raises(Refusal, match="gives one column, a, both for what is asked"):
            said(tokenizer, path, columns=columns)
    for columns in ({"instruction": "q", "output": "a"}, {"instruction": "Repeat: {a}", "output": "a"}):
        assert said(tokenizer, path, columns=columns) == []


def test_rows_without_answers_are_not_told_to_be_learned(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for row in ({"instruction": "Tell me."}, {"question": "Who?", "context": "A house."}):
        with pytest.raises(Refusal) as caught:
            said(tokenizer, write(tmp_path / "a.jsonl", [row] * 3))
        assert "no column what is answered" in caught.value.fix and "data.columns" not in caught.value.fix


def test_the_way_out_of_pairs_keeps_the_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "Q?", "chosen": "Yes.", "rejected": "no"}] * 2)
    with pytest.raises(Refusal) as caught:
        said(tokenizer, path, template="alpaca")
    pairs = dict(part.split(": ") for part in caught.value.fix.split("data.columns='{")[1].split("}")[0].split(", "))
    report = load_examples(DataOptions(train=path, template="alpaca", columns=pairs), tokenizer, ALPACA).report
    assert report.as_they_stand == 0, "the hint, as it is printed, learns in the template"
    with pytest.raises(Refusal, match="prompt: prompt, completion: chosen"):
        said(tokenizer, path)


def test_what_to_correct_comes_before_skipping(tokenizer: Tokenizer, tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("instruction,output\n" + "Tell me.,Once, there was\nTell me.,Once\n" * 4, "utf-8")
    mixed = [{"prompt": "Q", "completion": "A"}, {"instruction": "Q", "output": "A"}] * 4
    ways = {
        str(table): "put fields that hold commas into double quotes",
        write(tmp_path / "b.jsonl", mixed): "put the rows of each layout into a file of their own",
    }
    for path, way in ways.items():
        with pytest.raises(Refusal) as caught:
            said(tokenizer, path)
        assert caught.value.fix.startswith(way) and caught.value.fix.index(way) < caught.value.fix.index("skip")
    typos = write(tmp_path / "c.jsonl", [*STORIES, {"instruction": "Q", "ouptut": "A"}])
    with pytest.raises(Refusal) as caught:
        said(tokenizer, typos)
    assert "layout" not in caught.value.fix
    parts = [write(tmp_path / f"{n}.jsonl", mixed[n::2]) for n in range(2)]
    both = DataOptions(train=tuple(Source(part) for part in parts), cache=False)
    assert load_examples(both, tokenizer, ALPACA).report.kept == 8, "the way out, gone"


def test_a_prompt_that_holds_marks_is_told(own: Own, capsys: pytest.CaptureFixture[str]) -> None:
    asked = "### Instruction: Tell me a story ### Response:"
    for template, marked in (("alpaca", True), ("raw", False)):
        args = ["generate", str(own.base), "--template", template, "--max-new-tokens", "1", "--prompt"]
        assert main.run([*args, asked]) == 0
        assert ("the prompt holds the marks of a chat template" in " ".join(capsys.readouterr().err.split())) == marked
        assert main.run([*args, "Tell me a story"]) == 0
        assert "marks" not in capsys.readouterr().err
    assert told_of_marks([[{"role": "user", "content": asked}], "[INST] hi", [1, 2]], None).startswith("note: 1 of 3")


def test_conversations_that_begin_with_the_assistant_are_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    greeting = {"role": "assistant", "content": "Hello, what shall I write?"}
    path = write(tmp_path / "a.jsonl", [{"messages": [greeting, *row["messages"]]} for row in TURNS])
    (line,) = said(tokenizer, path, aside=True)
    assert line == "8 conversations begin with the assistant: that turn is learned without a prompt"
    assert said(tokenizer, path, aside=True, train_on="last_response") == [] == said(tokenizer, path)


def test_plain_text_that_holds_a_templates_marks_is_told_by_its_name(own: Own, tmp_path: Path, capsys: Any) -> None:
    marked = [{"text": f"<s>[INST] {ask} [/INST] {answer} </s>"} for ask, answer in BOTH]
    labels = [{"text": ask, "label": answer, "id": "a"} for ask, answer in BOTH]
    for rows, line in (
        (marked, "8 hold llama-2's marks ([INST], <<SYS>>, <s>), which are text there"),
        (labels, "perhaps data.columns='{instruction: text, output: label}'"),
    ):
        words = ["inspect", "--model", str(own.base), "--data", write(tmp_path / "a.jsonl", rows)]
        assert main.run([*words, "--template", "alpaca"]) == 0
        captured = capsys.readouterr()
        assert line in captured.out + captured.err
    columns = line.partition("perhaps ")[2].replace("'", "")
    assert main.run([*words, "--template", "alpaca", columns]) == 0


SPELT = [{"instruction": row["instruction"], "output": row["output"] + r"\n\nThe end."} for row in STORIES]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_new_lines_that_are_spelt_out_are_turned_as_is_said(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["instruction", "output"], *(row.values() for row in SPELT)])
    else:
        plain = r"\n\n".join(row["output"] for row in SPELT)
        path.write_text(
            plain
            if kind == "txt"
            else json.dumps(SPELT)
            if kind == "json"
            else "".join(json.dumps(r) + "\n" for r in SPELT)
        )
    (line,) = said(tokenizer, str(path))
    assert re.match(r"[18] rows hold new lines as a backslash and an n each", line), line
    command, _, name = line.partition("two letters: ")[2].partition(", and give ")
    command = command.replace("python", sys.executable, 1) if kind == "csv" else command
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    new = tmp_path / name
    assert said(tokenizer, str(new)) == []
    if kind == "txt":
        assert new.read_text() == path.read_text().replace(r"\n", "\n")
        return
    right = write(tmp_path / "right.jsonl", [{**row, "output": row["output"].replace(r"\n", "\n")} for row in SPELT])
    made, wanted = (
        load_examples(DataOptions(train=str(file), cache=False), tokenizer, ALPACA).train for file in (new, right)
    )
    assert (made.digests() == wanted.digests()).all()


@pytest.mark.parametrize("text", [r"so \nu is \nabla f", r'print("a\n")', r'{"a": "b\nC"}', "a\nb \\n C"])
def test_a_backslash_and_an_n_that_are_meant_are_not_told(text: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{**row, "output": text + f" {n}"} for n, row in enumerate(STORIES)]
    assert said(tokenizer, write(tmp_path / "a.jsonl", rows)) == []
