"""Tokenizers against the libraries whose formats they read: tokenizers and transformers, sentencepiece, tiktoken."""

from __future__ import annotations

import json
import pickle
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
import tiny_tokenizers as tiny
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from own_data import Data, Own, Real
from tokenizers import AddedToken

from halter.errors import Refusal
from halter.text.codecs.tiktoken_ranks import PATTERN, TiktokenCodec, chunks
from halter.text.tokenizer import Tokenizer

MODELS = ("base", "letters")
QUICK = settings(max_examples=60, deadline=None)
CONTROL_BITS = [*tiny.LLAMA3_SPECIAL, *tiny.NOT_FLAGGED, "<s>", "</s>", "<unk>", "<0x0A>", "<|", "|>", "eot_id"]
SCRAPS = [
    "a",
    " ",
    "  ",
    "\n",
    "\n\n",
    "Once upon",
    " a time",
    "it's",
    "12345",
    "é",
    "你好",
    "🙂",
    ".",
    "▁",
    "Ġ",
    "\x00",
]
texts = st.lists(st.sampled_from(SCRAPS) | st.text(max_size=4), max_size=8).map("".join)
hostile_texts = st.lists(st.sampled_from(SCRAPS + CONTROL_BITS * 2), max_size=8).map("".join)


@pytest.fixture(scope="module")
def stories(data: Data) -> list[str]:
    lines = data.stories.read_text("utf-8").splitlines()[:60]
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(tiny.llama3(tmp_path_factory.mktemp("llama3")))


@pytest.fixture(scope="module")
def llama2(data: Data) -> Tokenizer:
    return Tokenizer.from_folder(data.pieces)


@pytest.fixture(scope="module")
def metas(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("meta")
    tiny.tiktoken_file(folder / "tokenizer.model")
    return Tokenizer.from_folder(folder)


def folder_of(tmp_path: Path, library: tokenizers.Tokenizer, **config: Any) -> Tokenizer:
    return Tokenizer.from_folder(tiny.write(tmp_path, library, **config))


# Each format encodes as its own library does


@pytest.mark.parametrize("name", MODELS)
def test_tokenizer_json_equals_transformers_and_sentencepiece(name: str, data: Data, stories: list[str]) -> None:
    folder = getattr(data, name)
    ours = Tokenizer.from_folder(folder)
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.stop_ids, ours.pad_id) == (len(oracle), 1, 2, (2,), None)
    for story in stories:
        ids = ours.encode(story)
        assert ids == oracle(story, add_special_tokens=False).input_ids
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
        collapsed = " ".join(story.split(" ")).strip()
        if "  " not in collapsed:
            assert ours.encode(collapsed) == pieces.encode(collapsed)


def test_sentencepiece_vector_of_llama2(real: Real) -> None:
    llama2 = Tokenizer.from_folder(real.pieces)
    assert [llama2.bos_id, *llama2.encode("Hello this is a test")] == [1, 15043, 445, 338, 263, 1243]
    assert llama2.encode("Hello", continues=True) == [10994] and llama2.token(10994) == "Hello"
    assert (llama2.vocab_size, llama2.eos_id, llama2.stop_ids, llama2.pad_id) == (32000, 2, (2,), None)
    assert llama2.encode("<s>Hello</s>", control=True) == [1, 15043, 2]


@QUICK
@given(text=texts)
def test_sentencepiece_encodes_and_decodes_as_the_library(text: str, llama2: Tokenizer, data: Data) -> None:
    library = sentencepiece.SentencePieceProcessor(model_file=str(data.pieces / "tokenizer.model"))
    ids = library.encode(text)
    assert llama2.encode(text) == ids
    assert llama2.decode(ids) == library.decode(ids)


@QUICK
@given(text=hostile_texts)
def test_tiktoken_equals_tiktoken(text: str, metas: Tokenizer) -> None:
    merges = tiny.tiktoken_merges()
    special = {control.text: control.id for control in metas.controls}
    library = tiktoken.Encoding("oracle", pat_str=PATTERN, mergeable_ranks=merges, special_tokens=special)
    assert metas.encode(text) == library.encode_ordinary(text)
    assert metas.encode(text, control=True) == library.encode(text, allowed_special="all")
    assert metas.decode(metas.encode(text)) == text


