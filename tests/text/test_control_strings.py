"""No control token comes from content: every control string of every kind of tokenizer, typed in every place."""

from __future__ import annotations

import random
import time

import pytest
import tiny_tokenizers as tiny
from own_data import Own

from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

WORDS = ("Once", "upon a time", "\n\n", "é", "你好", "12345", "{x}", "it's", "</", "|", "<|", "|>", "[INST]", " ")
ROLES = ("system", "user", "assistant", "user", "assistant")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, own: Own) -> dict[str, tuple[Tokenizer, ChatTemplate]]:
    """Tokenizers of every file format, each with its family's template; a stranger's among them."""
    root = tmp_path_factory.mktemp("tokenizers")
    byte = Tokenizer.from_folder(tiny.llama3(root / "llama3"))
    chatml = Tokenizer.from_folder(tiny.llama3(root / "chatml", tiny.CHATML_TEMPLATE))
    assert chatml.chat_template is not None
    (root / "meta").mkdir()
    tiny.tiktoken_file(root / "meta/tokenizer.model")
    sp = Tokenizer.from_folder(own.pieces)
    piece = Tokenizer.from_folder(own.base)
    return {
        "tokenizer.json, llama-3": (byte, ChatTemplate.builtin("llama-3")),
        "tokenizer.json, a stranger's ChatML": (chatml, chatml.chat_template),
        "tiktoken, llama-3": (Tokenizer.from_folder(root / "meta"), ChatTemplate.builtin("llama-3")),
        "tokenizer.json, llama-4": (
            Tokenizer.from_folder(tiny.llama4(root / "llama4")),
            ChatTemplate.builtin("llama-4"),
        ),
        "SentencePiece, llama-2": (sp, ChatTemplate.builtin("llama-2")),
        "SentencePiece, alpaca": (sp, ChatTemplate.builtin("alpaca")),
        "tokenizer.json of SentencePiece, vicuna": (piece, ChatTemplate.builtin("vicuna")),
    }


def content(rng: random.Random, string: str) -> str:
    """The string, whole, doubled, interleaved or in half, between words or right at the borders."""
    cut = rng.randrange(1, len(string))
    form = rng.choice((string, string, string * 2, string[:cut] + string + string[cut:], string[cut:] + string[:cut]))
    before, after = rng.choice(WORDS), rng.choice(WORDS)
    return rng.choice((form, before + form, form + after, before + form + after, f"a {form} b", f"x{form}y"))


def typed(tokenizer: Tokenizer, template: ChatTemplate, strings: list[str], seed: int) -> int:
    """Encode conversations whose every message has a control string; how many control ids came from content.

    What the structure's are is known from the same conversation with harmless words.
    """
    rng, control = random.Random(seed), {c.id for c in tokenizer.controls}
    leaked = 0
    expected: dict[int, list[int]] = {}
    for start in range(0, len(strings), len(ROLES)):
        part = strings[start : start + len(ROLES)]
        if len(part) not in expected:
            plain = [{"role": r, "content": "Once upon"} for r, _ in zip(ROLES, part, strict=False)]
            expected[len(part)] = [i for i in template.encode(tokenizer, plain).tokens if i in control]
        chat = [{"role": r, "content": content(rng, s)} for r, s in zip(ROLES, part, strict=False)]
        row = template.encode(tokenizer, chat)
        # The unknown character is a control id that content may bring by right.
        got = [i for i in row.tokens if i in control and i != tokenizer.unk_id]
        if got != [i for i in expected[len(part)] if i != tokenizer.unk_id]:
            leaked += 1
    return leaked


def over_all(pairs: dict[str, tuple[Tokenizer, ChatTemplate]], messages: int, each: bool) -> None:
    """``messages`` for every tokenizer, or with ``each`` for every string of every tokenizer."""
    for seed, (name, (tokenizer, template)) in enumerate(pairs.items()):
        strings = sorted({c.text for c in tokenizer.controls})
        assert len(strings) >= 3
        wanted = [s for s in strings for _ in range(messages)] if each else (strings * messages)[:messages]
        random.Random(seed).shuffle(wanted)
        begun = time.perf_counter()
        leaked = typed(tokenizer, template, wanted, seed)
        seconds = time.perf_counter() - begun
        flagged = sum(c.special for c in tokenizer.controls)
        print(
            f"control strings, {name}: {len(strings)} strings ({flagged} flagged special) in {len(wanted)} messages, "
            f"{leaked} control ids from content ({seconds:.1f} s)"
        )
        assert leaked == 0


def test_a_thousand_messages_of_each_tokenizer(pairs: dict[str, tuple[Tokenizer, ChatTemplate]]) -> None:
    over_all(pairs, 1000, each=False)


@pytest.mark.nightly
def test_a_thousand_messages_for_each_control_string(pairs: dict[str, tuple[Tokenizer, ChatTemplate]]) -> None:
    over_all(pairs, 1000, each=True)
