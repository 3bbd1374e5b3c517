"""halter inspect: every token with its label, counts recounted here, nothing of the data acts on page or terminal."""

from __future__ import annotations

import json
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_data import Data, Own

from halter import recipe as recipes
from halter.cli import main
from halter.inspection import text as inspect_text
from halter.inspection.census import Inspection, inspect
from halter.inspection.page import page
from halter.inspection.text import ANSI, LEARNT, RESET, Look, bars, render, visible
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer
from halter.training import schedule

HOSTILE = "<script>alert(1)</script>\x1b[2J\x1b]0;owned\x07\u202egnp.exe\x00\"'&"


@pytest.fixture
def model(own: Own) -> str:
    return str(own.base)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def look(model: str, data: str, *overrides: str, **options: Any) -> Inspection:
    given = [f"model.path={model}", f"data.train={data}", "data.template=alpaca", "method.name=lora", *overrides]
    return inspect(recipes.load(None, given), **options)


ROWS = [{"instruction": f"Say {n}", "output": "word " * (n % 9 + 1)} for n in range(120)]


def test_every_token_and_count_is_what_training_sees(model: str, tmp_path: Path) -> None:
    """Recounted from the tokenised rows themselves, one by one."""
    rows = [*ROWS, {"instruction": "long", "output": "w " * 400}, {"instruction": "x"}, ROWS[0]]
    path = write(tmp_path / "a.jsonl", rows)
    found = look(model, path, "data.max_length=300", "train.max_steps=20", rows=4)
    tokenizer, data = found.job.tokenizer, found.job.data.train
    assert [row.origin for row in found.rows] == [f"{path}:{n}" for n in (1, 2, 3, 4)]
    for row, example in zip(found.rows, data):
        assert [token.id for token in row.tokens] == example.tokens.tolist()
        assert [token.learned for token in row.tokens] == example.supervised.tolist()
        assert "".join(token.text for token in row.tokens) == row.text
        assert row.text.endswith("</s>") and row.tokens[-1].learned and row.tokens[-1].control
        assert (row.bos, row.eos, row.learned) == (1, 1, example.targets)
    everything = [int(token) for example in data for token in example.tokens]
    learned = [int(t) for e in data for t, s in zip(e.tokens[1:], e.supervised[1:]) if s]
    for text, there, taught in found.census.controls:
        number = tokenizer.token_id(text)
        assert (there, taught) == (everything.count(number), learned.count(number))
    assert found.census.rows == len(data) == 121 and found.census.bos == found.census.eos == {1: 121}
    assert sum(count for _, _, count in found.histogram) == 121
    for low, high, count in found.histogram:
        assert count == sum(low <= len(example.tokens) <= high for example in data)
    assert found.faults == [("missing key output (has instruction)", 1, f"{path}:122")]
    fix = "data.on_bad=skip leaves them out and counts them"
    assert found.stops == [f"1 of 123 rows cannot be used ({fix})"]
    report = found.job.data.report
    assert (report.long_dropped, report.duplicates) == (1, 1) and report.long_shown[0].startswith(f"{path}:121: ")


def test_a_first_token_is_never_learnt(model: str, tmp_path: Path) -> None:
    """Rows given as tokens mark even their BOS; nothing before it could predict it, so it counts as not learned."""
    found = look(model, write(tmp_path / "a.jsonl", [{"input_ids": [1, 5, 6, 2]}] * 3))
    assert ("<s>", 3, 0) in found.census.controls and ("</s>", 3, 3) in found.census.controls
    assert [token.learned for token in found.rows[0].tokens] == [False, True, True, True]


