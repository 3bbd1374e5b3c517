"""A hub of one process: the few endpoints that huggingface_hub asks for, on 127.0.0.1, with faults on demand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlparse


class FakeHub:
    """``repos``: {id: {file name: bytes}}. ``requests`` lists what was asked: (method, path, Range header)."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.tags: dict[tuple[str, str], dict[str, bytes]] = {}
        """{(id, name of a revision): its files}; main is ``repos``'"""
        self.gated: set[str] = set()
        self.members: dict[str, set[str]] = {}
        """{token: ids whose licence its owner accepted}"""
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_after: int | None = None
        """Once: break the connection after so many bytes of a weight file's body."""
        self.url = ""

    def commit(self, repo: str, revision: str = "main") -> str:
        files = self.repos[repo] if revision == "main" else self.tags.get((repo, revision))
        if files is None:  # a commit is its own
            return revision
        return hashlib.sha1(b" ".join([repo.encode(), *(n.encode() + d for n, d in files.items())])).hexdigest()

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """Of a branch, a tag or a commit; None where there is no such revision."""
        for name, files in [("main", self.repos[repo]), *((t, f) for (r, t), f in self.tags.items() if r == repo)]:
            if revision in (name, self.commit(repo, name)):
                return files
        return None

    def fetched(self, ending: str = "") -> list[str]:
        """Names of files whose content was asked for."""
        return [
            p.rsplit("/", 1)[1] for m, p, _ in self.requests if m == "GET" and "/resolve/" in p and p.endswith(ending)
        ]


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if path.startswith("/api/models/"):
            self.api(path.removeprefix("/api/models/"))
        else:
            repo, _, rest = path.lstrip("/").partition("/resolve/")
            self.file(repo, *rest.partition("/")[::2])

    def api(self, path: str) -> None:
        for kind in ("/revision/", "/tree/"):
            if kind in path:
                repo, _, revision = path.partition(kind)
                break
        else:
            repo, kind, revision = path, "/revision/", "main"
        if repo not in self.hub.repos:
            return self.fail(401, "RepoNotFound")
        files = self.hub.files(repo, revision)
        if files is None:
            return self.fail(404, "RevisionNotFound")
        if kind == "/tree/":
            return self.answer([{"type": "file", **self.blob(n, d), "path": n} for n, d in files.items()])
        siblings = [{"rfilename": n, "blobId": self.blob(n, d)["oid"], **self.blob(n, d)} for n, d in files.items()]
        return self.answer({"id": repo, "modelId": repo, "sha": self.hub.commit(repo, revision), "siblings": siblings})

    def blob(self, name: str, data: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if name.endswith((".safetensors", ".pth", ".bin")):
            sha = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": sha, "sha256": sha, "size": len(data), "pointerSize": 130}
        return entry

    def file(self, repo: str, revision: str, name: str) -> None:
        if repo in self.hub.gated:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token not in self.hub.members:
                return self.fail(401, "GatedRepo")
            if repo not in self.hub.members[token]:
                return self.fail(403, "GatedRepo")
        data = ((self.hub.files(repo, revision) if repo in self.hub.repos else None) or {}).get(name)
        if data is None:
            return self.fail(404, "EntryNotFound")
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", self.hub.commit(repo, revision))
        self.send_header("ETag", f'"{self.etag(name, data)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        if self.hub.cut_after is not None and name.endswith(".safetensors"):
            data, self.hub.cut_after = data[: start + self.hub.cut_after], None
            self.close_connection = True
        self.wfile.write(data[start:])
        return None

    def etag(self, name: str, data: bytes) -> str:
        blob = self.blob(name, data)
        return str(blob["lfs"]["sha256"] if "lfs" in blob else blob["oid"])  # type: ignore[index]

    def answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub on a free port of this machine while the block runs; ``hub.url`` says where."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
