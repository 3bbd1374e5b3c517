"""What lies at an address of the web, or is answered there: within one deadline for all of it, however slowly a server
sends."""

from __future__ import annotations

import socket
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from threading import Lock, Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, build_opener
from urllib.request import Request as WebRequest

from halter.pictures.process import BYTES, PictureFault

SECONDS = 60.0
"""For looking a name up, connecting, every answer that leads on, and all bytes together."""
SILENT_SECONDS = 30.0
"""Without a byte."""
PIECE = 1 << 16


SAID_BYTES = 4096
"""Of what a server says to a refusal of what was posted."""


class Unanswered(PictureFault):
    """``status``: what a server answered in place of what was asked for, None where it answered nothing, and ``said``
    beside it to what was posted; ``why``: the reason in words."""

    def __init__(self, why: str, status: int | None = None, said: bytes = b"") -> None:
        self.why, self.status, self.said = why, status, said
        super().__init__(f"it cannot be fetched: {why}"[:200])


def fetched(address: str) -> bytes:
    """What lies at an address, at most BYTES + 1 of it. Raises PictureFault."""
    asked = WebRequest(address, headers={"User-Agent": "halter"})
    return _done(_Fetching(asked, BYTES, SILENT_SECONDS), SECONDS)


def posted(address: str, body: bytes, headers: dict[str, str], most: int, seconds: float) -> bytes:
    """What is answered to ``body``, at most ``most`` + 1 bytes of it. Nothing that leads elsewhere is followed:
    what was posted and its key are for this address. Raises Unanswered."""
    try:
        asked = WebRequest(address, body, {"User-Agent": "halter", **headers}, method="POST")
        return _done(_Fetching(asked, most, 2 * seconds), seconds)  # the deadline ends it, and nothing beside it
    except ValueError as error:  # PictureFault is one, and so is an address that is none
        raise error if isinstance(error, Unanswered) else Unanswered(str(error)) from None


def _done(fetching: _Fetching, seconds: float) -> bytes:
    worker = Thread(target=fetching.run, daemon=True)
    worker.start()
    try:
        worker.join(seconds)
        late = worker.is_alive()
    finally:
        fetching.give_up()
    if late:
        raise Unanswered(f"it was not there in whole after {seconds:g} seconds")
    if fetching.fault is not None:
        raise fetching.fault
    return fetching.data


class _Fetching:
    """One question's, by a thread of its own: a timeout of a socket is for one read, and a server that sends a byte now
    and then is never out of it. Connections are kept, so that they can be shut and the thread ends."""

    def __init__(self, asked: WebRequest, most: int, silent: float) -> None:
        self.asked, self.most, self.silent = asked, most, silent
        self.data = b""
        self.fault: Exception | None = None
        self._given_up = False
        self._sockets: list[socket.socket] = []
        self._lock = Lock()

    def run(self) -> None:
        try:
            self.data = self._read()
        except PictureFault as fault:
            self.fault = fault
        except (URLError, HTTPException, OSError, ValueError) as error:
            why = getattr(error, "reason", None) or error
            status = error.code if isinstance(error, HTTPError) else None
            self.fault = Unanswered(str(why) or type(error).__name__, status, self._said(error))
        except Exception as fault:  # whose thread this is cannot know
            self.fault = fault

    def _said(self, error: Exception) -> bytes:
        """What a server says beside its refusal."""
        if self.asked.data is not None and isinstance(error, HTTPError):
            with suppress(HTTPException, OSError, ValueError):
                return error.read(SAID_BYTES)
        return b""

    def _read(self) -> bytes:
        follow = _WebOnly if self.asked.data is None else _Nowhere
        opener = build_opener(follow, _Plain(self), _Secure(self))
        held = bytearray()
        with opener.open(self.asked, timeout=self.silent) as answer:
            while len(held) <= self.most and (piece := answer.read1(PIECE)):
                held += piece
            if len(held) <= self.most and answer.length:
                raise Unanswered(f"{answer.length:,} bytes of it did not come")
        return bytes(held[: self.most + 1])

    def keep(self, connected: socket.socket) -> None:
        """Know a connection. A duplicate, as TLS takes the socket itself for its own."""
        with self._lock:
            if self._given_up:
                raise OSError("given up")
            self._sockets.append(connected.dup())

    def give_up(self) -> None:
        """Shut what is still connected; whoever reads there ends."""
        with self._lock:
            self._given_up = True
            for one in self._sockets:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
            self._sockets.clear()


class _PlainConnection(HTTPConnection):
    fetching: _Fetching

    def connect(self) -> None:
        super().connect()
        self.fetching.keep(self.sock)


class _SecureConnection(HTTPSConnection, _PlainConnection):
    """HTTPSConnection's ``connect`` goes through that of _PlainConnection, and then speaks TLS."""


class _Plain(HTTPHandler):
    def __init__(self, fetching: _Fetching) -> None:
        super().__init__()
        self.fetching = fetching

    def http_open(self, req: WebRequest) -> HTTPResponse:
        return self.do_open(self._connection, req)

    def _connection(self, host: str, **how: Any) -> _PlainConnection:
        made = _PlainConnection(host, **how)
        made.fetching = self.fetching
        return made


class _Secure(HTTPSHandler):
    def __init__(self, fetching: _Fetching) -> None:
        super().__init__()
        self.fetching = fetching

    def https_open(self, req: WebRequest) -> HTTPResponse:
        return self.do_open(self._connection, req)

    def _connection(self, host: str, **how: Any) -> _SecureConnection:
        made = _SecureConnection(host, **how)
        made.fetching = self.fetching
        return made


class _WebOnly(HTTPRedirectHandler):
    """Follows an answer to the web alone."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.lower().startswith(("http://", "https://")):
            raise PictureFault("its address leads away from the web")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Nowhere(HTTPRedirectHandler):
    """Follows no answer."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        raise Unanswered("it leads to another address, and what is posted goes to no other", code)
