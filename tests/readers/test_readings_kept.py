"""What was read is kept in memory and on disk by the picture and all that decides the text, within bounds."""

from __future__ import annotations

import json

import pytest
import reading_by_hand as by_hand
import seeing
from PIL import Image

from halter.errors import HalterError, Refusal
from halter.pictures.process import PictureFault
from halter.pictures.sources import PictureBytes
from halter.readers import frame
from halter.readers.reader import PictureReader
from halter.readers.readings import Readings

KNOWN = PictureReader("length", by_hand.length, "1")
TEXT = f"{frame.TEXT}\nRGB, 8 by 8\n{frame.END}"


def test_a_function_gets_an_upright_picture_of_pillows_in_colours(tmp_path) -> None:
    said = seeing.saved(Image.new("L", (24, 8)))
    assert Readings(tmp_path).at([KNOWN], PictureBytes(said)).text == TEXT.replace("8 by 8", "24 by 8")


def test_it_is_read_once_from_memory_and_from_disk(tmp_path) -> None:
    first = Readings(tmp_path)
    assert [first.at([KNOWN], by_hand.picture(n)).text for n in (0, 0, 1)] == [TEXT] * 3 and first.made == 2
    second = Readings(tmp_path)
    assert second.at([KNOWN], by_hand.picture()).text == TEXT and second.made == 0


def test_another_picture_reader_version_or_bound_shares_nothing(tmp_path) -> None:
    others = [
        KNOWN,
        PictureReader("long", by_hand.length, "1"),
        PictureReader("length", by_hand.length, "2"),
        PictureReader("length", by_hand.length, "1", characters=9),
    ]
    for kept in (Readings(tmp_path), Readings(tmp_path / "b")):
        for number, reader in enumerate(others, 1):
            kept.at([reader], by_hand.picture())
            assert kept.made == number
    assert len(list(tmp_path.glob("*/*.json"))) == 4


def test_a_function_of_which_nothing_is_known_is_kept_by_this_process_alone(tmp_path) -> None:
    kept = Readings(tmp_path)
    for _ in range(2):
        kept.at([PictureReader("length", by_hand.length)], by_hand.picture())
    kept.at([PictureReader("length", lambda picture: "else")], by_hand.picture())
    assert kept.made == 2 and not list(tmp_path.iterdir())


def test_several_readers_stand_one_after_the_other(tmp_path) -> None:
    shown = PictureReader("cut", lambda picture: "word " * 9, heading=frame.SHOWN, characters=9)
    read = Readings(tmp_path).at([shown, KNOWN], by_hand.picture())
    assert read.text == f"{frame.SHOWN}\nword word\n{frame.END}\n{TEXT}"
    ((reader, said),) = read.cut
    assert reader is shown and said == ("word word", 44)


def test_that_a_text_was_cut_is_known_from_disk_too(tmp_path) -> None:
    cut = PictureReader("cut", lambda picture: "word " * 9, "1", characters=9)
    for kept in (Readings(tmp_path), Readings(tmp_path)):
        assert kept.at([cut], by_hand.picture()).cut[0][1] == ("word word", 44)
    assert kept.made == 0


def test_what_lies_damaged_on_disk_is_read_anew_and_what_is_unsound_is_not_believed(tmp_path) -> None:
    Readings(tmp_path).at([KNOWN], by_hand.picture())
    (file,) = tmp_path.glob("*/*.json")
    whole = json.loads(file.read_text())
    for spoilt in ("", "[]", "{}", json.dumps(whole | {"text": "forged"}), json.dumps(whole | {"whole": None})):
        file.write_text(spoilt)
        kept = Readings(tmp_path)
        assert kept.at([KNOWN], by_hand.picture()).text == TEXT and kept.made == 1


def test_memory_and_disk_have_bounds(tmp_path) -> None:
    kept = Readings(tmp_path, memory_bytes=1000, disk_bytes=1000)
    for n in range(9):
        kept.at([KNOWN], by_hand.picture(n))
        assert kept._held.bytes <= 1000
        assert sum(file.stat().st_size for file in tmp_path.rglob("*.json")) <= 1000
    assert list(tmp_path.rglob("*.json"))
    none = Readings(tmp_path / "none", disk_bytes=0)
    none.at([KNOWN], by_hand.picture())
    assert not (tmp_path / "none").exists()


def failing(error):
    def read(picture):
        raise error

    return PictureReader("mine", read)


def test_a_function_that_fails_is_named_and_its_own_words_come_through(tmp_path) -> None:
    kept = Readings(tmp_path)
    for error in (PictureFault("too dark"), HalterError("no"), Refusal("reader-unset", "x")):
        with pytest.raises(type(error)) as told:
            kept.at([failing(error)], by_hand.picture())
        assert told.value is error
    with pytest.raises(Refusal, match="ValueError: odd") as told:
        kept.at([failing(ValueError("odd"))], by_hand.picture())
    assert told.value.id == "reader-failed" and "mine" in told.value.what
    with pytest.raises(Refusal, match="returned no text. Found: NoneType") as told:
        kept.at([PictureReader("mine", lambda picture: None)], by_hand.picture())
    assert told.value.id == "reader-failed"
    with pytest.raises(PictureFault):
        kept.at([KNOWN], PictureBytes(b"no picture"))