def test_tiktoken_specials_of_llama3(metas: Tokenizer) -> None:
    base = len(tiny.tiktoken_merges())
    offsets = {
        "begin_of_text": 0,
        "end_of_text": 1,
        "reserved_special_token_0": 2,
        "reserved_special_token_1": 3,
        "finetune_right_pad_id": 4,
        "step_id": 5,
        "start_header_id": 6,
        "end_header_id": 7,
        "eom_id": 8,
        "eot_id": 9,
        "python_tag": 10,
    }
    assert {name: metas.token_id(f"<|{name}|>") for name in offsets} == {n: base + o for n, o in offsets.items()}
    assert metas.vocab_size == base + 256 and len({c.text for c in metas.controls}) == 256
    assert (metas.bos_id, metas.eos_id) == (base, base + 1)
    assert set(metas.stop_ids) == {base + 1, base + 8, base + 9} and metas.pad_id is None


def test_tiktoken_cuts_long_texts_at_metas_limits() -> None:
    assert [len(c) for c in chunks("a" * 25_000)] == [25_000]
    assert [len(c) for c in chunks("a" * 60_001)] == [25_000, 25_000, 10_001]
    assert [len(c) for c in chunks("ab " + " " * 25_001 + "c")] == [25_002, 3]
    assert [len(c) for c in chunks("word " * 80_001)] == [400_000, 5]


def test_a_whole_piece_is_taken_before_any_merge(tmp_path: Path) -> None:
    """A piece that is in the table wins though no merge leads to it (Llama 3's ignore_merges)."""
    import base64

    merges = [bytes([b]) for b in range(256)] + [b"a", b"xyz"][1:]
    (tmp_path / "tokenizer.model").write_text(
        "".join(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(merges))
    )
    assert Tokenizer.from_folder(tmp_path).encode("xyz xyz") == [256, 32, 120, 121, 122]


# Control tokens: with control=True as the library finds them, with control=False never

SCHEMES = ("prepend", "always", "first", "never", "bytes", "bytes-with-space")
FLAGS: tuple[dict[str, bool], ...] = (
    {},
    {"lstrip": True},
    {"rstrip": True},
    {"single_word": True},
    {"normalized": True},
)


