"""Llama 4's tokenizer and template, and Llama 3.2 Vision's template, against tiktoken, transformers' converter and the
template that transformers ships. Ids and strings as the shared facts on the lineage have them, 5.3 and 5.4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiny_tokenizers as tiny
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from own_data import Real
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.llama4.processing_llama4 import Llama4Processor, chat_template

from halter.errors import Refusal
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

QUICK = settings(max_examples=60, deadline=None)
NAMED = {
    **dict(enumerate(["begin_of_text", "end_of_text", "fim_prefix", "fim_middle", "fim_suffix"])),
    **dict(enumerate(["header_start", "header_end", "eom", "eot", "step"], 5)),
    **dict(enumerate(["python_start", "python_end", "finetune_right_pad"], 16)),
    80: "image_start",
    81: "image_end",
    84: "tile_x_separator",
    85: "tile_y_separator",
    90: "image",
    92: "patch",
    1142: "reasoning_thinking_start",
    1143: "reasoning_thinking_end",
    1144: "reserved_special_token_0",
    10: "text_post_train_reserved_special_token_0",
    79: "text_post_train_reserved_special_token_68",
    93: "vision_reserved_special_token_7",
    1133: "vision_reserved_special_token_1047",
    1134: "reasoning_reserved_special_token_0",
    2047: "reserved_special_token_903",
}
"""{id less 200,000: name}"""
SCRAPS = [
    *("a", "A", "camelCase", "HTMLTag", "don't", "WE'LL", "it'S", " ", "  ", "\n", "\n\n", "a/b//\n", "//", "12345"),
    *("é", "É", "naïveté", "Ǆ", "你好", "🙂", "́", "ت", "\t", ".", "!!\r\n", "\x00", " the", "eta", "\u2028"),
]
CONTROL = ["<|eot|>", "<|header_start|>", "<|image|>", "<|patch|>", "<|begin_of_text|>", "<|", "|>", "eot"]
texts = st.lists(st.sampled_from(SCRAPS + CONTROL) | st.text(max_size=4), max_size=8).map("".join)


@pytest.fixture(scope="module")
def merges() -> dict[bytes, int]:
    return tiny.llama4_merges()


@pytest.fixture(scope="module")
def metas(tmp_path_factory: pytest.TempPathFactory, merges: dict[bytes, int]) -> Tokenizer:
    """Of a file that is as long as Meta's."""
    folder = tmp_path_factory.mktemp("meta4")
    tiny.tiktoken_file(folder / "tokenizer.model", merges)
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def library(metas: Tokenizer, merges: dict[bytes, int]) -> tiktoken.Encoding:
    special = {control.text: control.id for control in metas.controls}
    return tiktoken.Encoding("oracle", pat_str=tiny.LLAMA4_SPLIT, mergeable_ranks=merges, special_tokens=special)


# tokenizer.model


def test_the_control_tokens_have_metas_names_and_ids(metas: Tokenizer) -> None:
    assert {id: metas.token(200_000 + id) for id in NAMED} == {id: f"<|{name}|>" for id, name in NAMED.items()}
    assert metas.vocab_size == 202_048 and len({control.text for control in metas.controls}) == 2048
    assert (metas.bos_id, metas.eos_id, metas.pad_id) == (200_000, 200_001, 200_018)
    assert set(metas.stop_ids) == {200_001, 200_007, 200_008}


@QUICK
@given(text=texts)
def test_it_encodes_and_decodes_as_tiktoken(text: str, metas: Tokenizer, library: tiktoken.Encoding) -> None:
    assert metas.encode(text) == library.encode_ordinary(text)
    assert metas.encode(text, control=True) == library.encode(text, allowed_special="all")
    assert metas.decode(metas.encode(text)) == text


@pytest.mark.parametrize("text", [*SCRAPS, ".\n/", "aB", "ABc", "Abc'S", "1234", "  a", "\r\n\n", "a\u0301B"], ids=repr)
def test_each_rule_of_the_split_is_tiktokens(text: str, metas: Tokenizer, library: tiktoken.Encoding) -> None:
    assert metas.encode(text) == library.encode_ordinary(text)


