"""Rows with pictures, as people have them: where each stands, what is learned, what is told, and what is compared."""

from __future__ import annotations

import base64
import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import seeing
import tiny_tokenizers as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.data.cache import cache_folder
from halter.data.cache_key import files_behind
from halter.data.load import RowSight, load_examples
from halter.data.options import DataOptions
from halter.data.pack import IGNORED, pack
from halter.errors import Refusal, Waivers
from halter.model import pictures as model_pictures
from halter.model.llama4_tiles import Llama4Pictures
from halter.model.llama4_tower import Llama4Tower
from halter.model.mllama_pictures import MllamaPictures
from halter.pictures.seen import grid_of
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

CATS = {f"cat{n}.png": seeing.saved(seeing.pixels(n, 8, 8 * n)) for n in (1, 2, 3)}
"""Of n tiles each."""
ASK = "What is this?"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(seeing.folder(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("HALTER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows").mkdir()
    for name, data in CATS.items():
        (tmp_path / "rows" / name).write_bytes(data)
    return tmp_path / "rows"


def rules_of(tokenizer):
    return seeing.SquareRules(tokenizer.token_id(seeing.NAMES[0]))


def load(tokenizer, here, rows, sees=True, allow=(), template=None, **options):
    file = here / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sight = RowSight(rules_of(tokenizer) if sees else None, Waivers(allow))
    given = {"train": str(file), "cache": False} | options
    return load_examples(DataOptions(**given), tokenizer, template or tokenizer.chat_template, sight=sight)


def talk(content, answer="A lamp."):
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def text(words):
    return {"type": "text", "text": words}


def uri(name):
    return "data:image/png;base64," + base64.b64encode(CATS[name]).decode()


def spelt_by_hand(tokenizer, pieces):
    """Ids of texts, control tokens (names) and pictures (numbers: tiles)."""
    rules, ids = rules_of(tokenizer), []
    for piece in pieces:
        if isinstance(piece, int):
            ids += rules.ids((1, piece))
        else:
            id = tokenizer.token_id(piece) if piece.startswith("<|") else None
            ids += [id] if id is not None else tokenizer.encode(piece)
    return ids


def asked_by_hand(tokenizer, *said):
    head = (tiny.BOS, tiny.HEAD, "user", tiny.HEAD_END, "\n\n")
    middle = (tiny.EOT, tiny.HEAD, "assistant", tiny.HEAD_END, "\n\n", "A lamp.", tiny.EOT)
    return spelt_by_hand(tokenizer, (*head, *said, *middle))


FORMS = {
    "llava": {
        "image": "cat1.png",
        "conversations": [{"from": "human", "value": f"<image>\n{ASK}"}, {"from": "gpt", "value": "A lamp."}],
    },
    "behind": {"images": ["cat1.png"], "messages": talk(f"{ASK}\n<|image|>")},
    "openai": {"messages": talk([{"type": "image_url", "image_url": {"url": uri("cat1.png")}}, text(ASK)])},
    "responses": {
        "messages": talk([{"type": "input_image", "image_url": uri("cat1.png")}, {"type": "input_text", "text": ASK}])
    },
    "hf path": {"messages": talk([{"type": "image", "path": "cat1.png"}, text(ASK)])},
    "hf base64": {
        "messages": talk([{"type": "image", "base64": base64.b64encode(CATS["cat1.png"]).decode()}, text(ASK)])
    },
    "trl": {"images": ["cat1.png"], "messages": talk([{"type": "image", "text": None}, text(ASK)])},
    "indexed": {
        "images": ["cat1.png"],
        "messages": talk([{"type": "image", "index": 0, "text": None}, {"type": "text", "text": ASK, "index": None}]),
    },
    "anthropic": {
        "messages": talk(
            [
                {
                    "type": "image",
                    "source": {
                        "type": "base64",
                        "media_type": "image/png",
                        "data": base64.b64encode(CATS["cat1.png"]).decode(),
                    },
                },
                text(ASK),
            ]
        )
    },
    "question": {"image": "cat1.png", "question": ASK, "answer": "A lamp."},
    "alpaca": {"images": ["cat1.png"], "instruction": f"<image>{ASK}", "output": "A lamp."},
    "prompt as messages": {"images": ["cat1.png"], "prompt": talk(f"<image>{ASK}")[:1], "completion": talk("")[1:]},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("template", ["checkpoint", "llama-3"])
def test_every_spelling_of_a_row_becomes_the_same_tokens(form, template, tokenizer, here):
    chosen = None if template == "checkpoint" else ChatTemplate.builtin(template)
    row = load(tokenizer, here, [FORMS[form]], template=chosen).train[0]
    said = (ASK, 1) if form == "behind" else (1, ASK)
    assert row.tokens.tolist() == asked_by_hand(tokenizer, *said)
    learned = spelt_by_hand(tokenizer, ("A lamp.", tiny.EOT))
    assert row.supervised.nonzero()[0].tolist() == list(range(len(row.tokens) - len(learned), len(row.tokens)))
    (picture,) = row.pictures
    ids = rules_of(tokenizer).ids((1, 1))
    assert tuple(row.tokens[picture.start : picture.end]) == ids and picture.size == (8, 8) and picture.grid == (1, 1)
    assert (picture.place.decode().pixels.permute(1, 2, 0).numpy() == seeing.pixels(1)).all()


def test_several_pictures_stand_in_their_order_in_all_turns(tokenizer, here):
    said = ["<image>Which of <image>these?", "The <image>first."]
    messages = [*talk(said[0]), *talk(said[1])]
    row = load(tokenizer, here, [{"images": ["cat3.png", "cat1.png", "cat2.png"], "messages": messages}]).train[0]
    assert [one.grid for one in row.pictures] == [(1, 3), (1, 1), (1, 2)]
    wide = [one.length for one in row.pictures]
    assert wide == [8, 4, 6] and not any(row.supervised[one.start : one.end].any() for one in row.pictures)
    pieces = asked_by_hand(tokenizer, 3, "Which of", 1, "these?")
    assert row.tokens[: len(pieces)].tolist() == pieces


def test_text_that_spells_a_picture_stays_text(tokenizer, here):
    spelt = "Type <|image|> or <image> or <|patch|>."
    rows = load(
        tokenizer,
        here,
        [{"messages": talk(spelt)}, {"messages": talk([FORMS["openai"]["messages"][0]["content"][0], text(spelt)])}],
    )
    rules = rules_of(tokenizer)
    for row, pictures in zip(rows.train, (0, 1), strict=True):
        own = [id for one in row.pictures for id in row.tokens[one.start : one.end]]
        assert len(row.pictures) == pictures
        assert sum(id in range(rules.first, rules.first + 4) for id in row.tokens.tolist()) == len(own)
        assert spelt in tokenizer.decode(row.tokens.tolist())


@pytest.mark.parametrize("train_on", ["all", "responses"])
def test_labels_never_fall_on_a_picture(train_on, tokenizer, here):
    rows = [FORMS["behind"], {"images": ["cat1.png"], "messages": talk(f"<image>{ASK}", "It is <nothing>.")}]
    for row in load(tokenizer, here, rows, train_on=train_on).train:
        batch = pack([row])
        for one in row.pictures:
            assert not row.supervised[one.start : one.end].any()
            assert (batch.targets[one.start - 1 : one.end - 1] == IGNORED).all()
        assert row.supervised[row.pictures[-1].end] == (train_on == "all")


def test_plain_text_and_pairs_take_pictures_where_they_are_named_or_ahead(tokenizer, here):
    held = here / "pairs.jsonl"
    held.write_text(json.dumps({"image": "cat2.png", "prompt": "It is <image>", "completion": " a cat"}) + "\n")
    plain = load(
        tokenizer, here, [{"image": "cat1.png", "text": "A cat"}, {"image": "cat1.png", "text": "<image> cat"}]
    )
    pair = load(tokenizer, here, [], train=str(held)).train[0]
    ends = tokenizer.token(tokenizer.eos_id)
    assert plain.train[0].tokens.tolist() == spelt_by_hand(tokenizer, (tiny.BOS, 1, "A cat", ends))
    assert plain.train[1].tokens.tolist() == spelt_by_hand(tokenizer, (tiny.BOS, 1, " cat", ends))
    assert pair.tokens.tolist() == spelt_by_hand(tokenizer, (tiny.BOS, "It is ", 2, " a cat", ends))
    assert plain.train[0].supervised.tolist() == [False] * 5 + [True] * (len(plain.train[0].tokens) - 5)


NONE = "for pictures (<image>) and 0 pictures; where <image> is meant as text, leave the column out or give null"
FAULTS = [
    ({"images": ["cat1.png"], "messages": talk(ASK)}, "0 places for pictures (<image>) and 1 picture"),
    ({"images": ["cat1.png"], "messages": talk("<image><image>")}, "2 places for pictures (<image>) and 1 picture"),
    ({"images": [], "messages": talk("<image>")}, f"1 place {NONE}"),
    ({"images": [None, ""], "messages": talk("<image><image>")}, f"2 places {NONE}"),
    (
        {"images": ["cat1.png", None], "messages": talk("<image><image>")},
        "a picture that cannot be used: no picture: nothing (picture 2)",
    ),
    (
        {"images": [{"bytes": None, "path": None}, "cat1.png"], "messages": talk("<image><image>")},
        "a picture that cannot be used: no picture: dict (picture 1)",
    ),
    ({"images": ["", "cat1.png"], "messages": talk("<image>")}, "1 place for pictures (<image>) and 2 pictures"),
    (
        {"images": ["cat1.png", "cat2.png"], "messages": talk([{"type": "image"}])},
        "1 place for pictures and 2 pictures",
    ),
    (
        {"images": ["cat1.png"], "messages": talk([{"type": "image", "index": 1}])},
        "a place for picture 1 and 1 picture",
    ),
    (
        {"images": ["cat1.png", "none.png"], "messages": talk("<image><image>")},
        "a picture that cannot be used: there is no such file (picture 2, none.png)",
    ),
    (
        {"images": ["rows.jsonl"], "messages": talk("<image>")},
        "a picture that cannot be used: no picture of a kind that is read (PNG, JPEG, WebP, GIF or BMP) "
        "(picture 1, rows.jsonl)",
    ),
    ({"messages": talk([{"type": "image"}])}, "1 place for pictures and 0 pictures"),
    (
        {"messages": talk([{"type": "image", "image": {"x": 1}}])},
        "a picture that cannot be used: no picture: dict (picture 1)",
    ),
    (
        {"images": ["cat1.png"], "messages": talk("<image>\U000f5a19")},
        "a character that Halter keeps for itself, U+F5A19",
    ),
]


@pytest.mark.parametrize(("row", "kind"), FAULTS, ids=[kind for _, kind in FAULTS])
def test_what_is_wrong_is_told_by_row_and_picture(row, kind, tokenizer, here):
    with pytest.raises(Refusal) as refused:
        load(tokenizer, here, [FORMS["behind"], row])
    assert refused.value.id == "bad-rows" and refused.value.found == (f"{here}/rows.jsonl:2: {kind}",)
    assert len(load(tokenizer, here, [FORMS["behind"], row], on_bad="skip").train) == 1


def test_a_model_that_sees_nothing_refuses_pictures_unless_they_may_go(tokenizer, here):
    with pytest.raises(Refusal) as refused:
        load(tokenizer, here, [FORMS["llava"]], sees=False)
    assert refused.value.id == "pictures-unseen" and refused.value.waivable
    waivers = ("pictures-unseen",)
    for form in FORMS.values():
        loaded = load(tokenizer, here, [form], sees=False, allow=waivers)
        assert loaded.train[0].pictures == () and loaded.report.notes["pictures_dropped"] == 1
        assert loaded.train[0].tokens.tolist() == asked_by_hand(tokenizer, ASK)
    plain = load(tokenizer, here, [{"messages": talk(ASK), "image": None}], sees=False)
    assert plain.train[0].tokens.tolist() == asked_by_hand(tokenizer, ASK)


@pytest.mark.parametrize("images", [None, "", [], [None], [None, {"bytes": None, "path": None}]])
def test_rows_without_pictures_may_stand_beside_rows_with_them(images, tokenizer, here):
    """As parquet files have them, where every row has every column."""
    rows = [{"images": ["cat1.png"], "messages": talk(f"<image>{ASK}")}, {"images": images, "messages": talk(ASK)}]
    kept = load(tokenizer, here, rows).train[1]
    assert kept.pictures == () and kept.tokens.tolist() == asked_by_hand(tokenizer, ASK)


def test_a_column_that_has_pictures_goes_before_one_that_has_none(tokenizer, here):
    row = {"images": [], "image": "cat1.png", "question": ASK, "answer": "A lamp."}
    assert len(load(tokenizer, here, [row]).train[0].pictures) == 1


@pytest.mark.parametrize("row", [{}, {"images": None}, {"image": ""}, {"image": 3}, {"images": [1, 2]}])
def test_without_a_list_of_pictures_the_words_for_a_place_are_text(row, tokenizer, here):
    kept = load(tokenizer, here, [row | {"messages": talk(f"What does <image> do? {ASK}")}]).train[0]
    assert kept.pictures == () and kept.tokens.tolist() == asked_by_hand(tokenizer, f"What does <image> do? {ASK}")


def test_an_address_in_a_row_stops_the_run(tokenizer, here):
    row = {"image": "http://127.0.0.1:9/x.png", "messages": talk("<image>")}
    with pytest.raises(Refusal) as refused:
        load(tokenizer, here, [row])
    assert refused.value.id == "picture-address"
    with pytest.raises(Refusal) as refused:
        load(tokenizer, here, [row], fetch_pictures=True)
    assert refused.value.id == "bad-rows" and "cannot be fetched" in refused.value.found[0]


def test_another_folder_of_pictures(tokenizer, here, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (here / "cat1.png").rename(tmp_path / "elsewhere" / "cat1.png")
    row = load(tokenizer, here, [FORMS["llava"]], image_folder=str(tmp_path / "elsewhere")).train[0]
    assert row.pictures[0].size == (8, 8)


def test_a_tokenizer_that_writes_another_token_is_refused(tokenizer, here):
    sight = RowSight(seeing.SquareRules(rules_of(tokenizer).first + 1))
    (here / "rows.jsonl").write_text(json.dumps(FORMS["llava"]))
    with pytest.raises(Refusal) as refused:
        load_examples(DataOptions(train=str(here / "rows.jsonl")), tokenizer, tokenizer.chat_template, sight=sight)
    assert refused.value.id == "picture-token"


def test_a_template_that_leaves_pictures_out_is_refused(tokenizer, here):
    silent = ChatTemplate.from_source(seeing.PARTS_TEMPLATE.replace("{{- '<|image|>' }}", ""))
    with pytest.raises(Refusal) as refused:
        load(tokenizer, here, [FORMS["llava"]], template=silent)
    assert refused.value.id == "template-pictures"


@given(most=st.integers(8, 60), tiles=st.lists(st.integers(1, 3), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_row_that_is_cut_is_cut_in_no_picture(most, tiles, tmp_path_factory):
    here = tmp_path_factory.getbasetemp() / "cut"
    here.mkdir(exist_ok=True)
    tokenizer = Tokenizer.from_folder(seeing.folder(here / "tokenizer"))
    for name, data in CATS.items():
        (here / name).write_bytes(data)
    words = "It is <image> and" * len(tiles)
    row = {"images": [f"cat{n}.png" for n in tiles], "messages": [*talk("Why?"), *talk(words)]}
    whole = load(tokenizer, here, [row]).train[0]
    try:
        cut = load(tokenizer, here, [row], max_length=most, on_long="cut").train[0]
    except Refusal as refusal:
        assert refusal.id == "no-rows" and not whole.supervised[:most].any()
        return
    end = len(cut.tokens)
    assert (cut.tokens == whole.tokens[:end]).all() and end <= most
    assert cut.pictures == whole.pictures[: len(cut.pictures)]
    inside = [one for one in whole.pictures if one.start < most < one.end]
    assert end == (inside[0].start if inside else min(most, len(whole.tokens)))
    assert all(one.end <= end for one in cut.pictures)


def test_rows_of_equal_tokens_are_equal_where_their_pictures_are(tokenizer, here):
    (here / "twin.png").write_bytes(seeing.saved(seeing.pixels(1), "PNG", compress_level=0))
    (here / "other.png").write_bytes(seeing.saved(seeing.pixels(9)))
    rows = [{**FORMS["llava"], "image": name} for name in ("cat1.png", "twin.png", "other.png")]
    loaded = load(tokenizer, here, rows)
    assert len({tuple(row.tokens.tolist()) for row in loaded.train}) == 1
    one, same, other = loaded.train.digests().tolist()
    assert one == same != other and loaded.report.duplicates == 1
    marks = loaded.train.marks()
    assert (marks[0] == marks[1]).all() and (marks[0] != marks[2]).any()


def test_the_same_question_about_other_pictures_is_no_contradiction(tokenizer, here):
    rows = [{**FORMS["llava"], "image": f"cat{n % 2 + 1}.png"} for n in range(4)]
    for n, row in enumerate(rows):
        row["conversations"] = talk(f"<image>{ASK}", f"Answer {n % 2}.")
    assert not load(tokenizer, here, rows).report.notes["contradicting"]
    for row in rows:
        row["image"] = "cat1.png"
    assert load(tokenizer, here, rows).report.notes["contradicting"] == 4


def test_rows_from_the_cache_have_their_pictures_and_a_changed_picture_makes_them_anew(tokenizer, here, monkeypatch):
    rows = [*(form for form in FORMS.values() if "messages" in form), {"messages": talk(ASK)}]
    first = load(tokenizer, here, rows, cache=True)
    again = load(tokenizer, here, rows, cache=True)
    assert (first.report.cached, again.report.cached) == (0, len(rows))
    for row, kept in zip(first.train, again.train, strict=True):
        assert (row.tokens == kept.tokens).all()
        assert [(p.digest, p.start, p.length, p.grid, p.size) for p in row.pictures] == [
            (p.digest, p.start, p.length, p.grid, p.size) for p in kept.pictures
        ]
        assert all(p.place.decode().digest == p.digest for p in kept.pictures)
    (here / "cat1.png").write_bytes(CATS["cat2.png"])
    anew = load(tokenizer, here, rows, cache=True)
    assert anew.report.cached == 0 and anew.train[0].pictures[0].grid == (1, 2)
    (here / "cat1.png").unlink()
    with pytest.raises(Refusal, match="no such file"):
        load(tokenizer, here, rows, cache=True)
    assert cache_folder().is_dir()


def test_other_code_that_chooses_a_grid_makes_rows_anew(tokenizer, here, monkeypatch):
    """The rules' own file, and one of the model floor that they call."""
    rows, read = [{"image": "cat1.png", "question": ASK, "answer": "A lamp."}], Path.read_bytes
    load(tokenizer, here, rows, cache=True)
    assert load(tokenizer, here, rows, cache=True).report.cached == 1
    for file in (Path(seeing.__file__), Path(model_pictures.__file__)):
        monkeypatch.setattr(Path, "read_bytes", lambda path, file=file: read(path) + b"#" * (path == file))
        assert [load(tokenizer, here, rows, cache=True).report.cached for _ in range(2)] == [0, 1]


FAMILIES = [Llama4Pictures(Llama4Tower(), 16), MllamaPictures(28, 4, 96, 96), seeing.SquareRules()]


@pytest.mark.parametrize("rules", FAMILIES, ids=lambda rules: type(rules).__name__)
def test_every_file_that_counts_a_pictures_tokens_is_part_of_the_key(rules):
    """The files of whatever runs while a grid is chosen and its tokens are counted, by Python's own record."""
    ran = set()
    sys.setprofile(lambda frame, event, argument: ran.add(frame.f_code.co_filename))
    try:
        for size in ((8, 8), (8, 30), (70, 30), (20, 200)):
            rules.ids(grid_of(rules, *size))
            rules.prepare(torch.zeros(3, *size, dtype=torch.uint8))
    finally:
        sys.setprofile(None)
    halter = Path(model_pictures.__file__).parents[1]
    ran = {Path(name) for name in ran if Path(name).is_relative_to(halter)} - {*(halter / "pictures").iterdir()}
    covered = {*files_behind(rules)}
    assert ran <= covered and Path(model_pictures.__file__) in ran
    assert Path(inspect.getsourcefile(type(rules))) in covered and len(covered) < 60


def test_bytes_that_stand_in_rows_do_not_stay_in_memory(tokenizer, here):
    for cache in (False, True):
        loaded = load(tokenizer, here, [FORMS["openai"], FORMS["anthropic"], FORMS["hf path"]], cache=cache)
        kinds = {type(one.place).__name__ for row in loaded.train for one in row.pictures}
        assert "PictureBytes" not in kinds


def test_parquet_with_bytes_is_read(tokenizer, here):
    import pyarrow
    from pyarrow import parquet

    rows = [{"images": [{"bytes": CATS["cat2.png"], "path": "x.png"}], "messages": talk(f"<image>{ASK}")}]
    file = here / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    row = load(tokenizer, here, [], train=str(file)).train[0]
    assert row.tokens.tolist() == asked_by_hand(tokenizer, 2, ASK) and row.pictures[0].size == (16, 8)


def test_what_is_read_of_a_file_names_its_column_of_pictures(tokenizer, here):
    report = load(tokenizer, here, [FORMS["llava"]]).report
    assert report.readings[str(here / "rows.jsonl")].endswith("; pictures: image") and not any(report.ignored.values())


def test_a_picture_that_moves_is_told(tokenizer, here):
    from PIL import Image

    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    (here / "cat1.png").write_bytes(seeing.saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert load(tokenizer, here, [FORMS["llava"]]).report.notes["first_frames"] == 1


def test_token_rows_take_pictures_where_their_token_stands(tokenizer, here):
    rules = rules_of(tokenizer)
    ids = [tokenizer.bos_id, rules.token_id, 70, 71]
    row = load(tokenizer, here, [{"input_ids": ids, "images": ["cat2.png"]}]).train[0]
    assert row.tokens.tolist() == [tokenizer.bos_id, *rules.ids((1, 2)), 70, 71]
    assert row.supervised.tolist() == [True, *[False] * 6, True, True]
    with pytest.raises(Refusal) as refused:
        load(tokenizer, here, [{"input_ids": ids}])
    assert refused.value.id == "bad-rows"
    assert np.array(row.pictures[0].grid).tolist() == [1, 2] and Path(row.pictures[0].place.path).name == "cat2.png"
