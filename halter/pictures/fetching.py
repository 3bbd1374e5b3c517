"""A picture's bytes from an address of the web: within one deadline for all of it, however slowly a server answers."""

from __future__ import annotations

import socket
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from threading import Lock, Thread
from typing import Any
from urllib.error import URLError
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, build_opener
from urllib.request import Request as WebRequest

from halter.pictures.process import BYTES, PictureFault

SECONDS = 60.0
"""For looking a name up, connecting, every answer that leads on, and all bytes together."""
SILENT_SECONDS = 30.0
"""Without a byte."""
PIECE = 1 << 16


def fetched(address: str) -> bytes:
    """What lies at an address, at most BYTES + 1 of it. Raises PictureFault."""
    fetching = _Fetching(address)
    worker = Thread(target=fetching.run, daemon=True)
    worker.start()
    try:
        worker.join(SECONDS)
        late = worker.is_alive()
    finally:
        fetching.give_up()
    if late:
        raise PictureFault(f"it cannot be fetched: it was not there in whole after {SECONDS:g} seconds")
    if fetching.fault is not None:
        raise fetching.fault
    return fetching.data


class _Fetching:
    """One picture's, by a thread of its own: a timeout of a socket is for one read, and a server that sends a byte now
    and then is never out of it. Connections are kept, so that they can be shut and the thread ends."""

    def __init__(self, address: str) -> None:
        self.address = address
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
            self.fault = PictureFault(f"it cannot be fetched: {str(why) or type(error).__name__}"[:200])
        except Exception as fault:  # whose thread this is cannot know
            self.fault = fault

    def _read(self) -> bytes:
        asked = WebRequest(self.address, headers={"User-Agent": "halter"})
        opener = build_opener(_WebOnly, _Plain(self), _Secure(self))
        held = bytearray()
        with opener.open(asked, timeout=SILENT_SECONDS) as answer:
            while len(held) <= BYTES and (piece := answer.read1(PIECE)):
                held += piece
            if len(held) <= BYTES and answer.length:
                raise PictureFault(f"it cannot be fetched: {answer.length:,} bytes of it did not come")
        return bytes(held[: BYTES + 1])

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
