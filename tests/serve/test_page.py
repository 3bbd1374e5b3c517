"""The page without a browser: its files and their headers, and the routes that tell it of runs and adapters."""

from __future__ import annotations

import json
import os
import re
import tomllib
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from test_trust import first_line, ring, shown

from halter.cli import main
from halter.cli.serve import _digest
from halter.files.checkpoint import open_checkpoint
from halter.files.runs import RunFolder
from halter.playground import base_folder
from halter.pretrained.digest import BaseIdentity

pytest.importorskip("starlette")
from halter.serve.page.cards import Cards  # noqa: E402
from halter.serve.page.files import FOLDER, KINDS, POLICY, page_files  # noqa: E402
from halter.serve.page.runs import MOST_BYTES, WatchedRuns  # noqa: E402
from halter.serve.wire.prompts import Speaking  # noqa: E402
from halter.serve.wire.shapes import ServedBase  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(FOLDER.glob("*.js"))
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
FORBIDDEN = (
    r"\b(inner|outer)HTML\b",
    r"\binsertAdjacentHTML\b",
    r"\bdocument\.write",
    r"\beval\b",
    r"\bnew Function\b",
    r"\bFunction\(",
    r"\bset(Timeout|Interval)\(\s*[\"'`]",
    r"\bDOMParser\b",
    r"\bcreateContextualFragment\b",
    r"\bsrcdoc\b",
    r"\btrustedTypes\b",
    r"\bimport\(",
    r"\b(WebSocket|EventSource|sendBeacon|XMLHttpRequest|Worker)\b",
    r"\.cookie\b",
    r"setAttribute\(\s*[\"']style",
    r"https?://(?!www\.w3\.org/2000/svg)",
)
"""What no file of the page may hold: ways from text to markup or code, and addresses of others."""


def forbidden(text: str) -> list[str]:
    return [pattern for pattern in FORBIDDEN if re.search(pattern, text)]


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_nothing_of_the_page_can_become_code_or_reach_others() -> None:
    for file in FOLDER.iterdir():
        assert file.suffix in KINDS and forbidden(file.read_text("utf-8")) == [], file
    for planted in (
        "node.innerHTML = text",
        "eval(text)",
        "new Function(text)",
        'setTimeout("run()", 1)',
        'fetch("https://example.org")',
        "document.write(text)",
    ):
        assert forbidden(planted), planted


def test_the_html_holds_no_script_style_or_address_of_others() -> None:
    tags = Tags((FOLDER / "index.html").read_text("utf-8")).tags
    here = {file.name for file in FOLDER.iterdir()}
    for tag, given in tags:
        assert tag != "style" and not any(name == "style" or name.startswith("on") for name in given), tag
        for name in ("src", "href"):
            address = given.get(name)
            assert address is None or address in here or address.startswith("#"), (tag, address)
    assert [given for tag, given in tags if tag == "script"] == [{"type": "module", "src": "app.js"}]
    imports = {name for file in SCRIPTS for name in re.findall(r'from "([^"]+)"', file.read_text("utf-8"))}
    assert imports <= {f"./{name}" for name in here}


def test_scripts_import_what_others_export_and_find_what_the_html_has() -> None:
    texts = {file.name: file.read_text("utf-8") for file in SCRIPTS}
    declared = re.compile(r"^export (?:async )?(?:function|const|class|let) (\w+)", re.MULTILINE)
    exported = {name: set(declared.findall(text)) for name, text in texts.items()}
    for name, text in texts.items():
        for names, other in re.findall(r'^import \{([^}]+)\} from "\./([^"]+)"', text, re.MULTILINE):
            wanted = {one.strip() for one in names.split(",") if one.strip()}
            assert wanted <= exported[other], (name, other, wanted - exported[other])
            assert [one for one in wanted if len(re.findall(rf"\b{one}\b", text)) < 2] == [], (name, "not used")
    ids = {given["id"] for _, given in Tags((FOLDER / "index.html").read_text("utf-8")).tags if "id" in given}
    get = re.compile(r'(?:getElementById|(?<!\.)\bget)\("([^"]+)"\)')
    found = {one for text in texts.values() for one in get.findall(text)}
    assert {"theme", "entry", "status"} <= found <= ids
    # The routes that the scripts ask are the server's own.
    addresses = {one for text in texts.values() for one in re.findall(r'["`](/(?:v1|ui)/[^"`?$]*)', text)}
    assert addresses == {"/v1/chat/completions", "/v1/models", "/v1/models/", "/ui/cards", "/ui/runs", "/ui/runs/"}