def with_flags(scheme: str) -> tokenizers.Tokenizer:
    added = [
        AddedToken(f"<{i}>", normalized=flags.pop("normalized", False), **flags)
        for i, flags in enumerate(map(dict, FLAGS))
    ]
    if scheme.startswith("bytes"):
        library = tiny.byte_level()
        if scheme == "bytes-with-space":
            library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
        library.add_tokens(added)
        return library
    return tiny.sentencepiece_like(scheme, added)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_control_tokens_are_found_as_the_library_finds_them(
    scheme: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    library = with_flags(scheme)
    # With a normalizer that puts a space first, the library seeks "▁<4>" instead of "<4>", which no template means.
    ours = folder_of(tmp_path_factory.mktemp(scheme), library)
    bits = [
        "<0>",
        "<1>",
        "<2>",
        "<3>",
        "<s>",
        "</s>",
        "<think>",
        "<|eot_id|>",
        " ",
        "  ",
        "a",
        "Once",
        " upon",
        "\n",
        "é",
    ]
    bits += ["<4>"] if scheme != "prepend" else []

    @settings(max_examples=150, deadline=None)
    @given(text=st.lists(st.sampled_from(bits), max_size=7).map("".join))
    def check(text: str) -> None:
        assert ours.encode(text, control=True) == library.encode(text, add_special_tokens=False).ids

    check()


@QUICK
@given(text=hostile_texts)
def test_plain_text_never_becomes_control_tokens(
    text: str, llama3: Tokenizer, llama2: Tokenizer, metas: Tokenizer
) -> None:
    for tokenizer in (llama3, llama2, metas):
        ids = tokenizer.encode(text)
        forbidden = {control.id for control in tokenizer.controls}
        assert not forbidden & set(ids)
        assert tokenizer is not llama3 or ids == without_added_tokens().encode(text).ids
        assert tokenizer.decode(ids) == (text.replace("▁", " ") if tokenizer is llama2 else text)


@cache
def without_added_tokens() -> tokenizers.Tokenizer:
    spec = json.loads(tiny.byte_level().to_str()) | {"added_tokens": [], "post_processor": None}
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def test_each_control_string_typed_stays_text(llama3: Tokenizer, llama2: Tokenizer, metas: Tokenizer) -> None:
    assert len(llama3.controls) == 14 and len(llama2.controls) == 3 and len(metas.controls) == 256
    for tokenizer in (llama3, llama2, metas):
        ids = {control.id for control in tokenizer.controls}
        for control in tokenizer.controls:
            assert tokenizer.encode(control.text, control=True) == [control.id]
            plain = tokenizer.encode(f"a{control.text}b {control.text}")
            assert not ids & set(plain) and tokenizer.decode(plain) == f"a{control.text}b {control.text}"


def test_a_control_string_that_merges_would_build_is_broken_up(tmp_path: Path) -> None:
    """Where the vocabulary holds the string as an ordinary piece too, leaving out the added token is not enough."""
    spec = json.loads(tiny.sentencepiece_like("prepend").to_str())
    ids = {"<": None, "s": None, ">": None}
    spec["model"]["vocab"] |= {
        t: len(spec["model"]["vocab"]) + i for i, t in enumerate(["<s", *ids]) if t not in spec["model"]["vocab"]
    }
    spec["model"]["merges"] = [["<", "s"], ["<s", ">"], *spec["model"]["merges"]]
    library = tokenizers.Tokenizer.from_str(json.dumps(spec | {"added_tokens": spec["added_tokens"][:1]}))
    assert 1 in library.encode("x<s>y", add_special_tokens=False).ids  # the danger is real
    ours = folder_of(tmp_path, tokenizers.Tokenizer.from_str(json.dumps(spec)), bos_token="<s>", eos_token="</s>")
    ids_ = ours.encode("x<s>y")
    assert 1 not in ids_ and ours.decode(ids_) == "x<s>y"


def test_unknown_characters_are_unknown_but_the_name_typed_is_not(data: Data) -> None:
    tokenizer = Tokenizer.from_folder(data.letters)
    assert tokenizer.encode("a\nb")[2] == 0 and tokenizer.unk_id == 0
    oracle = tokenizers.Tokenizer.from_file(str(data.letters / "tokenizer.json"))
    assert 0 in oracle.encode("<unk>").ids and 0 not in tokenizer.encode("unk")


# Decoding and streaming


@pytest.mark.parametrize("kind", ["llama3", "llama2", "metas", "stories"])
def test_streams_say_what_decode_says(kind: str, request: pytest.FixtureRequest, data: Data) -> None:
    tokenizer = Tokenizer.from_folder(data.base) if kind == "stories" else request.getfixturevalue(kind)

    @settings(max_examples=80, deadline=None)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        first = st.integers(0, 300) | st.integers(0, tokenizer.vocab_size + 3)  # bytes and specials come up often
        ids = data.draw(st.lists(first, max_size=12)) + tokenizer.encode(data.draw(texts))
        skip = data.draw(st.booleans())
        said = ""
        for i in range(len(ids) + 1):
            stream = tokenizer.stream(skip_control=skip)
            said = "".join(stream.push(id) for id in ids[:i])
            assert said + stream.flush() == tokenizer.decode(ids[:i], skip_control=skip)
        whole = tokenizer.decode(ids, skip_control=skip)
        assert whole.startswith(said)

    check()


def test_a_character_is_said_when_it_is_complete(llama2: Tokenizer) -> None:
    stream = llama2.stream()
    ids = llama2.encode("a🙂b")
    said = [stream.push(id) for id in ids]
    assert "".join(said) == "a🙂b" and "🙂" in said and said.count("") == 3 + (len(ids) - 6)
    spaced = llama2.stream()
    assert "".join(spaced.push(id) for id in llama2.encode("  a")) == "  a" == llama2.decode(llama2.encode("  a"))
    later = llama2.stream(previous=llama2.encode("Once upon"))
    assert "".join(later.push(id) for id in llama2.encode("a time")) == " a time"


@QUICK
@given(text=texts)
def test_byte_level_decodes_as_the_library(text: str, llama3: Tokenizer) -> None:
    library = with_added_tokens()
    ids = llama3.encode(text)
    assert llama3.decode(ids) == text == library.decode(ids)
    with_control = llama3.encode(f"{tiny.BOS}{text}<think>{tiny.EOT}", control=True)
    assert llama3.decode(with_control) == library.decode(with_control, skip_special_tokens=True) == text + "<think>"
    assert llama3.decode(with_control, skip_control=False) == library.decode(with_control, skip_special_tokens=False)


@cache
def with_added_tokens() -> tokenizers.Tokenizer:
    return tiny.byte_level()


# What opens, closes and stops


@pytest.mark.parametrize(
    ("config", "bos"),
    [
        ({"bos_token": tiny.BOS}, True),
        ({"bos_token": tiny.BOS, "add_bos_token": False}, False),
        ({"bos_token": {"content": tiny.BOS, "special": True}}, True),
        ({}, True),  # the post-processor says so
    ],
)
def test_what_opens_a_sequence(config: dict[str, Any], bos: bool, tmp_path: Path) -> None:
    tokenizer = folder_of(tmp_path, tiny.byte_level(), **config)
    assert tokenizer.bos_id == (tokenizer.token_id(tiny.BOS) if bos else None)


@pytest.mark.parametrize(
    ("config", "bos"),
    [
        ({"bos_token": tiny.BOS, "eos_token": tiny.EOT}, True),
        ({"bos_token": tiny.EOT, "eos_token": tiny.EOT}, False),  # one name for both: no BOS in training
        ({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "tokenizer_class": "GPT2Tokenizer"}, False),
        ({"bos_token": tiny.EOT, "eos_token": tiny.EOT, "add_bos_token": True}, True),
        ({}, False),
    ],
)
def test_what_opens_a_sequence_where_the_file_is_silent(config: dict[str, Any], bos: bool, tmp_path: Path) -> None:
    library = tiny.byte_level()
    library.post_processor = tokenizers.processors.ByteLevel()
    tokenizer = folder_of(tmp_path, library, **config)
    assert tokenizer.bos_id == (tokenizer.token_id(config["bos_token"]) if bos else None)


def test_stop_ids_come_from_every_file(tmp_path: Path) -> None:
    folder = tiny.llama3(tmp_path)
    tokenizer = Tokenizer.from_folder(folder)
    end, eom, eot = (tokenizer.token_id(t) for t in (tiny.EOS, "<|eom_id|>", tiny.EOT))
    assert tokenizer.stop_ids == (eot, end, eom)  # the family's, as nothing else is said
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, eot]}))
    assert Tokenizer.from_folder(folder).stop_ids == (end, eot)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    assert Tokenizer.from_folder(folder, {"eos_token_id": [eom]}).stop_ids == (end, eot, eom)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert Tokenizer.from_folder(folder).stop_ids == (end, eot, 7)


