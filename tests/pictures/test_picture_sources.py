"""Where pictures come from: every spelling, and that nothing is fetched which nobody asked for."""

from __future__ import annotations

import base64
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import seeing
from PIL import Image

from halter.errors import Refusal
from halter.pictures.process import PictureFault, PictureProcess
from halter.pictures.sources import PictureSpool, place_of

DRAWN = seeing.pixels(7)
PNG = seeing.saved(DRAWN)
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()


def is_drawn(place):
    return (place.decode().pixels.permute(1, 2, 0).numpy() == DRAWN).all()


def test_every_spelling_is_the_same_picture(tmp_path, monkeypatch):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "cät 1.png").write_bytes(PNG)
    whole = tmp_path / "some" / "cät 1.png"
    spellings = [whole, str(whole), "some/cät 1.png", "./some/cät 1.png", whole.as_uri(), URI]
    spellings += [PNG, bytearray(PNG), {"bytes": PNG, "path": None}, {"bytes": PNG, "path": "gone.png"}]
    spellings += [{"bytes": None, "path": "some/cät 1.png"}, Image.fromarray(DRAWN)]
    assert all(is_drawn(place_of(one, tmp_path)) for one in spellings)
    monkeypatch.chdir(tmp_path)
    assert is_drawn(place_of("some/cät 1.png")) and place_of(place_of(PNG)) == place_of(PNG)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("none.png", "there is no such file"),
        (".", "there is no such file"),
        ("x" * 5000, "there is no such file"),
        ("", "empty"),
        (None, "no picture: nothing"),
        (12, "no picture: int"),
        ({"bytes": None, "path": None}, "no picture"),
        ("data:image/png,abc", "not in base64"),
        ("data:image/png;base64,a*b", "not in base64"),
    ],
)
def test_what_is_no_picture_is_a_fault_in_words(value, words, tmp_path):
    with pytest.raises(PictureFault, match=words):
        place_of(value, tmp_path)


@pytest.fixture
def site():
    asked = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            away = self.path == "/away"
            self.send_response(302 if away else 200)
            if away:
                self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
            self.wfile.write(b"" if away else PNG)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_an_address_is_fetched_where_that_was_asked_for_alone(site):
    address, asked = site
    with pytest.raises(Refusal) as refused:
        place_of(f"{address}/cat.png")
    assert refused.value.id == "picture-address" and "data.fetch_pictures" in refused.value.fix and not asked
    assert is_drawn(place_of(f"{address}/cat.png", fetch=True)) and asked == ["/cat.png"]
    with pytest.raises(PictureFault):
        place_of(f"{address}/away", fetch=True)
    with pytest.raises(PictureFault, match="cannot be fetched"):
        place_of("http://127.0.0.1:9/x.png", fetch=True)


def test_a_file_that_is_there_no_more_is_a_fault(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(PNG)
    place = place_of(str(file))
    file.unlink()
    with pytest.raises(PictureFault, match="no such file"):
        place.decode()


def test_a_spool_keeps_equal_bytes_once_and_gives_them_back():
    spool = PictureSpool()
    places = [spool.keep(data, "x") for data in (PNG, PNG + b" ", PNG)]
    assert places[0] is places[2] and (places[1].start, places[1].size) == (len(PNG), len(PNG) + 1)
    assert is_drawn(places[0]) and spool.read(places[1].start, places[1].size) == PNG + b" "


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refusal) as refused:
        PictureProcess().decode(PNG)
    assert refused.value.id == "extra-missing" and "[vision]" in refused.value.fix


def test_paths_with_a_tilde_are_of_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Path(tmp_path / "a.png").write_bytes(PNG)
    assert is_drawn(place_of("~/a.png", Path("/nowhere")))
