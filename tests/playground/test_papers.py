"""Papers: equal on every machine, legible from pixels alone, true answers, a layout and names kept for the test."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from halter.errors import Refusal
from halter.playground import paper_tasks, papers, sheets
from halter.playground.bases import base_folder
from halter.playground.papers import CLOSED, COPIED, KINDS, LAYOUTS, UNSEEN
from halter.playground.sheets import FONT, HIGH, SIDE, WIDE
from halter.playground.words import Dice
from halter.text.tokenizer import Tokenizer

SEEDS = st.integers(0, 2**32)
SPLITS = st.sampled_from(papers.SPLITS)
DIGEST = "eb40913fec2118a0f9f7e9a1c2f0373fb84516598b69633cc91c55145e36e251"


def read(paper: papers.Paper) -> list[str]:
    """The lines by the picture shrunk to one pixel a point: bands of rows with ink, cells that look like letters."""
    small = Image.fromarray(paper.draw()).resize((SIDE, SIDE), Image.Resampling.BOX)
    share = (paper.ground[0] - np.array(small)[..., 0].astype(float)) / (paper.ground[0] - paper.ink[0])
    mixed = (11 * np.eye(SIDE) + 2.5 * np.eye(SIDE, k=1) + 2.5 * np.eye(SIDE, k=-1)) / 16  # a pixel and its neighbours
    mixed[0, 0] = mixed[-1, -1] = 13.5 / 16
    inked = np.linalg.solve(mixed, np.linalg.solve(mixed, share).T).T
    assert np.minimum(abs(inked), abs(inked - 1)).max() < 0.2
    inked = inked > 0.5
    if paper.layout.frame:
        assert inked[[0, -1]].all() and inked[:, [0, -1]].all()
    inked[[0, -1]] = inked[:, [0, -1]] = False
    known = {sheets.glyph(letter).tobytes(): letter for letter in FONT}
    lines, top = [], 0
    while top < SIDE:
        if not inked[top].any():
            top += 1
            continue
        band = np.pad(inked[top : top + HIGH], ((0, 0), (0, 2 * WIDE)))
        ways = []
        for left in range(WIDE + 1):  # where the first cell begins is told by where all cells are letters
            cells = [band[:, at : at + WIDE] for at in range(left, SIDE, WIDE + 1)]
            between = band[:, left + WIDE :: WIDE + 1].any() or band[:, :left].any()
            if not between and all(cell.tobytes() in known for cell in cells):
                ways.append("".join(known[cell.tobytes()] for cell in cells))
        assert len(ways) == 1
        lines.append(" ".join(ways[0].split()))
        top += HIGH
    return lines


@given(SEEDS, SPLITS)
@settings(max_examples=60, deadline=None)
def test_a_picture_shrunk_to_a_pixel_a_point_shows_every_line(seed: int, split: str) -> None:
    paper = papers.paper(Dice(seed), split)
    assert read(paper) == list(paper.lines)


@given(SEEDS, SPLITS)
@settings(max_examples=100, deadline=None)
def test_fields_are_those_of_the_kind_and_stand_on_the_paper(seed: int, split: str) -> None:
    paper = papers.paper(Dice(seed), split)
    assert tuple(paper.fields) == ("kind", *KINDS[paper.fields["kind"]])
    words = " ".join(paper.lines).replace(":", " ").split()
    for field, value in paper.fields.items():
        assert value.upper() in words
        assert (field in CLOSED) != (field in COPIED) and value in CLOSED.get(field, (value,))
        assert value in paper.caption().replace(",", "").rstrip(".").split() or field in ("kind", "total")
    labels = paper.layout.labels
    assert {label for field, label in labels.items() if field in paper.fields} <= set(words)
    assert len(words) == len(paper.fields) + len(set(paper.fields) & set(labels)) and set(COPIED) < set(labels)


def test_every_letter_has_its_own_shape() -> None:
    assert all(sheets.glyph(letter).shape == (HIGH, WIDE) for letter in FONT)
    assert len({sheets.glyph(letter).tobytes() for letter in FONT}) == len(FONT)
    assert all(letter in FONT for values in CLOSED.values() for value in values for letter in value.upper())


def test_edges_are_soft_and_paper_and_ink_are_what_they_are() -> None:
    paper = papers.paper(Dice(1))
    pixels = paper.draw()
    assert pixels.shape == (256, 256, 3) and (pixels.reshape(-1, 3) == paper.ground).all(1).any()
    levels = np.unique(pixels[..., 0])
    assert len(levels) > 8 and levels.min() >= paper.ink[0] and levels.max() == paper.ground[0]
    assert (paper.draw(1) == np.where(paper.sheet().points()[..., None], paper.ink, paper.ground)).all()


def test_a_layout_and_names_are_kept_for_the_test() -> None:
    drawn = {split: list(papers.papers(3, split, 400)) for split in papers.SPLITS}
    names = {split: {p.fields["name"] for p in some if "name" in p.fields} for split, some in drawn.items()}
    assert not names["train"] & (names["test"] | names["new-layout"])
    assert all(paper.layout is UNSEEN for paper in drawn["new-layout"])
    for split in ("train", "test"):
        assert {paper.layout.name for paper in drawn[split]} == {layout.name for layout in LAYOUTS}
    assert UNSEEN.name not in {layout.name for layout in LAYOUTS} and len(LAYOUTS) >= 5
    assert not set(UNSEEN.labels.values()) & {label for layout in LAYOUTS for label in layout.labels.values()}
    assert all(len({paper.lines for paper in some}) == 400 for some in drawn.values())


def test_rows_have_the_picture_or_the_text_and_the_same_answers() -> None:
    made = {name: paper_tasks.rows(name, 2, "train", 12) for name in paper_tasks.PAPER_TASKS}
    for number, paper in enumerate(papers.papers(2, "train", 12)):
        (uri,) = made["fields"][number]["images"]
        assert (np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))) == paper.draw()).all()
        asked, answered = (one["content"] for one in made["fields"][number]["messages"])
        assert asked == "<image>Which are the fields of this paper?"
        assert dict(line.split(": ") for line in answered.splitlines()) == paper.fields
        text = made["fields-text"][number]["messages"]
        assert text[0]["content"] == "\n".join(paper.lines) + "\n\n" + asked.removeprefix("<image>")
        assert text[1] == made["fields"][number]["messages"][1] == made["fields-noisy"][number]["messages"][1]
        listed = dict(line.split(": ") for line in made["closed"][number]["messages"][1]["content"].splitlines())
        assert listed == {name: value for name, value in paper.fields.items() if name in CLOSED}
        name, value = made["field"][number]["messages"][1]["content"].split(": ")
        assert made["field"][number]["messages"][0]["content"] == f"<image>What is the {name} of this paper?"
        assert paper.fields[name] == value


def test_noise_takes_a_few_letters_for_others_that_look_alike() -> None:
    dice, text = Dice(0), "".join(sorted(set("".join(paper_tasks.ALIKE)))) * 200
    read = paper_tasks.noisy(dice, text)
    wrong = [(a, b) for a, b in zip(text, read, strict=True) if a != b]
    assert 0.02 < len(wrong) / len(text) < 0.04
    assert all(any({a, b} == set(pair) for pair in paper_tasks.ALIKE) for a, b in wrong)
    assert paper_tasks.noisy(dice, "- .:" * 100) == "- .:" * 100


def test_what_is_asked_as_text_is_short() -> None:
    tokenizer = Tokenizer.from_folder(base_folder())
    for row in paper_tasks.rows("fields-noisy", 0, "new-layout", 100):
        assert sum(len(tokenizer.encode(one["content"])) for one in row["messages"]) < 180


def test_papers_are_written_for_every_task(tmp_path: Path) -> None:
    written = paper_tasks.write_papers(tmp_path, 3, train=4, test=2)
    assert len(written) == len(papers.SPLITS) * len(paper_tasks.PAPER_TASKS) == 27
    for name in paper_tasks.PAPER_TASKS:
        for split, count in zip(papers.SPLITS, (4, 2, 2), strict=True):
            lines = (tmp_path / name / f"{split}.jsonl").read_text("utf-8").splitlines()
            assert [json.loads(line) for line in lines] == paper_tasks.rows(name, 3, split, count)
    with pytest.raises(Refusal, match="unknown-task"):
        paper_tasks.rows("fieldz", 0, "train", 1)


def test_the_same_seed_draws_the_same_on_every_machine() -> None:
    made = hashlib.sha256()
    for split in papers.SPLITS:
        for paper in papers.papers(5, split, 20):
            made.update(paper.draw().tobytes() + json.dumps([dict(paper.fields), paper.lines]).encode())
    made.update(json.dumps(paper_tasks.rows("fields-noisy", 5, "test", 20)).encode())
    assert made.hexdigest() == DIGEST