def test_words_are_split_as_llama_4_does_and_not_llama_3(metas: Tokenizer, tmp_path: Path) -> None:
    """The split is seen in what is put together: letters across a change of case are two words, an apostrophe's end
    is the word's own."""
    small = tiny.tiktoken_merges()
    for token in (b"aB", b"n't", b"don't"):
        for end in range(2, len(token) + 1):
            small.setdefault(token[:end], len(small))
    tiny.tiktoken_file(tmp_path / "tokenizer.model", small)
    three = Tokenizer.from_folder(tmp_path)
    assert len(three.encode("aB")) == 1 and len(metas.encode("aB")) == 2  # both have it as one rank
    assert metas.token_id("aB") is not None and three.token_id("don't") is not None
    assert three.encode("don't") != [three.token_id("don't")]


def test_vectors_of_the_real_file(real: Real) -> None:
    if not (real.ranks / "tokenizer.model").is_file():
        pytest.skip("no tokenizer.model of Llama 4 (HALTER_SHARED)")
    llama4 = Tokenizer.from_folder(real.ranks)
    assert llama4.encode("This is a test sentence.") == [3231, 373, 262, 1600, 17705, 26]
    roles = {"system": [15651], "user": [1556], "assistant": [140680], "ipython": [607, 6934], "\n\n": [368]}
    assert {role: llama4.encode(role) for role in roles} == roles


