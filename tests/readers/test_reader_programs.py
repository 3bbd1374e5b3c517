"""The readers that are built in, tesseract and an endpoint that speaks OpenAI's chat/completions; and their names."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import reading_by_hand as by_hand
from PIL import Image

from halter.errors import Refusal
from halter.pictures.process import PictureFault
from halter.readers import caption as caption_file
from halter.readers import frame, named
from halter.readers import ocr as ocr_file
from halter.readers.caption import caption
from halter.readers.named import readers_of, register
from halter.readers.ocr import ocr
from halter.readers.reader import PictureReader

WHITE = Image.new("RGB", (8, 4), "white")


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program named tesseract, the only one on PATH; what it does may be written anew."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return lambda **how: by_hand.tesseract(tmp_path, **how)


def refusal(call, *args, **how) -> Refusal:
    with pytest.raises(Refusal) as refused:
        call(*args, **how)
    return refused.value


def test_tesseract_is_asked_with_its_options_and_one_thread(program) -> None:
    log = program()
    assert ocr().read(WHITE) == "Total: 5\n"
    ocr("eng+script/Latin", 3, scale=3).read(WHITE)
    first, second = log.read_text().splitlines()
    assert first.startswith("stdin stdout -l eng --psm 6 1 ")
    assert second.startswith("stdin stdout -l eng+script/Latin --psm 3 1 ")


def test_what_decides_a_text_decides_where_it_is_kept(program, tmp_path) -> None:
    program()
    each = [ocr(), ocr(layout=3), ocr("script/Latin"), ocr(scale=2)]
    assert len({one.version for one in each}) == 4 and ocr().version == each[0].version
    assert "9.9.9" in str(each[0].version)


def test_without_the_program_its_packages_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = refusal(ocr)
    assert refused.id == "extra-missing" and "apt-get install tesseract-ocr" in refused.fix


@pytest.mark.parametrize("language", ["deu", "eng+deu", "", "../eng", "-c", "eng+"])
def test_languages_that_are_not_there_are_named(program, language) -> None:
    program()
    refused = refusal(ocr, language)
    assert refused.id == "reader-language" and "eng, script/Latin" in refused.expected
    assert refused.found == ((language.partition("+")[2] if "+" in language else language),)


def test_options_that_tesseract_has_not_are_refused_together(program) -> None:
    program()
    refused = refusal(ocr, layout=14, scale=9)
    assert refused.id == "reader-options" and len(refused.found) == 2


def test_a_picture_that_it_cannot_read_is_the_pictures_fault(program, monkeypatch) -> None:
    program(then="sys.exit('Error in pixRead\\nno pix')")
    with pytest.raises(PictureFault, match="tesseract could not read it: no pix"):
        ocr().read(WHITE)
    program(then="import time; time.sleep(60)")
    monkeypatch.setattr(ocr_file, "SECONDS", 0.5)
    with pytest.raises(PictureFault, match="not done with it after 0.5 seconds"):
        ocr().read(WHITE)


def test_a_program_that_is_no_tesseract_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "tesseract").write_text("#!/nowhere\n")
    (tmp_path / "tesseract").chmod(0o755)
    assert refusal(ocr).id == "reader-failed"


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="no tesseract")
def test_the_real_tesseract_reads_a_drawn_text(tmp_path) -> None:
    said = frame.reading(ocr().read(by_hand.written("Invoice No: 4711\nTotal: 128.50 EUR")), 1000).text
    assert said.split("\n") == ["Invoice No: 4711", "Total: 128.50 EUR"]


class Endpoint(BaseHTTPRequestHandler):
    """Answers as ``says`` = (status, headers, body) says; ``heard``: (path, headers, body) of each question."""

    says: tuple = (200, {}, b"")
    heard: list = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).heard.append((self.path, dict(self.headers), json.loads(body)))
        status, headers, said = type(self).says
        self.send_response(status)
        for name, value in {"Content-Length": str(len(said)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(said)

    def do_GET(self) -> None:
        type(self).heard.append((self.path, dict(self.headers), None))
        self.send_error(404)

    def log_message(self, *args) -> None: ...


@pytest.fixture
def endpoint(monkeypatch):
    """(its address, its class)."""
    for name in (
        caption_file.AT_VARIABLE,
        caption_file.MODEL_VARIABLE,
        caption_file.KEY_VARIABLE,
        "http_proxy",
        "HTTP_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    Endpoint.heard = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", Endpoint
    server.shutdown()
    server.server_close()
    thread.join()


def answered(content) -> tuple:
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


def test_a_caption_is_asked_for_as_openai_has_it(endpoint, monkeypatch) -> None:
    address, server = endpoint
    monkeypatch.setenv(caption_file.AT_VARIABLE, f"{address}/")
    monkeypatch.setenv(caption_file.KEY_VARIABLE, "sk-secret\n")
    server.says = answered("A white picture.")
    (reader,) = readers_of("caption:model=eyes,instruction=What, in a word, is it?")
    assert reader.read(WHITE) == "A white picture." and reader.heading == frame.SHOWN
    ((path, headers, body),) = server.heard
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer sk-secret"
    (message,) = body["messages"]
    assert body["model"] == "eyes" and body["max_tokens"] == caption_file.TOKENS and message["role"] == "user"
    words, shown = message["content"]
    assert words == {"type": "text", "text": "What, in a word, is it?"} and shown["type"] == "image_url"
    head, _, data = shown["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size == (8, 4)
    server.says = answered([{"type": "text", "text": "In "}, {"type": "text", "text": "parts."}])
    assert reader.read(Image.new("RGB", (5000, 10))) == "In parts."
    sent = server.heard[-1][2]["messages"][0]["content"][1]["image_url"]["url"].partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(sent))).width == caption_file.SIDE


def test_without_a_key_none_is_sent(endpoint) -> None:
    address, server = endpoint
    server.says = answered("")
    assert caption("eyes", url=f"{address}/chat/completions").read(WHITE) == ""
    assert server.heard[0][0] == "/v1/chat/completions" and "Authorization" not in server.heard[0][1]


def test_whom_to_ask_must_be_said_and_no_option_says_it(endpoint, monkeypatch) -> None:
    refused = refusal(caption)
    assert refused.id == "reader-unset" and len(refused.found) == 2 and caption_file.AT_VARIABLE in refused.fix
    assert refusal(caption, "eyes", url="ftp://x").id == "reader-unset"
    assert refusal(caption, "eyes", url=endpoint[0], key="a\nb").id == "reader-unset"
    monkeypatch.setenv(caption_file.AT_VARIABLE, endpoint[0])
    for word in ("url=http://elsewhere", "key=HOME"):  # a stranger's recipe names nobody who gets pictures or keys
        refused = refusal(readers_of, f"caption:model=eyes,{word}")
        assert (refused.id, refused.found) == ("reader-options", (word,))


def test_what_decides_a_caption_decides_where_it_is_kept(endpoint) -> None:
    each = [
        caption("a", url="http://x"),
        caption("b", url="http://x"),
        caption("a", url="http://y"),
        caption("a", "Say it.", url="http://x"),
    ]
    assert len({one.version for one in each}) == 4
    assert caption("a", url="http://x", key="k").version == each[0].version


@pytest.mark.parametrize(
    ("says", "kind", "words"),
    [
        (
            (400, {}, b'{"error": {"message": "image too odd"}}'),
            PictureFault,
            "have it: 400 Bad Request image too",
        ),
        ((413, {}, b"too large"), PictureFault, "413"),
        ((401, {}, b'{"error": {"message": "no key sk-secret"}}'), Refusal, r"401 Unauthorized no key \*\*\*"),
        ((500, {}, b"\x1b[31mred\x00"), Refusal, r"500 Internal Server Error \[31mred"),
        ((302, {"Location": "/elsewhere"}, b""), Refusal, "302 it leads to another address"),
        ((307, {"Location": "/elsewhere"}, b""), Refusal, "307 it leads to another address"),
        ((200, {}, b"<html>"), Refusal, "an answer of another form: <html>"),
        ((200, {}, b"[" * 100_000), Refusal, "an answer of another form"),
        ((200, {}, b'{"choices": []}'), Refusal, "an answer of another form"),
        ((200, {}, b" " * ((1 << 20) + 1)), Refusal, "an answer of more than 1,048,576 bytes"),
        (answered(None), PictureFault, "said nothing of it"),
    ],
)
def test_an_answer_that_is_none_is_told(endpoint, says, kind, words) -> None:
    address, server = endpoint
    server.says = says
    with pytest.raises(kind, match=words) as told:
        caption("eyes", url=address, key="sk-secret").read(WHITE)
    assert "sk-secret" not in str(told.value)
    assert len(server.heard) == 1  # and nothing was sent anywhere else
    if kind is Refusal:
        assert told.value.id == "reader-failed" and told.value.where.startswith(address)


def test_an_endpoint_that_is_not_there_or_late_is_told(endpoint, monkeypatch) -> None:
    assert refusal(caption("eyes", url="http://127.0.0.1:1/v1").read, WHITE).id == "reader-failed"
    late = threading.Event()
    monkeypatch.setattr(Endpoint, "do_POST", lambda self: late.wait(20))
    monkeypatch.setattr(caption_file, "SECONDS", 0.5)
    refused = refusal(caption("eyes", url=endpoint[0]).read, WHITE)
    late.set()
    assert refused.id == "reader-failed" and "0.5 seconds" in str(refused)


def test_readers_are_named_given_or_registered(program, monkeypatch) -> None:
    program()
    monkeypatch.setattr(named, "_registered", {})
    mine = PictureReader("mine", by_hand.length)
    assert readers_of(()) == readers_of("none") == readers_of(["none"]) == ()
    first, second, third = readers_of(["ocr:layout=3,language=eng", mine, by_hand.length])
    assert "--psm 3" in str(first.version) and second is mine
    assert (third.name, third.read, third.version) == ("length", by_hand.length, None)
    assert refusal(readers_of, "mine").id == "reader-unknown"
    assert register(mine) is mine and readers_of("mine") == (mine,)
    assert refusal(readers_of, "mine:a=1").id == "reader-unknown"
    for name in ("ocr", "none", "a:b", ""):
        assert refusal(register, PictureReader(name, by_hand.length)).id == "reader-options"


@pytest.mark.parametrize(
    ("given", "id", "words"),
    [
        ("ocd", "reader-unknown", "did you mean ocr"),
        ("ocr:lang=eng", "reader-options", "language"),
        ("ocr:layout=six", "reader-options", "layout=six"),
        ("ocr:layout", "reader-options", "layout"),
        ("ocr:characters=0", "reader-options", "characters=0"),
        (7, "reader-unknown", "int"),
    ],
)
def test_what_is_no_reader_is_refused(program, given, id, words) -> None:
    program()
    refused = refusal(readers_of, [given])
    assert refused.id == id and words in str(refused)


def test_the_environment_of_the_program_is_the_users(program, monkeypatch) -> None:
    program(then="print(os.environ['TESSDATA_PREFIX'])")
    monkeypatch.setenv("TESSDATA_PREFIX", "/mine")
    assert ocr().read(WHITE) == "/mine\n" and "OMP_THREAD_LIMIT" not in os.environ
