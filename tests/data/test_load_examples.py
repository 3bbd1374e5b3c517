"""From files to rows of tokens: labels, long rows, bad rows, validation, limits; and the real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_tokenizers as tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from own_data import Data, Real

from halter.data import row_files
from halter.data.choose import hold_out, sample, without
from halter.data.encode import Encoder
from halter.data.example import Example
from halter.data.examples import Builder, Examples
from halter.data.formats import Canonical
from halter.data.load import Loaded, load_examples
from halter.data.options import DataOptions, Source
from halter.data.progress import spoken
from halter.errors import Refusal
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(tiny.llama3(tmp_path_factory.mktemp("llama3")))


@pytest.fixture(scope="module")
def stories(data: Data) -> Tokenizer:
    return Tokenizer.from_folder(data.base)


ALPACA = ChatTemplate.builtin("alpaca")
LLAMA3 = ChatTemplate.builtin("llama-3")


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def load(tokenizer: Tokenizer, template: ChatTemplate | None = None, seed: int = 0, **options: Any) -> Loaded:
    return load_examples(DataOptions(**options), tokenizer, template, seed)


def learnt(tokenizer: Tokenizer, example: Example) -> str:
    """The words that are learnt, control tokens shown."""
    return tokenizer.decode(example.tokens[example.supervised].tolist(), skip_control=False)


def text_rows(tokenizer: Tokenizer, path: Path, lengths: list[int]) -> str:
    """Rows of exactly these lengths in tokens: BOS, 4 of prompt, answer, EOS."""
    rows = [
        [tokenizer.bos_id, 5, 6, 7, 8, *(9 + place % 90 for place in range(length - 6)), tokenizer.eos_id]
        for length in lengths
    ]
    return write(path, [{"input_ids": row, "labels": [-100] * 5 + row[5:]} for row in rows])


def test_labels_of_a_conversation(llama3: Tokenizer, tmp_path: Path) -> None:
    """Every answer with its end of turn; calls but not what tools return; not what says loss: false."""
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "No answer.", "loss": False},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "Sunny."},
        {"role": "assistant", "content": "Sun."},
    ]
    path = write(tmp_path / "a.jsonl", [{"messages": turns}])
    example = load(llama3, LLAMA3, train=path).train[0]
    called = learnt(llama3, example).removesuffix("<|eot_id|>Sun.<|eot_id|>")
    assert json.loads(called) == {"name": "weather", "parameters": {"city": "Rome"}}
    assert example.tokens[0] == llama3.bos_id and (example.tokens == llama3.bos_id).sum() == 1
    last = load(llama3, LLAMA3, train=path, train_on="last_response").train[0]
    assert learnt(llama3, last) == "Sun.<|eot_id|>"
    every = load(llama3, LLAMA3, train=path, train_on="all").train[0]
    said = learnt(llama3, every)
    assert "Two?" in said and "Sunny." in said and "No answer." not in said


@pytest.mark.parametrize(
    ("row", "what_is_learnt", "of_all"),
    [
        ({"prompt": "Ask:", "completion": " ok"}, " ok<|eot_id|>", "Ask: ok<|eot_id|>"),
        ({"instruction": "Ask", "output": "ok"}, "ok<|eot_id|>", "### Response:\nok<|eot_id|>"),
        ({"text": "once upon"}, "once upon<|eot_id|>", "once upon<|eot_id|>"),
        ({"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}, "7", "7"),
    ],
)
def test_labels_of_the_other_formats(
    llama3: Tokenizer, tmp_path: Path, row: dict[str, Any], what_is_learnt: str, of_all: str
) -> None:
    path = write(tmp_path / "a.jsonl", [row])
    for train_on, wanted in (("responses", what_is_learnt), ("all", of_all)):
        example = load(llama3, ALPACA, train=path, train_on=train_on).train[0]
        if "input_ids" in row:
            assert example.tokens.tolist() == [5, 6, 7] and example.supervised.tolist() == [False, False, True]
        else:
            said = learnt(llama3, example)
            assert said.endswith(wanted) and (train_on == "all" or said == wanted)


def test_control_tokens_in_content_stay_text(llama3: Tokenizer, tmp_path: Path) -> None:
    rows = [{"prompt": "<|eot_id|>", "completion": "<|begin_of_text|>x<|eot_id|>"}, {"text": "a<|eot_id|>b"}]
    paths = [write(tmp_path / f"{number}.jsonl", [row]) for number, row in enumerate(rows)]
    for example in load(llama3, train=tuple(Source(path) for path in paths)).train:
        ids = example.tokens.tolist()
        assert ids.count(llama3.bos_id) == 1 and ids.count(llama3.eos_id) == 1
        assert ids[0] == llama3.bos_id and ids[-1] == llama3.eos_id


def test_a_conversation_needs_a_template(llama3: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no-template"):
        load(llama3, train=write(tmp_path / "a.jsonl", [{"instruction": "Q", "output": "A"}]))


def planted(path: Path) -> dict[int, str]:
    """2,000 lines with 100 faults of 10 kinds and 40 empty lines; {line: kind}."""
    good = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}

    def said(answer: Any) -> str:
        return json.dumps({"messages": [good["messages"][0], {"role": "assistant", "content": answer}]})

    unlearnt = {"messages": [good["messages"][0], {"role": "assistant", "content": "A", "loss": False}]}
    bad = {
        "broken JSON": b'{"messages": ',
        "NUL byte": b'{"messages": "\0"}',
        "invalid UTF-8": b'{"messages": "\xff"}',
        "lone surrogate": said("\ud800").encode(),
        "missing key": b'{"message": []}',
        "wrong type": said(3).encode(),
        "empty answer": said("").encode(),
        "missing answer": json.dumps({"messages": good["messages"][:1]}).encode(),
        "no token to learn": json.dumps(unlearnt).encode(),
        "a line of": b'{"messages": "' + b"x" * (1 << 16) + b'"}',
    }
    places = np.random.default_rng(0).permutation(np.arange(2, 2001))[:140].tolist()
    kinds = {line: list(bad)[n % 10] if n < 100 else "empty line" for n, line in enumerate(places)}
    with path.open("wb") as file:
        for line in range(1, 2001):
            kind = kinds.get(line)
            file.write((b"" if kind == "empty line" else bad[kind] if kind else json.dumps(good).encode()) + b"\n")
    return kinds


def test_planted_faults_are_all_found_in_one_pass(
    llama3: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "MAX_LINE_BYTES", 1 << 16)  # 8 MiB in truth; the other lines are far below either
    path = tmp_path / "rows.jsonl"
    kinds = planted(path)
    with pytest.raises(Refusal) as caught:
        load(llama3, ALPACA, train=str(path))
    assert caught.value.id == "bad-rows" and "100 of 1960 rows" in str(caught.value)
    told = {int(o.removeprefix(f"{path}:").split(":")[0]): o.split(": ", 1)[1] for o in caught.value.found}
    assert len(caught.value.found) == 140 and told.keys() == kinds.keys()
    assert all(told[line].startswith(kind) for line, kind in kinds.items())
    loaded = load(llama3, ALPACA, train=str(path), on_bad="skip")
    report = loaded.report
    assert len(loaded.train) == report.kept == 1860 and (report.bad, report.empty_lines) == (100, 40)
    assert {int(origin.rsplit(":", 1)[1]) for origin in map(loaded.train.origin, range(1860))}.isdisjoint(kinds)
    assert "1860 rows" in str(report) and "100 bad skipped" in str(report)
    assert json.loads(json.dumps(report.as_dict()))["faults"][0].startswith(f"{path}:")


LIMIT = 40


@pytest.mark.parametrize("policy", ["drop", "cut", "split", "stop"])
def test_long_rows(llama3: Tokenizer, tmp_path: Path, policy: str) -> None:
    """1,000 rows around the limit: -1, 0, +1, x2, x50; each policy does what it says, and counts it."""
    lengths = [LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT, 50 * LIMIT] * 200
    path = text_rows(llama3, tmp_path / "a.jsonl", lengths)
    if policy == "stop":
        for on_bad in ("stop", "skip"):  # what is long is not bad: to skip bad rows does not hide it
            with pytest.raises(Refusal) as caught:
                load(llama3, train=path, max_length=LIMIT, on_long=policy, on_bad=on_bad)
            assert caught.value.id == "long-rows" and len(caught.value.found) == 600
            assert caught.value.found[0] == f"{path}:3: 41 tokens"
        return
    loaded = load(llama3, train=path, max_length=LIMIT, on_long=policy)
    report, got = loaded.report, loaded.train.lengths.tolist()
    assert report.long == 600 and report.longest_seen == 50 * LIMIT and max(got) <= LIMIT
    counted = {"drop": report.long_dropped, "cut": report.long_cut, "split": report.long_split}
    assert counted == {**dict.fromkeys(counted, 0), policy: 600}
    words = {"drop": "dropped", "cut": "cut", "split": "split"}
    assert f"600 too long {words[policy]} (the longest has 2000 tokens)" in str(report)
    if policy == "drop":
        assert got == [LIMIT - 1, LIMIT] * 200
    elif policy == "cut":
        assert got == [LIMIT - 1, *[LIMIT] * 4] * 200
    assert all(example.targets for example in loaded.train)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(2, 200), st.booleans())
def test_split_learns_every_token_once(llama3: Tokenizer, most: int, length: int, opens: bool) -> None:
    """However a long text is split, its pieces learn its targets, each once and in order, from the token before it."""
    tokens = np.arange(10_000, 10_000 + length, dtype=np.int32)
    if opens:
        tokens[0] = llama3.bos_id
    supervised = np.ones(length, bool)
    encoder = Encoder(DataOptions(train="x", max_length=most, on_long="split"), llama3, None)
    pieces = encoder.fitted(Example(tokens, supervised, "x:1"), Canonical(text="x"))
    assert all(len(piece.tokens) <= most for piece in pieces)
    got = [(int(p.tokens[i - 1]), int(p.tokens[i])) for p in pieces for i in range(1, len(p.tokens)) if p.supervised[i]]
    if length <= most:
        assert len(pieces) == 1
    if most == 1 and length > 1:
        assert not pieces
    else:
        assert got == list(zip(tokens.tolist(), tokens.tolist()[1:]))
    if opens and most > 2:
        assert all(piece.tokens[0] == llama3.bos_id for piece in pieces)


def test_no_answer_is_cut_away_entirely(llama3: Tokenizer, tmp_path: Path) -> None:
    """A prompt that fills the whole row is dropped and counted, whatever the policy; conversations are never split."""
    rows = [{"prompt": "word " * 60, "completion": "answer"}, {"prompt": "a", "completion": "word " * 60}]
    path = write(tmp_path / "a.jsonl", rows)
    cut = load(llama3, train=path, max_length=30, on_long="cut")
    assert (len(cut.train), cut.report.long_cut, cut.report.long_dropped) == (1, 1, 1)
    assert cut.train.origin(0) == f"{path}:2" and cut.train[0].targets > 20
    with pytest.raises(Refusal, match="no-rows"):
        load(llama3, train=path, max_length=30, on_long="split")


@pytest.mark.parametrize("share", [0.01, 0.25, 0.9])
def test_a_share_is_held_out_and_never_trained_on(llama3: Tokenizer, tmp_path: Path, share: float) -> None:
    """80 different texts, each twice, some split: the share is of the different ones; nothing is in both."""
    rows = [{"text": f"{n} " * (30 if n % 8 == 0 else 3)} for n in range(80)] * 2
    path = write(tmp_path / "a.jsonl", rows)
    options = {"train": path, "max_length": 40, "on_long": "split", "validation": share}
    one = load(llama3, seed=1, **options)
    lines = [{int(e.origin.rsplit(":", 1)[1]) for e in part} for part in (one.train, one.validation)]
    texts = [{(line - 1) % 80 for line in part} for part in lines]
    assert not texts[0] & texts[1] and texts[0] | texts[1] == set(range(80))
    assert len(texts[1]) == len(lines[1]) == max(1, round(share * 80))
    assert not {e.tokens.tobytes() for e in one.train} & {e.tokens.tobytes() for e in one.validation}
    again, other = load(llama3, seed=1, **options), load(llama3, seed=2, **options)
    assert [e.origin for e in again.validation] == [e.origin for e in one.validation]
    assert share == 0.9 or [e.origin for e in other.validation] != [e.origin for e in one.validation]


def test_a_validation_file_is_taken_out_of_training(llama3: Tokenizer, tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", [{"text": f"story {n}"} for n in range(20)] + [{"text": "story 3"}])
    held = write(tmp_path / "b.jsonl", [{"text": "story 3"}, {"text": "story 30"}, {"text": "story 5"}])
    loaded = load(llama3, train=train, validation=held)
    assert (len(loaded.train), len(loaded.validation), loaded.report.overlap_dropped) == (18, 3, 3)
    assert "3 also in validation dropped" in str(loaded.report)
    with pytest.raises(Refusal, match="no-rows"):
        load(llama3, train=held, validation=held)
    tale = " ".join(f"w{n}" for n in range(60))  # its first piece is held out, and so none of it is trained on
    long = {"train": write(tmp_path / "d.jsonl", [{"text": tale}, {"text": "b"}]), "max_length": 40, "on_long": "split"}
    begun = load(llama3, **long, validation=write(tmp_path / "e.jsonl", [{"text": tale.replace("w59", "end")}]))
    assert [e.origin for e in begun.train] == [f"{tmp_path}/d.jsonl:2"] and begun.report.overlap_dropped > 1
    bad = write(tmp_path / "c.jsonl", [{"text": "fine"}, "{"])
    with pytest.raises(Refusal) as caught:
        load(llama3, train=train, validation=bad)
    assert caught.value.id == "bad-rows" and caught.value.found[0].startswith(f"{bad}:2: broken JSON")


def test_limits_choose_by_the_seed_and_several_sources_are_mixed(llama3: Tokenizer, tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [{"text": f"a {n}"} for n in range(100)])
    b = write(tmp_path / "b.jsonl", [{"instruction": f"b {n}", "output": "x"} for n in range(50)])
    mixed = load(llama3, ALPACA, train=(Source(a, weight=0.5), Source(b + "#20", weight=2.0)))
    assert mixed.report.sources == {a: 100, b: 50} and mixed.report.left_out == 30
    assert mixed.train.weights.tolist() == [0.5] * 100 + [2.0] * 20
    for seed in (1, 2):
        some = load(llama3, train=a, seed=seed, limit=10)
        lines = [int(e.origin.rsplit(":", 1)[1]) for e in some.train]
        assert len(set(lines)) == 10 and lines == sorted(lines) and lines != list(range(1, 11))
    assert [e.origin for e in load(llama3, train=a, seed=1, limit=10).train] != [e.origin for e in some.train]
    assert len(load(llama3, ALPACA, train=(Source(a), Source(b, limit=5)), limit=60).train) == 60


def test_a_name_that_ends_like_a_sample_is_a_name_where_it_exists(llama3: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    (tmp_path / "d#1").mkdir()
    (tmp_path / "d#1" / "a.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    assert len(load(llama3, train=path + "#1").train) == 1 and len(load(llama3, train=str(tmp_path / "d#1")).train) == 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(1, 60), st.integers(0, 2**33))
def test_sampling_in_one_pass(count: int, most: int, seed: int) -> None:
    chosen, seen = sample(iter(range(count)), most, seed, 0)
    assert seen == count and len(chosen) == min(most, count) and chosen == sorted(set(chosen))
    fewer, _ = sample(range(count), max(1, most // 2), seed, 0)
    assert set(fewer) <= set(chosen)  # a smaller limit is a part of a larger one


def test_sampling_is_fair() -> None:
    often = np.zeros(20)
    for seed in range(2000):
        often[sample(range(20), 5, seed, 0)[0]] += 1
    assert np.abs(often - 500).max() < 5 * (2000 * 0.25 * 0.75) ** 0.5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_holding_out_parts_the_rows(kinds: list[tuple[int, int]], share: float) -> None:
    """Documents of one to three rows, many equal: each goes whole to one side, and no text is on both."""
    examples = [
        (Example(np.array([kind, piece], np.int32), np.ones(2, bool), f"x:{document}"), document)
        for document, (kind, pieces) in enumerate(kinds)
        for piece in range(pieces)
    ]
    builder = Builder()
    for example, document in examples:
        builder.add(example, document)
    train, validation = hold_out(builder.examples(), share, 0)
    sides = [{tuple(kinds[int(d)]) for d in part.documents} for part in (train, validation)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(kinds)
    assert len(sides[1]) == min(len(set(kinds)), max(1, round(share * len(set(kinds)))))
    held = {e.tokens.tobytes() for e in validation}
    assert not held & {e.tokens.tobytes() for e in without(train, validation)}


def test_a_template_that_fails_for_every_row_is_said_once(llama3: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"instruction": f"Q{n}", "output": "A"} for n in range(3)])
    broken = ChatTemplate.from_source("{{ raise_exception('never') }}")
    with pytest.raises(Refusal) as caught:
        load(llama3, broken, train=path, on_bad="skip")
    assert caught.value.id == "template-failed"
    fault = "{% if 'Q1' in messages[0]['content'] %}{{ 1 / 0 }}{% endif %}"
    picky = ChatTemplate.from_source(tiny.CHATML_TEMPLATE + fault)
    loaded = load(llama3, picky, train=path, on_bad="skip")
    assert [e.origin for e in loaded.train] == [f"{path}:1", f"{path}:3"] and loaded.report.bad == 1


def test_progress_is_told(llama3: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": f"a {n}"} for n in range(250)])
    told: list[int] = []
    load_examples(DataOptions(train=path), llama3, None, 0, told.append)
    assert told == [0, 100, 200]


def test_progress_is_said_of_long_waits_only() -> None:
    said: list[str] = []
    now = [0.0]
    tell = spoken(said.append, lambda: now[0])
    for second in range(31):
        now[0] = float(second)
        tell(second * 1000)
    assert said == [f"tokenised {n},000 rows, 1,000 a second" for n in (2, 12, 22)]


def test_no_examples_are_examples_too() -> None:
    empty = Examples()
    assert len(empty) == 0 and list(empty) == [] and empty.lengths.tolist() == [] and len(empty.select([])) == 0


FILES = [  # file, template, {source: (rows, bad)}
    ("alpaca", "alpaca", {"own": (2500, 2), "real": (5000, 2)}),
    ("identity", "llama-2", {"own": (200, 0), "real": (500, 0)}),
    ("stories", None, {"own": (200, 0), "real": (2000, 0)}),
]
REAL = [  # file, template, rows, bad
    ("instruct/alpaca_gpt4_demo_en.jsonl", "vicuna", 999, 0),
    ("text/c4_demo.jsonl", None, 300, 0),
]


@pytest.mark.parametrize(("name", "template", "counted"), FILES, ids=[name for name, *_ in FILES])
def test_whole_files(
    data: Data, stories: Tokenizer, name: str, template: str | None, counted: dict[str, tuple[int, int]]
) -> None:
    counts(getattr(data, name), stories, template, *counted[data.name])


@pytest.mark.parametrize(("name", "template", "rows", "bad"), REAL, ids=[name for name, *_ in REAL])
def test_real_files(real: Real, name: str, template: str | None, rows: int, bad: int) -> None:
    counts(real.folder / name, Tokenizer.from_folder(real.base), template, rows, bad)


def counts(path: Path, stories: Tokenizer, template: str | None, rows: int, bad: int) -> None:
    chosen = None if template is None else ChatTemplate.builtin(template)
    loaded = load(stories, chosen, train=str(path), on_bad="skip", max_length=100_000)
    report = loaded.report
    assert (report.rows, report.bad, report.kept) == (rows, bad, rows - bad)
    assert report.tokens == sum(len(e.tokens) for e in loaded.train)
    for example in loaded.train[:200]:
        assert example.tokens[0] == stories.bos_id and not example.supervised[0]
        assert example.tokens[-1] == stories.eos_id and example.supervised[-1]


def test_the_mark_of_the_first_run(data: Data, stories: Tokenizer) -> None:
    """stories260K on TinyStories: 800 of the 2,000 rows are longer than 512 tokens, and are cut, not lost."""
    report = load(stories, ALPACA, train=str(data.train), max_length=512, on_long="cut").report
    rows, cut = {"real": (2000, 800), "own": (400, 187)}[data.name]
    assert (report.rows, report.kept, report.long_cut, report.long_dropped) == (rows, rows, cut, 0)
    assert report.longest == 512


def test_tool_calls_in_sharegpts_spelling(data: Data, llama3: Tokenizer) -> None:
    """Glaive in ShareGPT's spelling: calls and answers are learnt, questions and observations are not."""
    path = data.tool_calls
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    loaded = load(llama3, LLAMA3, train=str(path), max_length=100_000)
    assert len(loaded.train) == len(rows) == {"real": 300, "own": 150}[data.name]
    calls = 0
    for row, example in zip(rows, loaded.train):
        said = learnt(llama3, example).split("<|eot_id|>")
        turns = [turn for turn in row["conversations"] if turn["from"] in ("gpt", "function_call")]
        assert len(said) == len(turns) + 1 and said[-1] == ""
        for turn, words in zip(turns, said):
            if turn["from"] == "gpt":
                assert words == turn["value"].strip()
            else:
                call = json.loads(turn["value"])
                assert json.loads(words) == {"name": call["name"], "parameters": call["arguments"]}
                calls += 1
    assert calls == {"real": 211, "own": 144}[data.name]


def test_preference_and_other_files_are_refused(data: Data, stories: Tokenizer) -> None:
    for name, id in (("preferences", "data-preference"), ("questions", "data-format")):
        with pytest.raises(Refusal) as caught:
            load(stories, ALPACA, train=str(getattr(data, name)))
        assert caught.value.id == id
