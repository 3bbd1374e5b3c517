"""Rows with pictures train, are scored and compared with what was read in these; and the commands that ask."""

from __future__ import annotations

import io
import json

import pytest
import reading_by_hand as by_hand
import seeing

import halter
from halter.cli import main
from halter.comparison.options import CompareOptions
from halter.comparison.setup import set_up
from halter.data.cache import cache_folder
from halter.data.load import RowSight, load_examples
from halter.data.options import DataOptions
from halter.errors import Refusal
from halter.playground import base_folder
from halter.readers import frame, named
from halter.readers.reader import PictureReader
from halter.readers.readings import readings
from halter.text.tokenizer import Tokenizer

READ = f"{frame.TEXT}\nRGB, 8 by 8\n{frame.END}\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(seeing.folder(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("HALTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(named, "_registered", {})
    named.register(PictureReader("length", by_hand.length))
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(seeing.saved(seeing.pixels(n)))
    return tmp_path


def loaded(tokenizer, here, *rows, rules=None, **options):
    file = here / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"train": str(file), "readers": ("length",)} | options
    return load_examples(DataOptions(**given), tokenizer, tokenizer.chat_template, sight=RowSight(rules))


def ids(examples):
    return [(one.tokens.tolist(), one.supervised.tolist()) for one in examples]


def talk(content):
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "A lamp."}]


def part(name):
    return {"type": "image", "path": name}


def text(words):
    return {"type": "text", "text": words}


ROWS = [
    ({"image": "0.png", "messages": talk("<image>\nWhat?")}, {"messages": talk(f"{READ}What?")}),
    ({"messages": talk([part("0.png"), text("What?")])}, {"messages": talk(f"{READ}What?")}),
    ({"messages": talk([text("See: "), part("0.png")])}, {"messages": talk(f"See: \n{READ}")}),
    ({"image": "0.png", "prompt": "What?", "completion": " A."}, {"prompt": f"{READ}What?", "completion": " A."}),
    (
        {"images": ["0.png", "1.png"], "prompt": "See <image>\nor <image>?", "completion": " A."},
        {"prompt": f"See \n{READ[:-1]}\nor \n{READ}?", "completion": " A."},
    ),
    ({"image": "0.png", "text": "A story."}, {"text": f"{READ}A story."}),
]


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_a_row_is_what_it_would_be_with_the_text_written_out(number, tokenizer, here) -> None:
    row, written = ROWS[number]
    (read,), (plain,) = (loaded(tokenizer, here, one).train for one in (row, written))
    assert ids([read]) == ids([plain]) and not read.pictures


def test_where_the_model_sees_the_picture_stays_behind_the_text(tokenizer, here) -> None:
    rules = seeing.SquareRules(tokenizer.token_id(seeing.NAMES[0]))
    for row, _ in ROWS:
        (read,) = loaded(tokenizer, here, row, rules=rules).train
        (alone,) = loaded(tokenizer, here, row, rules=rules, readers=()).train
        assert [one.digest for one in read.pictures] == [one.digest for one in alone.pictures]
        before = tokenizer.decode(read.tokens[: read.pictures[0].start].tolist())
        assert before.rstrip().endswith(READ.rstrip())


def test_faults_cuts_and_what_no_reader_can_do_are_told(tokenizer, here) -> None:
    named.register(PictureReader("cut", lambda picture: "word " * 99, characters=9))
    report = loaded(tokenizer, here, ROWS[0][0], readers=("cut", "length")).report
    assert report.notes["readings_cut"] == 1
    for row, words in (
        ({"image": "none.png", "messages": talk("<image>\nWhat?")}, "no such file (picture 1, none.png)"),
        ({"image": "0.png", "input_ids": [5, 6, 7]}, "no reader can write"),
    ):
        with pytest.raises(Refusal) as refused:
            loaded(tokenizer, here, row)
        assert refused.value.id == "bad-rows" and words in refused.value.found[0]
    with pytest.raises(Refusal, match="reader-unknown"):
        loaded(tokenizer, here, {"text": "no picture"}, readers=("ocd",))


def test_a_picture_that_came_to_show_something_else_is_read_anew(tokenizer, here) -> None:
    """Rows with readers are not in the cache of rows, whatever their size; what was read is kept by what is shown."""
    rows = [{**ROWS[0][0], "note": "x" * (1 << 19)}]
    first = ids(loaded(tokenizer, here, *rows).train)
    assert not (cache_folder() / "tokenised").exists()
    (here / "0.png").write_bytes(seeing.saved(seeing.pixels(0, 8, 24)))
    assert ids(loaded(tokenizer, here, *rows).train) != first


def lines(here, count=4):
    rows = [{"image": f"{n % 3}.png", "messages": talk("<image>\nWhat is it?")} for n in range(count)]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return here / "rows.jsonl"


def typed(capsys, *words, code=0):
    found = main.run([str(word) for word in words])
    told = capsys.readouterr()
    assert found == code, told.err
    return told.out + told.err if code else told.out