def test_steps_and_schedule_are_those_of_the_run(model: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    found = look(
        model,
        path,
        "train.tokens_per_step=1000",
        "train.micro_tokens=400",
        "train.num_train_epochs=2",
        "train.warmup_steps=3",
        "train.learning_rate=0.01",
    )
    steps, job = found.steps, found.job
    planned = list(job.plan(0))
    micros = [micro for step in planned for micro in step]
    lengths = [len(example.tokens) for example in job.data.train]
    tokens = sum(lengths)
    assert (steps.per_epoch, steps.passes, steps.total) == (len(planned), len(micros), job.steps)
    assert steps.filled == pytest.approx(tokens / (400 * len(micros)))
    padded = sum(max(lengths[row] for row in micro) * len(micro) for micro in micros)
    assert steps.padding == pytest.approx(1 - tokens / padded)
    sizes = [sum(len(micro) for micro in step) for step in planned]
    assert steps.rows == (min(sizes), pytest.approx(sum(sizes) / len(sizes)), max(sizes))
    share = schedule.make("cosine", job.steps, 3)
    assert steps.course[0] == (1, pytest.approx(0.01 / 3))
    assert all(rate == pytest.approx(0.01 * share(step - 1)) for step, rate in steps.course)
    assert max(rate for _, rate in steps.course) == pytest.approx(0.01)


WARNED: list[tuple[str, list[Any], list[str], str]] = [
    (
        "double",
        [{"input_ids": [1, 1, 5, 6, 2]}] * 3 + [{"input_ids": [1, 5, 1, 6, 2]}],
        [],
        "3 of 4 rows have a double BOS",
    ),
    ("none", [{"input_ids": [5, 6, 7, 2]}] * 2, [], "2 of 2 rows have no BOS"),
    ("unended", [{"input_ids": [1, 5, 6]}], [], "1 of 1 rows do not end in a learned token that ends a generation"),
    ("masked", [{"input_ids": [1, 5, 2], "labels": [-100, 5, -100]}], [], "1 of 1 rows do not end in a learned token"),
    (
        "long",
        [{"text": "w " * 90}] + [{"text": "w"}] * 5,
        ["data.max_length=20"],
        "1 of 6 rows have more than 20 tokens and are left out",
    ),
    (
        "plain",
        [{"prompt": "a", "completion": "b"}] * 2,
        [],
        "2 of 2 rows are learned as plain text, without the chat template alpaca",
    ),
    ("equal", [{"text": "same"}] * 6, [], "5 of 6 rows repeat an earlier row and are kept"),
    ("bad", [{"text": "fine"}, "{"], ["data.on_bad=skip"], "1 of 2 rows cannot be used"),
]


@pytest.mark.parametrize(("name", "rows", "overrides", "wanted"), WARNED, ids=[case[0] for case in WARNED])
def test_warnings(model: str, tmp_path: Path, name: str, rows: list[Any], overrides: list[str], wanted: str) -> None:
    found = look(model, write(tmp_path / "a.jsonl", rows), *overrides)
    assert [text for text in found.warnings if wanted in text], found.warnings
    clean = look(model, write(tmp_path / "b.jsonl", ROWS))
    assert clean.warnings == [] and clean.stops == []


def test_a_pad_token_that_is_learnt_is_warned_of(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Tokenizer.from_folder

    def padded(*arguments: Any) -> Tokenizer:
        tokenizer = real(*arguments)
        tokenizer.pad_id = tokenizer.eos_id
        return tokenizer

    monkeypatch.setattr(Tokenizer, "from_folder", padded)
    found = look(model, write(tmp_path / "a.jsonl", ROWS))
    assert [w for w in found.warnings if "the pad token </s> is learned 120 times" in w]


def test_rows_by_their_origin(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", [*ROWS, {"instruction": "x", "output": ""}])
    found = look(model, path, chosen=[f"{path}:77", "a.jsonl:3"])
    assert [row.origin for row in found.rows] == [f"{path}:77", f"{path}:3"]
    assert "Say 76" in found.rows[0].text
    command = ["inspect", "--model", model, "--data", path, "--data.template", "alpaca", "--row", "a.jsonl:121"]
    assert main.run(command) == 2  # the row asked for cannot be shown; training would skip it
    assert "a.jsonl:121: empty output" in capsys.readouterr().err


def test_the_verb(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags as for train; text with marks where there is no colour; JSON; a page; code 2 where training would stop."""
    good, bad = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", [*ROWS, "{"])
    command = ["inspect", "--model", model, "--data.template", "alpaca", "--max-steps", "9", "--data"]
    assert main.run([*command, good, "--rows", "1"]) == 0
    text = capsys.readouterr().out
    for wanted in (
        f"{good}:1  ",
        "[</s>]",
        "Below is an instruction",
        "BOS tokens per row: 1 (120 rows)",
        "9 steps",
        "Read as\n  a.jsonl: asked: instruction; learned: output",
        "longest: ",
        "120 rows",
        "cosine",
        "packing: ",
    ):
        assert wanted in text, wanted
    assert "\x1b" not in text and "Training would stop" not in text
    assert main.run([*command, bad]) == 2
    assert "Training would stop\n- 1 of 121 rows cannot be used" in capsys.readouterr().out
    assert main.run([*command, good, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["report"]["kept"] == 120 and len(told["rows"]) == 3 and told["steps"]["total"] == 9
    assert main.run([*command, good, "--html", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert main.run(["inspect"]) == 2
    assert "nothing to inspect" in capsys.readouterr().err


def test_no_weights_are_read(model: str, tmp_path: Path) -> None:
    """A folder without them will do."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in Path(model).iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    assert look(str(folder), write(tmp_path / "a.jsonl", ROWS)).census.rows == 120


class Read(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_nothing_of_the_data_acts(model: str, tmp_path: Path) -> None:
    """Markup, terminal codes, turned text: shown, never obeyed; every span of the page is a token."""
    rows = [{"instruction": HOSTILE.replace("\x00", ""), "output": HOSTILE.replace("\x00", "")}, *ROWS]
    path = write(tmp_path / "a'<b>&\x1b[5m.jsonl", [*rows, {"instruction": "x", HOSTILE: 1}])
    found = look(model, path, "data.on_bad=skip", rows=2)
    for colour in (False, True):
        text = render(found, Look(colour=colour))
        for code in ANSI.values():
            text = text.replace(code, "") if code else text
        assert all(c.isprintable() or c == "\n" for c in text.replace(RESET, ""))
        assert "\\x1b[2J" in text and "\\x202e" in text
    html = page(found)
    read = Read(html)
    assert {"script", "img", "iframe", "link"}.isdisjoint(tag for tag, _ in read.tags)
    assert sum(tag == "b" for tag, _ in read.tags) == 7 + 2  # tiles and rows, and none of the file's name
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on") or name == "src"]
    assert "alert(1)" in read.words and "\x1b" not in html and "\u202e" not in html
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", html)
    tokens = [
        attributes for tag, attributes in read.tags if tag == "span" and "t" in str(attributes.get("class")).split()
    ]
    assert len(tokens) == sum(len(row.tokens) for row in found.rows)
    assert sum("l" in str(a["class"]).split() for a in tokens) == sum(row.learned for row in found.rows)
    ids = [int(re.search(r"id (\d+)", str(a["title"]))[1]) for a in tokens]  # type: ignore[index]
    assert ids == [token.id for row in found.rows for token in row.tokens]


def test_colour_marks_learnt_tokens(model: str, tmp_path: Path) -> None:
    found = look(model, write(tmp_path / "a.jsonl", ROWS), rows=1)
    text = render(found, Look(colour=True))
    (row,) = found.rows
    plain = [token for token in row.tokens if token.learned and not token.control]
    assert text.count(ANSI[LEARNT]) == len(plain)
    assert "".join(visible(t.text) for t in row.tokens if t.learned) in re.sub(r"\x1b\[[\d;]*m|\||\n {2}", "", text)
    assert all(len(line) <= 60 for line in _token_lines(render(found, Look(width=60))))


def _token_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.endswith("|")]


@pytest.mark.parametrize("share", np.linspace(0, 1, 33).tolist())
def test_bars_are_as_long_as_they_say(share: float) -> None:
    eighths = {"█": 8} | {sign: number for number, sign in enumerate("▏▎▍▌▋▊▉", 1)}
    assert sum(eighths[c] for c in bars(share, 40, True)) == pytest.approx(share * 320, abs=1)
    assert len(bars(share, 40, False)) == pytest.approx(share * 40, abs=1)
    assert bars(1e-9, 40, True) and bars(1e-9, 40, False) == "#" and not bars(0.0, 40, True)


def test_without_block_characters_it_is_ascii(model: str, tmp_path: Path) -> None:
    body = render(look(model, write(tmp_path / "a.jsonl", ROWS), rows=1), Look(blocks=False))
    assert body.split("Labels")[1].isascii()
    assert inspect_text.HEIGHT == sum("|" not in line for line in body.split("Learning rate\n")[1].splitlines()) - 1


def test_many_rows_are_inspected_and_kept(
    data: Data, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows like Alpaca's and GSM8K's, and the real ones: rows a second, first tokenised, then from the cache."""
    monkeypatch.setenv("HALTER_CACHE", str(tmp_path))
    for path, *columns in (
        (data.alpaca,),
        (data.sums, "data.columns={instruction: question, output: answer}"),
    ):
        seconds = []
        for _ in range(2):
            start = time.process_time()
            found = look(model, str(path), "data.on_bad=skip", "data.max_length=512", *columns)
            seconds.append(time.process_time() - start)
        rows = found.job.data.report.rows
        print(f"{path.name}: {rows:,} rows, {rows / seconds[0]:,.0f} a second, {rows / seconds[1]:,.0f} from the cache")
        assert found.job.data.report.cached == rows


@pytest.mark.nightly
def test_a_hundred_thousand_rows(data: Data, model: str, tmp_path: Path) -> None:
    """Alpaca's sample many times over, every row another."""
    source = [json.loads(line) for line in data.alpaca.read_text("utf-8").splitlines()]
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(100_000):
            row = source[number % len(source)]
            file.write(json.dumps({**row, "instruction": f"{row['instruction']} ({number})"}) + "\n")
    start, spent = time.perf_counter(), sum(os.times()[:4])
    found = look(model, str(path), "data.on_bad=skip", "data.max_length=512")
    text = render(found, Look())
    seconds = sum(os.times()[:4]) - spent  # of one core, its helpers' included: others may use the cores as well
    print(f"100,000 rows inspected in {seconds:.1f} s of one core, {time.perf_counter() - start:.1f} s by the clock")
    assert found.job.data.report.rows == 100_000 and len(text) > 1000
    assert ChatTemplate.builtin("alpaca").digest == found.job.template.digest  # type: ignore[union-attr]