def test_a_missing_pad_stays_missing(tmp_path: Path) -> None:
    size = tiny.byte_level().get_vocab_size()
    tokenizer = folder_of(tmp_path / "a", tiny.byte_level(), eos_token=tiny.EOT, pad_token="[PAD]")
    assert tokenizer.pad_id is None and tokenizer.vocab_size == size
    tokenizer = Tokenizer.from_folder(tiny.llama3(tmp_path / "b"))
    assert tokenizer.pad_id == tokenizer.token_id("<|finetune_right_pad_id|>")


def test_tokens_of_the_config_follow_the_sentencepiece_model(data: Data, llama2: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((data.pieces / "tokenizer.model").read_bytes())
    start, end = llama2.vocab_size, llama2.vocab_size + 1
    added = {
        str(start): {"content": "<|im_start|>", "special": True},
        str(end): {"content": "<|im_end|>", "special": False},
    }
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": added, "eos_token": "<|im_end|>"})
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id) == (end + 1, end, 1)
    hello = llama2.encode("Hello")
    assert tokenizer.encode("<|im_start|>Hello<|im_end|>", control=True) == [start, *hello, end]
    assert not {start, end} & set(tokenizer.encode("<|im_start|>Hello<|im_end|>"))
    assert tokenizer.files == (tmp_path / "tokenizer.model", tmp_path / "tokenizer_config.json")


# Identity


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    folder = tiny.llama3(tmp_path / "a")
    digest = Tokenizer.from_folder(folder).digest
    spec = json.loads((folder / "tokenizer.json").read_text())
    assert len(digest) == 64

    def digest_of(changed: dict[str, Any]) -> str:
        (folder / "tokenizer.json").write_text(json.dumps(changed, indent=3, sort_keys=True))
        return Tokenizer.from_folder(folder).digest

    assert digest_of(spec) == digest  # other white space, other order of keys
    pairs = [m.split(" ") if isinstance(m, str) else m for m in spec["model"]["merges"]]
    strings = [" ".join(m) for m in pairs]
    assert digest_of(spec | {"model": spec["model"] | {"merges": strings}}) == digest  # the older spelling
    assert digest_of(spec | {"padding": None, "post_processor": spec["post_processor"]}) == digest
    assert digest_of(spec | {"model": spec["model"] | {"merges": pairs[::-1]}}) != digest
    assert digest_of(spec | {"added_tokens": spec["added_tokens"][:-1]}) != digest


def test_tokenizers_travel_between_processes(llama3: Tokenizer, llama2: Tokenizer, metas: Tokenizer) -> None:
    for tokenizer in (llama3, llama2, metas):
        copy = pickle.loads(pickle.dumps(tokenizer))
        text = "Once upon <|eot_id|> 你"
        assert (
            copy.encode(text, control=True) == tokenizer.encode(text, control=True) and copy.digest == tokenizer.digest
        )


