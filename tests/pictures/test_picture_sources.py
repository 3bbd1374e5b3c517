"""Where pictures come from: every spelling, and that nothing is fetched which nobody asked for."""

from __future__ import annotations

import base64
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import seeing
from PIL import Image

from halter.errors import Refusal
from halter.pictures import fetching
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


HEAD = b"HTTP/1.0 200 OK\r\n"
SLOW = {
    "body": (HEAD + b"\r\n", PNG),
    "head": (HEAD, b"X-Word: " + b"a" * 4000 + b"\r\n\r\n" + PNG),
    "status": (b"", HEAD + b"\r\n" + PNG),
    "chunks": (
        HEAD.replace(b"1.0", b"1.1") + b"Transfer-Encoding: chunked\r\n\r\n",
        b"1\r\nx\r\n" * 300 + b"0\r\n\r\n",
    ),
    "TLS": (b"\x16\x03\x03\x40\x00", b"\0" * 4000),
}


@pytest.fixture
def raw():
    """A server that says what it is given: at once, and then byte by byte, 0.05 s apart; nothing of it is HTTP to it.
    ``gone`` is set when whoever asked has hung up before the end."""
    gone, ended, listener = threading.Event(), threading.Event(), socket.create_server(("127.0.0.1", 0))
    says = []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                at_once, slowly = says.pop(0)
                connection.recv(4096)
                try:
                    connection.sendall(at_once)
                    for byte in slowly:
                        if ended.wait(0.05):
                            return
                        connection.sendall(bytes([byte]))
                except OSError:
                    gone.set()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.png", says, gone
    ended.set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize("how", SLOW)
def test_a_server_that_sends_now_and_then_holds_nobody_for_long(how, raw, monkeypatch):
    """Each byte comes soon after the last, so that no read of a socket is ever out of its time."""
    address, says, gone = raw
    monkeypatch.setattr(fetching, "SECONDS", 0.3)
    says.append(SLOW[how])
    address = address.replace("http:", "https:" if how == "TLS" else "http:")
    with pytest.raises(PictureFault, match="not there in whole after 0.3 seconds"):
        place_of(address, fetch=True)
    assert gone.wait(20)  # and the connection is not kept


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"no such thing as HTTP\r\n\r\n", "cannot be fetched: no such thing"),
        (b"", "cannot be fetched: Remote end closed"),
        (HEAD + b"X: " + b"x" * 70000 + b"\r\n\r\n", "cannot be fetched: got more than 65536 bytes"),
        (HEAD + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n", "cannot be fetched: got more than 100"),
        (HEAD + b"Content-Length: 5000\r\n\r\n" + PNG, r"^it cannot be fetched: [\d,]+ bytes of it did not come"),
        (
            HEAD.replace(b"1.0", b"1.1") + b"Transfer-Encoding: chunked\r\n\r\nfff\r\nabc",
            r"cannot be fetched: IncompleteRead",
        ),
        (HEAD.replace(b"1.0", b"1.1") + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "cannot be fetched"),
        (b"HTTP/1.0 404 Gone fishing\r\n\r\n", "cannot be fetched: Gone fishing"),
    ],
)
def test_what_a_server_says_amiss_is_a_fault_in_words(said, words, raw):
    address, says, _ = raw
    says.append((said, b""))
    with pytest.raises(PictureFault, match=words):
        place_of(address, fetch=True)


def test_whole_pictures_come_in_pieces_and_no_more_than_are_read(raw, monkeypatch):
    address, says, _ = raw
    says.append((HEAD + b"\r\n" + PNG[:-3], PNG[-3:]))
    assert is_drawn(place_of(address, fetch=True))
    monkeypatch.setattr(fetching, "BYTES", 10)
    monkeypatch.setattr(fetching, "SECONDS", 8.0)
    says.append((HEAD + b"Content-Length: 5000\r\n\r\n" + PNG, b"a" * 5000))
    assert place_of(address, fetch=True).data == PNG[:11]


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
