"""The built-in templates chatml, zephyr, llama-3.1, llama-3.2-vision and llama-4 (more in test_llama4_texts.py): their
published sequences, and transformers' tokens."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers as tiny
import transformers
from own_data import Own
from tokenizers import AddedToken

from halter.errors import Refusal
from halter.text.chat.conversations import BUILTIN, ChatTemplate
from halter.text.tokenizer import Tokenizer

Messages = list[dict[str, Any]]
SYSTEM, ASK = {"role": "system", "content": "Be kind."}, {"role": "user", "content": " Once?"}
TELL, MORE = {"role": "assistant", "content": "A girl."}, {"role": "user", "content": "Then?"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CALLED: Messages = [
    ASK,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
    TELL,
]
NEW = ("chatml", "zephyr", "llama-3.1", "llama-3.2-vision", "llama-4")
FOUR = ("<|header_start|>", "<|header_end|>", "<|eot|>", "<|python_start|>", "<|python_end|>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 3's small tokenizer, with Llama 4's tokens besides."""
    library = tiny.byte_level()
    library.add_special_tokens([AddedToken(t, special=True) for t in FOUR])
    names = {"bos_token": tiny.BOS, "eos_token": tiny.EOT, "pad_token": "<|finetune_right_pad_id|>"}
    return tiny.write(tmp_path_factory.mktemp("tokens"), library, **names)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


def turn(role: str, said: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{said}<|eot_id|>"


DATES = "Cutting Knowledge Date: December 2023\nToday Date: 03 Feb 2025\n\n"
ANNOUNCED = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    "answers the given prompt.\n\nRespond in the format "
    '{"name": function name, "parameters": dictionary of argument name and its value}.Do not use variables.\n\n'
)
SEQUENCES: list[tuple[str, Messages, Any, str]] = [
    (
        "chatml",
        [SYSTEM, ASK, TELL],
        None,
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n Once?<|im_end|>\n"
        "<|im_start|>assistant\nA girl.<|im_end|>\n",
    ),
    (
        "zephyr",
        [SYSTEM, ASK, TELL],
        None,
        "<|system|>\nBe kind.<|eot_id|>\n<|user|>\n Once?<|eot_id|>\n<|assistant|>\nA girl.<|eot_id|>\n",
    ),
    (
        "llama-3.1",
        [SYSTEM, ASK, TELL],
        None,
        turn("system", DATES + "Be kind.") + turn("user", "Once?") + turn("assistant", "A girl."),
    ),
    ("llama-3.1", [ASK, TELL], None, turn("system", DATES) + turn("user", "Once?") + turn("assistant", "A girl.")),
    (
        "llama-3.1",
        CALLED,
        TOOLS,
        turn("system", "Environment: ipython\n" + DATES)
        + turn("user", ANNOUNCED + json.dumps(TOOLS[0], indent=4) + "\n\nOnce?")
        + turn("assistant", '{"name": "add", "parameters": {"a": 1, "b": "é"}}')
        + turn("ipython", '"3"')
        + turn("assistant", "A girl."),
    ),
    (
        "llama-4",
        [SYSTEM, ASK, TELL],
        None,
        "<|header_start|>system<|header_end|>\n\nBe kind.<|eot|><|header_start|>user<|header_end|>\n\n Once?<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\nA girl.<|eot|>",
    ),
]


@pytest.mark.parametrize(("name", "messages", "tools", "text"), SEQUENCES)
def test_the_published_sequence(name: str, messages: Messages, tools: Any, text: str, tokenizer: Tokenizer) -> None:
    row = ChatTemplate.builtin(name).encode(tokenizer, messages, tools=tools, date="2025-02-03")
    assert row.text == tiny.BOS + text


@pytest.mark.parametrize("name", NEW)
def test_ids_are_those_of_transformers_and_answers_continue_their_prompts(
    name: str, tokenizer: Tokenizer, folder: Path
) -> None:
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    template = ChatTemplate.builtin(name)
    for talk, tools in (([ASK, TELL, MORE, TELL], None), ([SYSTEM, ASK, TELL], None), (CALLED, TOOLS)):
        if tools and name in ("chatml", "zephyr"):
            continue
        said = [{**m, "content": m["content"] or ""} for m in talk]
        mine = template.encode(tokenizer, said, tools=tools, date="2025-02-03")
        source = template.source.replace("strftime_now('%d %b %Y')", "'03 Feb 2025'")
        theirs = peer.apply_chat_template(said, tools=tools, chat_template=source, return_dict=False)
        assert mine.tokens == theirs if theirs[0] == tokenizer.bos_id else mine.tokens == [tokenizer.bos_id, *theirs]
        asked = template.encode(tokenizer, said[:-1], tools=tools, add_generation_prompt=True, date="2025-02-03")
        assert mine.tokens[: len(asked.tokens)] == asked.tokens and mine.supervised[len(asked.tokens)]
        learned = tokenizer.decode([t for t, s in zip(mine.tokens, mine.supervised) if s], skip_control=False)
        end = {"chatml": "<|im_end|>", "llama-4": "<|eot|>"}.get(name, "<|eot_id|>")
        answers = [m for m in said if m["role"] == "assistant"]
        assert learned.count(end) == len(answers) and learned.endswith(f"A girl.{end}")
        assert "Once" not in learned and '"3"' not in learned


