"""A server from its start to its end, in the main thread or in a test's."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import uvicorn

from halter.errors import HalterError
from halter.serve.admin import admin_app_of
from halter.serve.app import app_of
from halter.serve.page.files import ROOT
from halter.serve.service import Service
from halter.serve.settings import HEADER_BYTES, KEEP_ALIVE, ServeOptions
from halter.serve.trust.admin_key import AdminKey
from halter.serve.wire.connection import BoundedConnection
from halter.telling import Say

LOOPBACK_ADDRESS = "127.0.0.1"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """uvicorn, but for signals: the first one lets answers come to their end, a second one does not."""

    def __init__(self, config: uvicorn.Config, service: Service, drain: float) -> None:
        super().__init__(config)
        self._service, self._drain = service, drain
        self._ending: asyncio.Task[None] | None = None

    def end(self) -> None:
        """Take nothing more, let what is worked on be answered within ``drain`` seconds, then stop."""
        if self._ending is not None:
            self._drain_over()
            return
        self._service.admission.draining = True
        self._ending = asyncio.get_running_loop().create_task(self._drained())

    async def _drained(self) -> None:
        try:
            async with asyncio.timeout(self._drain):
                await self._service.admission.idle()
        except TimeoutError:
            pass
        self._drain_over()

    def _drain_over(self) -> None:
        self._service.engine.cancel_all()
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        events = asyncio.get_running_loop()
        before = {one: signal.getsignal(one) for one in SIGNALS}
        for one in SIGNALS:
            events.add_signal_handler(one, self.end)
        try:
            yield
        finally:
            for one in SIGNALS:
                events.remove_signal_handler(one)
                signal.signal(one, before[one])


async def serve(
    make: Callable[[], Service], options: ServeOptions, say: Say, begun: Callable[[Server, Any], None] | None = None
) -> None:
    """Serve what ``make`` makes, on the event loop of this call, until the end. ``begun`` is told of the server and its
    address once it listens. HalterError where the address cannot be had.
    """
    with ExitStack() as open_sockets:
        listening = open_sockets.enter_context(_listening(options.host, options.port, "--port"))
        service = make()
        most, app = options.connections, app_of(service)
        config = _config(app, most, ssl_certfile=options.tls_cert, ssl_keyfile=options.tls_key)
        server = Server(config, service, options.drain)
        address = listening.getsockname()
        name, *adapters = service.names()
        beside = f" with {len(adapters)} adapter{'s' if len(adapters) > 1 else ''}" if adapters else ""
        scheme = "http" if options.tls_cert is None else "https"
        say(f"serving {name}{beside} on {scheme}://{_shown(address)}/v1")
        if not options.no_page:
            say(f"the page: {scheme}://{_shown(address)}{ROOT}")
        if begun is not None:
            begun(server, address)
        try:
            async with _administered(service, options, say):
                await server.serve(sockets=[listening])
        finally:
            await service.close()


@asynccontextmanager
async def _administered(service: Service, options: ServeOptions, say: Say) -> AsyncIterator[None]:
    """Within, the second port answers, where one is asked for."""
    if options.admin is None:
        yield
        return
    key = AdminKey()
    with _listening(LOOPBACK_ADDRESS, options.admin_port, "--admin-port") as listening:
        server = _Second(_config(admin_app_of(service, key.admit), options.connections))
        url = f"http://{_shown(listening.getsockname())}"
        with key.told(options.admin, url):
            say(f"adapters are administered on {url}; its key stands in {options.admin}")
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            try:
                yield
            finally:
                server.should_exit = True
                await serving


class _Second(uvicorn.Server):
    """uvicorn, but for signals: they are the first one's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: Any, connections: int, **more: Any) -> uvicorn.Config:
    protocol: Any = partial(BoundedConnection, most=connections)
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=HEADER_BYTES,
        **more,
    )


def _listening(host: str, port: int, option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        where = f"{host}:{port}"
        raise HalterError(
            f"{where} cannot be listened on: {error.strerror or error}; {option} names another"
        ) from error


def _shown(address: Any) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
