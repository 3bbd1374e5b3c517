"""What a row of an input file asks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers

from halter.data.columns import understand
from halter.data.options import DataOptions
from halter.errors import Refusal
from halter.generation import inputs
from halter.generation.inputs import prompt_of, read_prompts
from halter.generation.prompts import encode_prompt
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi"}, "Hi"),
        ({"prompt": [USER, ANSWER], "chosen": "x"}, [USER]),
        ({"messages": [USER, ANSWER, USER, ANSWER]}, [USER, ANSWER, USER]),
        ({"messages": [ANSWER]}, None),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, [{"role": "user", "content": "Add.", "input": "1 2"}]),
        ({"instruction": "Go.", "input": ""}, [{"role": "user", "content": "Go."}]),
        ({"instruction": "Hi", "system": "Be."}, [{"role": "system", "content": "Be."}, USER]),
        ({"question": "Why?"}, "Why?"),
        ({"question": "Why?", "context": "So."}, [{"role": "user", "content": "Why?", "input": "So."}]),
        ({"question": "Why?", "context": "So.", "answer": None}, [{"role": "user", "content": "Why?", "input": "So."}]),
        (
            {"query": "Why?", "system_prompt": "Be."},
            [{"role": "system", "content": "Be."}, {"role": "user", "content": "Why?"}],
        ),
        ({"question": "Which?", "choices": ["a", "b"], "answer": 1}, "Which?\nA. a\nB. b"),
        ({"text": "Once"}, "Once"),
        ({"story": "Once"}, None),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": ""}]}, [USER]),
        ({"chat": ["Hi", "Hello", "Hi"]}, [USER, ANSWER, USER]),
        ({"turns": ["Hi", "And?"]}, [USER]),
    ],
)
def test_prompt_of(row: dict[str, Any], prompt: Any) -> None:
    assert prompt_of(row) == prompt


def test_every_row_without_a_prompt_is_named(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "Hi"}\n{"story": "x"}\nbroken\n', "utf-8")
    with pytest.raises(Refusal) as refusal:
        read_prompts(str(file))
    assert refusal.value.id == "input-rows"
    assert [o.split(":")[1] for o in refusal.value.found] == ["2", "3"]


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "in.txt"
    file.write_text("Once upon\n\nThe dog\n", "utf-8")
    assert [(a.origin.rsplit(":", 1)[1], a.prompt) for a in read_prompts(str(file))] == [
        ("1", "Once upon"),
        ("3", "The dog"),
    ]
    strange = ["a\u2028b", "c\x0cd \x85 e \x1c \u2029 \v f"]
    file.write_bytes("\r\n".join([*strange, ""]).encode())
    assert [a.prompt for a in read_prompts(str(file))] == strange  # a line ends with a line feed and nothing else
    file.write_text("\n", "utf-8")
    with pytest.raises(Refusal) as refusal:
        read_prompts(str(file))
    assert refusal.value.id == "input-empty"


def talk(*said: tuple[str, str], who: str = "role", what: str = "content") -> list[dict[str, str]]:
    return [{who: speaker, what: words} for speaker, words in said]


CAST = {"customer": "user", "Agent": "assistant", "boss": "system"}
CALL = [("boss", "Be kind."), ("Customer", "Hi"), ("AGENT", "Hello"), ("customer", "Why?"), ("agent", "So.")]
ALIKE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"messages": talk(*CALL)}, {"roles": CAST}),
    ({"messages": json.dumps(talk(*CALL))}, {"roles": CAST}),
    ({"conversations": talk(*CALL, who="from", what="value"), "system_prompt": "unused"}, {"roles": CAST}),
    ({"conversations": talk(*CALL[1:]), "system_prompt": "Be brief."}, {"roles": CAST}),
    ({"dialogue": talk(*CALL)}, {"roles": CAST}),
    ({"log": talk(*CALL), "text": "other"}, {"roles": CAST, "columns": {"messages": "log"}}),
    ({"Messages": talk(("human", "Hi"), ("developer", "Now"), ("bot", "Hello"))}, {}),
    ({"messages": [{"human": "Hi", "assistant": "Hello"}, {"human": "Why?", "assistant": "So."}]}, {}),
    ({"messages": talk(("bot", "So."), ("user", "Hi"))}, {"roles": {"bot": "user", "user": "assistant"}}),
    ({"Instruction": "Add.", "input": "1 2", "output": "3", "history": [["Hi", "Hello"]], "system": "Be."}, {}),
    ({"q": "Add.", "input": "1 2", "a": "3"}, {"columns": {"instruction": "q", "output": "a"}}),
    ({"a": "Add.", "b": "1", "c": "2", "text": "no"}, {"columns": {"instruction": "{a} {b}", "output": "c"}}),
]


@pytest.mark.parametrize(("row", "given"), ALIKE)
def test_a_row_asks_what_it_asked_in_training(row: dict[str, Any], given: dict[str, Any]) -> None:
    """With the same columns and roles: the messages before the last answer, whether that answer is there or not."""
    options = DataOptions(**given)
    trained = understand([row], options, "here").read(row).messages
    assert trained is not None and trained[-1]["role"] == "assistant"
    assert prompt_of(row, options) == trained[:-1]
    unanswered = {key: value for key, value in row.items() if key not in ("output", "a" if "q" in row else "", "c")}
    assert prompt_of(unanswered, options) == trained[:-1]


def test_a_row_template_asks_as_in_training() -> None:
    row = {"question": "Why?", "answer": "So.", "messages": [USER]}
    options = DataOptions(columns={"completion": "answer"}, row_template="Q: {question} A:")
    assert prompt_of(row, options) == understand([row], options, "here").read(row).prompt == "Q: Why? A:"
    assert prompt_of({"prompt": "as it is"}, options) == "as it is"


def test_speakers_that_nobody_knows_are_named_with_what_to_say(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps({"messages": talk(*CALL[1:4])}) + "\n", "utf-8")
    with pytest.raises(Refusal) as refusal:
        read_prompts(str(file))
    assert refusal.value.id == "input-rows" and "unknown role 'Customer' (as user?)" in refusal.value.found[0]
    assert "data.roles='{Customer: user, AGENT: assistant" in str(refusal.value)
    read = read_prompts(str(file), DataOptions(roles=CAST))
    assert [one.prompt for one in read] == [[USER, ANSWER, {"role": "user", "content": "Why?"}]]


def test_tools_of_a_row_are_shown_as_in_training(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}]
    row = {"messages": [USER, ANSWER], "tools": tools}
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(row) + "\n", "utf-8")
    (asked,) = read_prompts(str(file))
    tiny_tokenizers.llama3(tmp_path)
    tokenizer, template = Tokenizer.from_folder(tmp_path, {}), ChatTemplate.builtin("llama-3.1")
    for prefill in ("", "Hel"):
        put = encode_prompt(tokenizer, asked.prompt, template, "2024-07-26", prefill, asked.tools)
        trained = template.encode(tokenizer, [USER, ANSWER], tools=tools, date="2024-07-26")
        whole = tokenizer.decode(trained.tokens, skip_control=False)
        assert "adds" in whole and whole.startswith(tokenizer.decode(put.tokens, skip_control=False))


@pytest.mark.parametrize("inside", ["body", "params"])
def test_a_line_of_a_file_of_batches_asks_what_its_request_does(tmp_path: Path, inside: str) -> None:
    """As OpenAI and Anthropic have them; the answer stands beside the whole line."""
    row = {"custom_id": "a", inside: {"model": "x", "messages": [USER], "tools": [{"type": "function"}]}}
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(row) + "\n", "utf-8")
    (asked,) = read_prompts(str(file))
    assert asked.prompt == [USER] and asked.row == row and asked.tools == [{"type": "function"}]
    assert prompt_of({"id": "a", inside: {"messages": [USER]}}) is None


@pytest.mark.parametrize("name", ["in.txt", "in.jsonl", "in.csv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252"])
def test_prompts_in_another_encoding_are_read_after_what_is_printed(tmp_path: Path, name: str, encoding: str) -> None:
    asked = "Where is it?" if encoding == "utf-16-le" else "Où est la Zoë? Là-bas."  # the first is UTF-8, with zeros
    text = {"txt": asked, "jsonl": json.dumps({"prompt": asked}, ensure_ascii=False), "csv": f"prompt\n{asked}"}
    file = tmp_path / name
    file.write_bytes(f"{text[file.suffix[1:]]}\n".encode(encoding))
    with pytest.raises(Refusal) as refusal:
        read_prompts(str(file))
    command, given = refusal.value.fix.split(" with ")[1].split(" and give ")
    subprocess.run(command, shell=True, check=True)
    assert [one.prompt for one in read_prompts(given)] == [asked]


def test_lines_that_cannot_be_read_are_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b"\n', "utf-8")
    with pytest.raises(Refusal, match="cannot be read") as refusal:
        read_prompts(str(file))
    assert "broken JSON" in refusal.value.found[0] and "columns" not in str(refusal.value)


def test_a_column_spelt_nearly_as_one_that_asks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(inputs, "tell_once", told.append)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"quesiton": "Who?", "input": "a", "instruction": "Say", "prompt_id": 3}\n')
    read_prompts(str(file))
    assert told == [
        f"note: {file}: column quesiton is not asked; did you mean question? --columns '{{question: quesiton}}'"
    ]
    assert inputs.misspelt({"prompt": "a", "prompt_id": 1, "answer": "b", "texts": 1}) == {"texts": "text"}


def test_columns_that_are_named_for_these_rows_and_are_not_there_are_refused(tmp_path: Path) -> None:
    """They were passed over where a row asks something else too; those of a run's training may be."""
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps({"question": "Why?", "other": "So."}) + "\n", "utf-8")
    for given in ({"columns": {"prompt": "quesion"}}, {"row_template": "Q: {quesion}"}):
        with pytest.raises(Refusal, match=r"quesion \(did you mean question\?\)"):
            read_prompts(str(file), DataOptions(**given), named=True)
        assert [one.prompt for one in read_prompts(str(file), DataOptions(**given))] == ["Why?"]
    options = DataOptions(columns={"prompt": "other", "completion": "answer"})
    assert [one.prompt for one in read_prompts(str(file), options, named=True)] == ["So."]
