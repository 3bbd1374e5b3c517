"""What a row of an input file asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from halter.errors import Refusal
from halter.generation.inputs import prompt_of, read_prompts

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
        ({"question": "Why?", "text": "no"}, "Why?"),
        ({"text": "Once"}, "Once"),
        ({"story": "Once"}, None),
    ],
)  # fmt: skip
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