# tokenizer.json


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers' converter makes of a small file, and the pad token as Hugging Face's files have it."""
    folder = tmp_path_factory.mktemp("converted")
    merges = tiny.tiktoken_file(folder / "ranks")
    names = [f"<|{NAMED.get(id, f'other_{id}')}|>" for id in range(1134)]
    made = TikTokenConverter(str(folder / "ranks"), pattern=tiny.LLAMA4_SPLIT, extra_special_tokens=names).converted()
    peer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot|>",
        pad_token="<|finetune_right_pad_id|>",  # not the vocabulary's name: it becomes a token of its own
    )
    peer.save_pretrained(folder)
    text = {"model_type": "llama4_text", "bos_token_id": len(merges), "pad_token_id": len(merges) + 18}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama4", "text_config": text}))
    ends = [len(merges) + offset for offset in (1, 7, 8)]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return folder


def test_what_transformers_converts_is_read_and_the_pad_is_the_vocabularys(converted: Path) -> None:
    ours = Tokenizer.from_folder(converted)
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(converted)
    base = len(tiny.tiktoken_merges())
    assert len(peer) == ours.vocab_size == base + 1135  # 201135 of the real ones
    assert peer.pad_token_id == base + 1134 and ours.pad_id == base + 18
    assert (ours.bos_id, ours.eos_id) == (base, base + 8) and set(ours.stop_ids) == {base + 1, base + 7, base + 8}
    for text in (*SCRAPS, "".join(SCRAPS), " ".join(tiny.SENTENCES)):
        assert ours.encode(text) == peer(text, add_special_tokens=False).input_ids
    (converted / "tokenizer_config.json").write_text("{}")
    assert Tokenizer.from_folder(converted).pad_id == base + 18


# The template of Llama 4

SAID = st.sampled_from(
    ["Once?", " Then? ", "\n", "a <b> & 'c'", '{"k": 1}', "é 你好", "", "<|eot|>x", "<|image|>", "<|"]
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
IMAGE = {"type": "image"}


@st.composite
def talks(draw: st.DrawFn, pictures: bool) -> list[dict[str, Any]]:
    """Conversations as Hugging Face's templates take them."""

    def asked() -> Any:
        if not pictures or draw(st.booleans()):
            return draw(SAID)
        parts = draw(st.lists(st.just(IMAGE) | SAID.map(lambda s: {"type": "text", "text": s}), min_size=1, max_size=4))
        return [*parts, {"type": "text", "text": draw(SAID)}]

    talk: list[dict[str, Any]] = [{"role": "system", "content": draw(SAID)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        talk.append({"role": "user", "content": asked()})
        if draw(st.booleans()):
            calls = [CALL] * draw(st.integers(1, 2))
            talk.append({"role": "assistant", "content": draw(SAID), "tool_calls": calls})
            talk += [{"role": "tool", "content": draw(SAID)}]
        talk.append({"role": "assistant", "content": draw(SAID)})
    return talk[: draw(st.integers(len(talk) - 1, len(talk)))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama4(tmp_path_factory.mktemp("small4"))


@pytest.fixture(scope="module")
def small(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def peer(folder: Path) -> Any:
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@settings(max_examples=120, deadline=None)
@given(talk=talks(pictures=True), tools=st.booleans(), prompt=st.booleans())
def test_it_writes_what_hugging_faces_template_writes(
    talk: list[dict[str, Any]], tools: bool, prompt: bool, small: Tokenizer, peer: Any
) -> None:
    """Contents that spell control tokens too: there the texts are equal, and the ids are none of content's."""
    first = next(m for m in talk if m["role"] == "user")
    tools = tools and isinstance(first["content"], str)  # it prints a list there as Python does
    given_tools = TOOLS if tools else None
    theirs = peer.apply_chat_template(
        talk, tools=given_tools, chat_template=chat_template, add_generation_prompt=prompt, tokenize=False
    )
    row = ChatTemplate.builtin("llama-4").encode(small, talk, tools=given_tools, add_generation_prompt=prompt)
    assert row.text == theirs
    plain = json.dumps(talk)
    if not any(control in plain for control in ("<|eot|>", "<|image|>", "<|")):
        assert row.tokens == peer(theirs, add_special_tokens=False).input_ids
    image = small.token_id("<|image|>")
    assert row.tokens.count(image or -1) == plain.count('{"type": "image"}')


def test_pictures_stand_where_they_were_put(small: Tokenizer) -> None:
    asked = [{"type": "text", "text": "Both:"}, IMAGE, {"type": "image_url", "image_url": {"url": "b.png"}}]
    answer = {"role": "assistant", "content": "Two cats."}
    talk = [{"role": "user", "content": [*asked, {"type": "text", "text": "?"}]}, answer]
    row = ChatTemplate.builtin("llama-4").encode(small, talk)
    turn = "<|header_start|>user<|header_end|>\n\nBoth:<|image|><|image|>?<|eot|>"
    assert row.text == f"{tiny.BOS}{turn}<|header_start|>assistant<|header_end|>\n\nTwo cats.<|eot|>"
    learned = [token for token, own in zip(row.tokens, row.supervised) if own]
    assert small.decode(learned, skip_control=False) == "Two cats.<|eot|>"


def test_one_picture_of_a_prompt_becomes_what_the_processor_makes_of_it(small: Tokenizer) -> None:
    """The sequence of 5.4, from the one token that the template wrote, by the processor's own words."""
    talk = [{"role": "user", "content": [IMAGE, IMAGE, {"type": "text", "text": "Which?"}]}]
    row = ChatTemplate.builtin("llama-4").encode(small, talk, add_generation_prompt=True)
    made = Llama4Processor._prompt_split_image
    whole = row.text
    for grid in ((2, 3), (1, 1)):
        whole = whole.replace("<|image|>", made(None, grid, 2).replace("<|image|>", "\0"), 1)
    ids = small.encode(whole.replace("\0", "<|image|>"), control=True)
    rows = ["<|patch|><|patch|>" + "<|tile_x_separator|><|patch|><|patch|>" * 2 + "<|tile_y_separator|>"] * 2
    ends = ["<|image|><|patch|><|patch|><|image_end|>"] * 2
    expected = "<|image_start|>" + "".join(rows) + ends[0] + "<|image_start|>" + ends[1]
    text = small.decode(ids, skip_control=False)
    assert expected in text and text.replace(expected, "<|image|><|image|>") == row.text


def test_tools_need_a_first_question_and_pictures_their_token(small: Tokenizer, tmp_path: Path) -> None:
    llama4 = ChatTemplate.builtin("llama-4")
    with pytest.raises(Refusal, match="first question"):
        llama4.encode(small, [{"role": "assistant", "content": "Hi."}], tools=TOOLS)
    picture = [{"role": "user", "content": [IMAGE]}]
    three = Tokenizer.from_folder(tiny.llama3(tmp_path))
    with pytest.raises(Refusal) as caught:
        ChatTemplate.builtin("llama-3.2-vision").encode(three, picture)
    assert caught.value.id == "template-needs-tokens" and caught.value.found == ("<|image|>",)
    with pytest.raises(Refusal) as caught:
        ChatTemplate.builtin("llama-3").encode(three, picture)
    assert caught.value.id == "template-unsupported" and "llama-3.2-vision" in caught.value.fix
    with pytest.raises(Refusal, match="text and pictures"):
        llama4.encode(small, [{"role": "user", "content": [{"type": "audio"}]}])


# Which template, and where to stop


def test_a_folder_that_ends_turns_is_asked_in_turns(tmp_path: Path) -> None:
    """Its own template first; a base, which stops at a text's end alone, has none."""
    own = Tokenizer.from_folder(tiny.llama4(tmp_path / "own", template="{{ messages[0].content }}"))
    assert own.chat_template is not None and own.chat_template.name == "checkpoint" and own.template_in_files
    told = Tokenizer.from_folder(tiny.llama4(tmp_path / "told"))
    assert told.chat_template is not None and told.chat_template.name == "llama-4" and not told.template_in_files
    assert [told.token(id) for id in told.stop_ids] == ["<|end_of_text|>", "<|eom|>", "<|eot|>"]
    base = Tokenizer.from_folder(tiny.llama4(tmp_path / "base", instruct=False))
    assert base.chat_template is None and [base.token(id) for id in base.stop_ids] == ["<|end_of_text|>"]


def test_reasoning_stays_in_the_answer_as_words(small: Tokenizer) -> None:
    """The template knows no reasoning, so its tags are text, and no token of Llama 4's comes of them."""
    talk = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "<think>\none\n</think>\n\n2"}]
    (row,) = ChatTemplate.builtin("llama-4").rows(small, talk).encoded
    assert row.text.endswith("\n\n<think>\none\n</think>\n\n2<|eot|>")
    assert small.token_id("<|reasoning_thinking_start|>") not in row.tokens


# The template of Llama 3.2 Vision


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    library = tiny.byte_level()
    library.add_special_tokens(["<|image|>"])
    return Tokenizer.from_folder(tiny.write(tmp_path_factory.mktemp("seeing"), library, bos_token=tiny.BOS))


def turn(role: str, said: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{said}<|eot_id|>"


DATES = "Cutting Knowledge Date: December 2023\nToday Date: 03 Feb 2025\n\n"
ASKED = {"role": "user", "content": [IMAGE, {"type": "text", "text": " What is it?"}]}
BRIEF, CAT = {"role": "system", "content": " Be brief."}, {"role": "assistant", "content": "A cat. "}
MORE = {"role": "user", "content": [{"type": "text", "text": "And "}, IMAGE, {"type": "text", "text": "?"}]}


@pytest.mark.parametrize(
    ("talk", "text"),
    [
        ([ASKED, CAT], turn("user", "<|image|> What is it?") + turn("assistant", "A cat. ")),
        (
            [ASKED, CAT, MORE],
            turn("user", "<|image|> What is it?") + turn("assistant", "A cat. ") + turn("user", "And <|image|>?"),
        ),
        ([BRIEF, ASKED], turn("system", DATES + "Be brief.") + turn("user", "<|image|> What is it?")),
        ([{"role": "user", "content": " Hi <|image|>"}], turn("system", DATES) + turn("user", " Hi <|image|>")),
    ],
    ids=["picture", "two pictures", "system and picture", "text"],
)
def test_the_sequence_of_llama_3_2_vision(talk: list[dict[str, Any]], text: str, seeing: Tokenizer) -> None:
    row = ChatTemplate.builtin("llama-3.2-vision").encode(seeing, talk, date="2025-02-03")
    assert row.text == tiny.BOS + text
    pictures = sum(part == IMAGE for m in talk if isinstance(m["content"], list) for part in m["content"])
    assert row.tokens.count(seeing.token_id("<|image|>") or -1) == pictures


def test_tools_are_not_told_beside_pictures(seeing: Tokenizer) -> None:
    with pytest.raises(Refusal, match="not taught to call tools beside pictures"):
        ChatTemplate.builtin("llama-3.2-vision").encode(seeing, [ASKED], tools=TOOLS, date="2025-02-03")
