"""TRL's conversational prompt and completion: the labels are those of TRL's own trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers as tiny
import transformers

from halter.data.load import load_examples
from halter.data.options import DataOptions
from halter.text.tokenizer import Tokenizer

USER, ASSISTANT = "user", "assistant"
ROWS = [
    {"prompt": [(USER, "One?"), (ASSISTANT, "Two."), (USER, "Three?")], "completion": [(ASSISTANT, "Four.")]},
    {"prompt": [(USER, "A?")], "completion": [(ASSISTANT, "B.")]},
]
TRAINED = [37, 78, 84, 81, 13, 524]
"""What SFTTrainer of TRL 1.16 learns of the first row with this tokenizer: the six last labels; the others are -100."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama3(tmp_path_factory.mktemp("llama3"))


def test_the_completion_alone_is_learned(folder: Path, tmp_path: Path) -> None:
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = Tokenizer.from_folder(folder)
    told: list[dict[str, Any]] = [
        {key: [{"role": who, "content": what} for who, what in said] for key, said in row.items()} for row in ROWS
    ]
    file = tmp_path / "trl.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in told), "utf-8")
    found = load_examples(DataOptions(str(file)), tokenizer, tokenizer.chat_template)
    for row, example in zip(told, found.train, strict=True):
        whole = peer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)
        prompt = peer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        assert example.tokens.tolist() == whole
        assert example.supervised.tolist() == [False] * len(prompt) + [True] * (len(whole) - len(prompt))
    first = found.train[0]
    assert first.tokens[first.supervised].tolist() == TRAINED