@pytest.fixture
def base():
    return base_folder()


@pytest.fixture
def program(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return by_hand.tesseract(tmp_path / "bin")


def test_a_run_learns_and_is_asked_and_scored_as_it_learned(base, here, program, capsys, monkeypatch) -> None:
    """Where generate, chat and evaluate are told no reader it is the training's."""
    run, rows = here / "run", lines(here)
    words = ("train", "--model", base, "--data", rows, "--method", "lora", "--output-dir", run, "--max-steps", 1)
    typed(capsys, *words, "data.readers=[ocr]", "--device", "cpu")
    assert len(program.read_text().splitlines()) == 3  # pictures
    short = ("--max-new-tokens", 2, "--device", "cpu")
    asked = ("generate", run, "--image", here / "0.png", "--prompt", "What is it?", *short, "--json")
    read = json.loads(typed(capsys, *asked))
    plain = f"{frame.TEXT}\nTotal: 5\n{frame.END}\nWhat is it?"
    assert read["answer"] == json.loads(typed(capsys, "generate", run, "--prompt", plain, *short, "--json"))["answer"]
    told = json.loads(typed(capsys, "generate", run, "--input", rows, *short, "--json").splitlines()[0])
    assert told["answer"] == read["answer"]
    assert "[pictures-unseen]" in typed(capsys, *asked, "--reader", "none", code=2)
    scored = json.loads(typed(capsys, "evaluate", run, "--data", rows, "--output", here / "scored", "--json", *short))
    assert scored["rows"] == 4
    blind = ("evaluate", run, "--data", rows, "--pictures", "withheld", "--json", *short)
    asked_without = json.loads(typed(capsys, *blind, "--output", here / "blind"))
    unread = (*blind[:4], "data.readers=[]", "--allow", "pictures-unseen", "--json", *short)
    assert asked_without["adapter"] == json.loads(typed(capsys, *unread, "--output", here / "unread"))["adapter"]
    assert asked_without["adapter"]["loss"] != scored["adapter"]["loss"]
    shuffled = ("evaluate", run, "--data", rows, "--pictures", "shuffled", "--output", here / "shuffled")
    assert "[evaluation-options]" in typed(capsys, *shuffled, code=2)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/image {here / '1.png'}\nWhat is it?\n/quit\n"))
    said = typed(capsys, "chat", run, *short)
    assert f"{frame.TEXT}\nTotal: 5\n{frame.END}" in said and "read, and not seen. Now ask about it." in said
    assert len(program.read_text().splitlines()) == 3
    monkeypatch.setenv("PATH", "")
    typed(capsys, "generate", run, "--prompt", "No picture?", *short)  # nothing to read, nothing to install
    assert "[extra-missing]" in typed(capsys, *asked, code=2)


def test_a_base_is_asked_with_readers(base, here, program, capsys, monkeypatch) -> None:
    short = ("--max-new-tokens", 2, "--device", "cpu")
    asked = ("--image", here / "0.png", "--prompt", "What is it?", *short)
    assert "[pictures-unseen]" in typed(capsys, "generate", base, *asked, code=2)
    typed(capsys, "generate", base, *asked, "--reader", "ocr:layout=3")
    assert "--psm 3" in program.read_text()
    assert "[reader-unknown]" in typed(capsys, "generate", base, *asked, "--reader", "ocd", code=2)
    monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\n/quit\n"))
    said = typed(capsys, "chat", base, "--image", here / "0.png", "--reader", "ocr", *short)
    assert "Total: 5" in said
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/image {here / '0.png'}\n/quit\n"))
    assert "[pictures-unseen]" in typed(capsys, "chat", base, *short)


def test_a_comparison_is_another_when_another_text_is_read(base, here, program, capsys) -> None:
    named.register(PictureReader("colours", lambda picture: str(picture.getpixel((0, 0)))))
    data = {"train": str(lines(here, 3)), "readers": ["colours"]}
    source = {"model": {"path": str(base), "device": "cpu"}, "data": data}
    test = here / "test.jsonl"
    (here / "test.png").write_bytes(seeing.saved(seeing.pixels(7)))
    test.write_text(json.dumps({"image": "test.png", "messages": talk("<image>\nWhich?")}))
    found = []
    for name in ("one", "same", "other"):
        if name == "other":
            (here / "test.png").write_bytes(seeing.saved(seeing.pixels(8)))
        setup = set_up(source, "lora", CompareOptions(test=str(test)), here / name, lambda _: None)
        found.append(dict(setup.splits.digests))
    one, same, other = found
    assert one == same and {part for part in one if one[part] != other[part]} == {"pictures"}


def test_python_trains_with_a_function_that_is_registered(base, here) -> None:
    made = readings.made
    recipe = {"model": {"path": str(base), "device": "cpu"}, "method": "lora", "train": {"max_steps": 1}}
    recipe |= {"data": {"train": str(lines(here)), "readers": ["length"]}, "output_dir": str(here / "run")}
    halter.train(recipe, say=lambda _: None)
    assert readings.made >= made