# Refusals


def refusal(folder: Path) -> Refusal:
    with pytest.raises(Refusal) as caught:
        Tokenizer.from_folder(folder)
    return caught.value


def test_refused_folders(tmp_path: Path, data: Data) -> None:
    assert refusal(tmp_path).id == "tokenizer-missing"
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordPiece", "vocab": {}}}')
    assert refusal(tmp_path).id == "tokenizer-unsupported" and "WordPiece" in str(refusal(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    assert refusal(tmp_path).id == "file-not-json"
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": {"a": 2**31, "b": -1, "c": 0}}})
    )
    assert refusal(tmp_path).found == (f"'a': {2**31}", "'b': -1")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes((data.pieces / "tokenizer.model").read_bytes()[:5000])
    assert refusal(tmp_path).id == "tokenizer-unreadable"
    tiny.tiktoken_file(tmp_path / "tokenizer.model")
    lines = (tmp_path / "tokenizer.model").read_text().splitlines()
    (tmp_path / "tokenizer.model").write_text("\n".join([*lines[:300], "??? 300", *lines[301:]]))
    assert refusal(tmp_path).found == ("line 301",)
    (tmp_path / "tokenizer.model").write_text("\n".join(lines[:-5] + lines[-4:]))
    assert refusal(tmp_path).id == "tokenizer-unreadable"


@pytest.mark.parametrize("library", ["sentencepiece", "tiktoken"])
def test_a_missing_library_names_its_extra(
    library: str, tmp_path: Path, own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    if library == "tiktoken":
        tiny.tiktoken_file(tmp_path / "tokenizer.model")
    else:
        (tmp_path / "tokenizer.model").symlink_to(own.pieces / "tokenizer.model")
    caught = refusal(tmp_path)
    assert caught.id == "extra-missing" and "[meta]" in str(caught) and library in str(caught)


def test_damaged_json_is_refused_and_never_crashes(tmp_path: Path) -> None:
    import copy
    import random

    whole = json.loads(tiny.sentencepiece_like("first").to_str())
    config = {
        "bos_token": "<s>",
        "added_tokens_decoder": {"0": {"content": "<unk>"}},
        "chat_template": [{"name": "default", "template": "x"}],
    }
    junk = (None, True, -1, 1.5, 2**40, "", [], {}, [[]], {"a": 1}, "\ud800")
    rng = random.Random(0)
    outcomes = set()

    def damaged(value: Any) -> Any:
        value = copy.deepcopy(value)
        at, key = value, rng.choice(list(value))
        while isinstance(at[key], dict | list) and at[key] and rng.random() < 0.7:
            at = at[key]
            key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        at[key] = rng.choice(junk)
        return value

    for _ in range(250):
        files = {"tokenizer.json": whole, "tokenizer_config.json": config}
        victim = rng.choice(sorted(files))
        for name, value in (files | {victim: damaged(files[victim])}).items():
            (tmp_path / name).write_text(json.dumps(value))
        try:
            Tokenizer.from_folder(tmp_path).encode("Once <s> upon\n")
            outcomes.add("read")
        except Refusal as error:
            assert error.id.startswith(("tokenizer-", "file-"))
            outcomes.add(error.id)
    assert {"read", "tokenizer-unreadable"} <= outcomes


def test_the_codec_keeps_its_promise_of_size(metas: Tokenizer) -> None:
    assert isinstance(metas._codec, TiktokenCodec)
    assert [metas.token_id(metas.token(i)) for i in range(metas.vocab_size - 256, metas.vocab_size)] == list(
        range(metas.vocab_size - 256, metas.vocab_size)
    )
    with pytest.raises(IndexError):
        metas.token(metas.vocab_size)


def test_a_long_text_in_a_thread_becomes_the_same_ids_and_keeps_no_other_thread(tmp_path: Path) -> None:
    import threading
    import time
    from concurrent.futures import ThreadPoolExecutor

    tokenizer = Tokenizer.from_folder(tiny.llama3(tmp_path))
    text = "The quick brown fox, 1234 你好 🙂! " * 20_000
    began = time.perf_counter()
    want = tokenizer.encode(text)
    alone = time.perf_counter() - began
    gaps, over = [0.0], threading.Event()

    def watch() -> None:
        last = time.perf_counter()
        while not over.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    with ThreadPoolExecutor(2) as threads:
        watching = threads.submit(watch)
        assert threads.submit(tokenizer.encode, text).result() == want
        over.set()
        watching.result()
    assert max(gaps) < alone / 2