def test_the_wheel_has_the_pages_files() -> None:
    """test_package.py builds it and compares; this is quick and names what is missing."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    package = FOLDER.parent
    found = {file for glob in data["halter.serve.page"] for file in package.glob(glob)}
    assert found == set(FOLDER.iterdir()) and len(found) > 5


def test_its_files_are_served_with_headers_that_let_them_do_little(served: Any) -> None:
    status, headers, body = served.ask("/ui/")
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["trusted-types"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'" and policy["img-src"] == "'self' data:"
    assert "unsafe" not in headers["content-security-policy"]
    for path in page_files():
        status, headers, body = served.ask(path)
        assert status == 200 and len(body) == int(headers["content-length"])
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["content-security-policy"] == POLICY and headers["cache-control"] == "no-cache"
        kind = TYPES[Path(path).suffix or ".html"]
        assert headers["content-type"].split(";")[0] == kind, path
        assert "charset=utf-8" in headers["content-type"] or kind == "image/svg+xml"
        status, headers, body = served.ask(path, if_none_match=headers["etag"])
        assert status == 304 and body == b"" and "content-security-policy" in headers
    status, headers, _ = served.ask("/ui")
    assert status == 308 and headers["location"] == "/ui/"
    assert served.ask("/ui/", {})[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/ui/../v1/models",
        "/ui/%2e%2e/files.py",
        "/ui/..%2ffiles.py",
        "/ui/../files.py",
        "/ui//etc/passwd",
        "/ui/static/app.js",
        "/ui/index.html",
        "/ui/app.js/",
        "/ui/APP.JS",
        "/ui/app.js%00",
        "/ui/runs/../cards",
        "/ui/runs/..%2f..%2fetc/metrics",
        "/ui/runs/%2e%2e/metrics",
        "/ui/runs/lora%2fadapter/metrics",
    ],
)
def test_no_path_leads_elsewhere(path: str, served: Any) -> None:
    status = first_line(served, f"GET {path} HTTP/1.1\nhost: localhost\nconnection: close\n\n").split()[1]
    assert status in ("404", "400"), (path, status)


def log_of(folder: Path, *lines: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = RunFolder(folder).metrics
    with file.open("a") as log:
        log.write("".join(lines))
    return file


def test_a_log_is_read_on_from_an_offset_in_whole_lines(tmp_path: Path) -> None:
    file = log_of(tmp_path / "runs" / "001-lora", '{"step": 1}\n', '{"step"')
    runs = WatchedRuns([tmp_path / "runs"], {})
    part = runs.read("001-lora", 0)
    assert part is not None and part.lines == b'{"step": 1}\n' and part.next == 12
    again = runs.read("001-lora", part.next)
    assert again is not None and again.lines == b"" and again.next == 12
    log_of(tmp_path / "runs" / "001-lora", ': 2, "word": "Zürich"}\n')
    grown = runs.read("001-lora", part.next)
    assert grown is not None and json.loads(grown.lines) == {"step": 2, "word": "Zürich"}
    assert grown.next == file.stat().st_size and grown.file == part.file
    # Every offset gives the same bytes from there on, and ends where a line does.
    whole = file.read_bytes()
    for after in range(len(whole) + 3):
        told = runs.read("001-lora", after)
        assert told is not None and told.lines == whole[after:] and told.next == max(after, len(whole))
    assert [row["name"] for row in runs.listed()] == ["001-lora"] and not runs.listed()[0]["finished"]
    (tmp_path / "runs" / "001-lora" / "adapter").mkdir()
    assert runs.listed()[0]["finished"]
    # Another file in its place is told apart.
    file.rename(tmp_path / "old")
    log_of(tmp_path / "runs" / "001-lora", '{"step": 7}\n')
    other = runs.read("001-lora", 0)
    assert other is not None and other.file != part.file
    assert runs.read("002-lora", 0) is None and runs.read("../runs/001-lora", 0) is None


def test_a_long_log_comes_in_parts(tmp_path: Path) -> None:
    line = '{"step": 1, "pad": "' + "x" * 4000 + '"}\n'
    file = log_of(tmp_path / "run", *[line] * 600)
    runs, read, parts = WatchedRuns([tmp_path / "run"], {}), b"", 0
    while (part := runs.read("run", len(read))) is not None and part.lines:
        assert len(part.lines) <= MOST_BYTES and part.next == len(read) + len(part.lines)
        read, parts = read + part.lines, parts + 1
    assert read == file.read_bytes() and parts == 3
    endless = log_of(tmp_path / "endless", "x" * (MOST_BYTES + 5), "\n", line)
    runs, after, lines = WatchedRuns([endless.parent], {}), 0, b""
    for _ in range(4):  # what is no line of a run does not hold up those behind it
        told = runs.read("endless", after)
        assert told is not None
        after, lines = told.next, lines + told.lines
    assert lines.endswith(line.encode()) and after == endless.stat().st_size


def test_runs_are_those_of_the_starts_folders(tmp_path: Path) -> None:
    for name in ("a", "b", ".hidden", "Capital", "no name"):
        log_of(tmp_path / "one" / name, "{}\n")
    log_of(tmp_path / "two" / "a", "{}\n")
    (tmp_path / "one" / "empty").mkdir()
    os.mkfifo(tmp_path / "one" / "empty" / "metrics.jsonl")
    runs = WatchedRuns([tmp_path / "one", tmp_path / "two"], {"served": tmp_path / "one" / "b", "no": tmp_path})
    assert [row["name"] for row in runs.listed()] == ["a", "a.2", "capital", "served"]
    log_of(tmp_path / "two" / "later", "{}\n")
    assert "later" in [row["name"] for row in runs.listed()]


def test_what_the_page_asks_for(world: Any, tmp_path: Path) -> None:
    log_of(tmp_path / "runs" / "mine", '{"step": 1, "loss": 2.5}\n')
    log_of(tmp_path / "runs" / "lora", '{"step": 1, "loss": 3.5}\n')
    with world.server(runs=(str(tmp_path / "runs"),), admit=ring().admit) as server:
        for path in ("/ui/runs", "/ui/cards", "/ui/runs/mine/metrics", "/ui/nothing", "/ui/cards/", "/ui/app.js/"):
            assert server.ask(path)[0] == server.ask(path, **shown("nobody"))[0] == 401, path
        for path in ("/ui", *page_files()):
            assert server.ask(path)[0] in (200, 308), path
            assert server.ask(path, host="evil.example")[0] == 403
            assert server.ask(path, origin="https://evil.example")[0] == 403
        law, everything = shown("of-law"), shown("of-all")
        for path in ("/ui/runs", "/ui/runs/mine/metrics", "/ui/cards"):
            assert server.ask(path, host="evil.example", **everything)[0] == 403
            assert server.ask(path, origin="https://evil.example", **everything)[0] == 403
        listed = server.ask("/ui/runs", **everything)[2]["runs"]
        assert [row["name"] for row in listed] == ["lora", "mine"]
        assert all(set(row) == {"name", "finished", "bytes", "changed"} for row in listed)
        status, headers, body = server.ask("/ui/runs/mine/metrics", **everything)
        assert status == 200 and body == b'{"step": 1, "loss": 2.5}\n' and headers["x-halter-next"] == str(len(body))
        assert "content-security-policy" in headers and headers["x-content-type-options"] == "nosniff"
        assert server.ask(f"/ui/runs/mine/metrics?after={len(body)}", **everything)[2] == b""
        for after in ("-1", "x", "1.5", "1e3", "", "9" * 16, "٣"):
            path = f"/ui/runs/mine/metrics?after={quote(after)}"
            assert server.ask(path, **everything)[0] == 400, after
        # A key that names its adapters has no other's run, and cannot tell it from one that is not there.
        assert [row["name"] for row in server.ask("/ui/runs", **law)[2]["runs"]] == ["lora"]
        asked = [server.ask(f"/ui/runs/{name}/metrics", **law) for name in ("mine", "nobody")]
        assert asked[0][0] == 404 and asked[0][2] == asked[1][2]
        assert [card["name"] for card in server.ask("/ui/cards", **law)[2]["cards"]] == ["tiny", "lora"]


def test_cards_tell_what_the_folders_hold(world: Any, tmp_path: Path) -> None:
    run = tmp_path / "scored"
    world.adapter("lora", seed=3).save(run / "adapter")
    (run / "adapter" / "README.md").write_text("---\nlicense: llama3.2\ntags: [x]\n---\n# Mine\n")
    for number, loss in (("001", 2.5), ("002", 1.5)):
        report = {"data": "/secret/place/test.jsonl", "rows": 9, "base": {"loss": 4.0}, "adapter": {"loss": loss}}
        place = run / "evaluations" / f"{number}-evaluation"
        place.mkdir(parents=True)
        (place / "report.json").write_text(json.dumps(report))
    with world.server(also=[f"scored={run}"]) as server:
        told = server.ask("/ui/cards")[2]["cards"]
        cards = {card["name"]: card for card in told}
        base, mine = cards["tiny"], cards["scored"]
        both = {"name", "kind", "method", "parameters", "digest", "licence", "sees", "loaded"}
        assert set(base) == both | {"held", "context"}
        own = {"methods", "rank", "bits", "bytes", "base", "template", "steps", "whole", "scores"}
        assert set(mine) == both | own and set(cards["damaged"]) == {"name", "kind", "unusable", "sees", "loaded"}
        assert told[0] is base and base["kind"] == "base" and base["parameters"] == world.model.config.num_parameters
        assert mine["method"] == "lora" and mine["rank"] == "16" and mine["licence"] == "llama3.2"
        assert mine["parameters"] == world.loaded("lora").num_trainable and not mine["loaded"]
        assert mine["scores"] == {"data": "test.jsonl", "rows": 9, "base": {"loss": 4.0}, "adapter": {"loss": 1.5}}
        assert cards["damaged"]["unusable"] == "adapter-damaged" and "method" not in cards["damaged"]
        assert server.opened == [] and str(tmp_path) not in json.dumps(told) and "secret" not in json.dumps(told)
        asked = {"model": "scored", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        digest = server.ask("/v1/chat/completions", asked)[2]["halter"]["adapters"][0]["digest"]
        assert mine["digest"] == digest and len(digest) == 64
        again = {card["name"]: card for card in server.ask("/ui/cards")[2]["cards"]}["scored"]
        assert again == {**mine, "loaded": True, "sees": False}
        # What has changed since is read anew.
        (run / "adapter" / "README.md").write_text("---\nlicense: mit\n---\n")
        assert {card["name"]: card for card in server.ask("/ui/cards")[2]["cards"]}["scored"]["licence"] == "mit"


def test_a_digest_that_is_made_beside_the_serving_is_told_once_it_is_there(world: Any, monkeypatch: Any) -> None:
    made: Future[Any] = Future()
    speaking = Speaking(world.opened.template)
    base = ServedBase("tiny", world.model, world.tokenizer, speaking, digesting=made)
    assert base.digest_now() is None and Cards(base).of_base()["digest"] is None
    made.set_result(SimpleNamespace(digest="d" * 64))
    assert base.digest_now() == Cards(base).of_base()["digest"] == "d" * 64 and base.digest == ""
    failed: Future[Any] = Future()
    failed.set_exception(OSError("gone"))
    assert replace(base, digesting=failed).digest_now() is None
    assert replace(base, digest="known").digest_now() == "known"
    with closing(open_checkpoint(base_folder())) as checkpoint:
        opened: Any = SimpleNamespace(model=SimpleNamespace(identity=BaseIdentity.of(checkpoint)))
    digest, making = _digest(opened, made=True)
    assert len(digest) == 64 and making is None and _digest(world.opened, made=False) == ("", None)
    monkeypatch.setattr(BaseIdentity, "kept", lambda self: None)
    nothing, making = _digest(opened, made=False)
    assert nothing == "" and making is not None and making.result(30).digest == digest


def test_without_the_page(world: Any) -> None:
    with world.server(no_page=True) as server:
        assert server.ask("/ui/")[0] == server.ask("/ui/app.js")[0] == server.ask("/ui/runs")[0] == 404
    with world.server(no_page=True, admit=ring().admit) as server:
        assert server.ask("/ui/")[0] == 401


def test_a_folder_of_runs_that_is_not_there_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert main.run(["serve", "playground", "--port", "0", "--runs", str(tmp_path / "nowhere")]) == 2
    err = capsys.readouterr().err
    assert "[file-missing]" in err and "nowhere" in err