def test_every_built_in_template_is_another_one() -> None:
    assert len({ChatTemplate.builtin(name).digest for name in BUILTIN}) == len(BUILTIN) == 9


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("llama3", "llama-3"),
        ("llama-3", "llama-3"),
        ("Llama_3", "llama-3"),
        ("llama31", "llama-3.1"),
        ("Llama-3.1-Instruct", "llama-3.1"),
        ("Meta-Llama-3.1-8B-Instruct", "llama-3.1"),
        ("llama3.2", "llama-3.1"),
        ("LLAMA 3.3", "llama-3.1"),
        ("Meta-Llama-3-8B-Instruct", "llama-3"),
        ("llama2", "llama-2"),
        ("llama-2-chat", "llama-2"),
        ("llama-2-7b-chat-hf", "llama-2"),
        ("llama4", "llama-4"),
        ("Llama-4-Scout-17B-16E-Instruct", "llama-4"),
        ("Llama-3.2-11B-Vision-Instruct", "llama-3.2-vision"),
        ("mllama", "llama-3.2-vision"),
        ("chat-ml", "chatml"),
        ("ChatML", "chatml"),
        ("chat_ml", "chatml"),
        ("zephyr-beta", "zephyr"),
        ("zephyr-7b-beta", "zephyr"),
        ("vicuna_v1.1", "vicuna"),
        ("Alpaca", "alpaca"),
        ("stanford_alpaca", "alpaca"),
    ],
)
def test_names_as_people_type_them(typed: str, meant: str) -> None:
    assert ChatTemplate.named(typed).name == meant


@pytest.mark.parametrize(("typed", "near"), [("alpacca", "alpaca"), ("vicunna", "vicuna"), ("lama3", "llama-3")])
def test_the_nearest_name_is_offered(typed: str, near: str) -> None:
    with pytest.raises(Refusal) as caught:
        ChatTemplate.named(typed)
    assert caught.value.id == "template-unknown" and f"did you mean {near}?" in caught.value.fix


def test_a_file_that_is_not_there_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "note.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(Refusal) as caught:
        ChatTemplate.named(str(tmp_path / "nope.jinja"))
    assert caught.value.id == "file-missing" and "note.jinja" in caught.value.fix
    assert ChatTemplate.named(str(tmp_path / "note.jinja")).name == "note.jinja"


def test_a_built_in_template_is_taken_before_a_file_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("alpaca", "mine", "vicuna.jinja"):
        (tmp_path / name).write_text("{{ messages[0].content }}")
    assert ChatTemplate.named("alpaca").digest == ChatTemplate.builtin("alpaca").digest
    assert "give ./alpaca" in capsys.readouterr().err
    for name in ("./alpaca", str(tmp_path / "alpaca"), "mine", "vicuna.jinja"):
        assert ChatTemplate.named(name).source == "{{ messages[0].content }}"
    assert not capsys.readouterr().err


def test_what_is_offered_for_a_template_that_cannot_be_written_is_all_that_can(own: Own) -> None:
    """By trying each: llama-2, which a SentencePiece tokenizer writes, was not offered."""
    found = Tokenizer.from_folder(own.base)
    with pytest.raises(Refusal) as caught:
        ChatTemplate.builtin("chatml").encode(found, [ASK, TELL])
    able = []
    for name in BUILTIN:
        with suppress(Refusal):
            ChatTemplate.builtin(name).encode(found, [ASK, TELL], date="2024-07-26")
            able.append(name)
    assert "llama-2" in able and caught.value.fix.startswith(f"use {', '.join(able)} or the checkpoint's own")


@pytest.mark.parametrize("name", ["alpaca", "vicuna", "llama-2", "chatml", "zephyr"])
def test_a_template_without_tools_names_one_that_has_them(name: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(Refusal) as caught:
        ChatTemplate.builtin(name).encode(tokenizer, CALLED, tools=TOOLS)
    assert "no place for tools" in caught.value.what and "llama-3.1" in caught.value.fix
    offered = ChatTemplate.named("llama-3.1").encode(tokenizer, CALLED, tools=TOOLS)
    assert any(offered.supervised)
