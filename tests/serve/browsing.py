"""The page in headless Chromium, watched: what goes to the console, what fails, and what leaves for another address."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium")
MISSING = "" if CHROMIUM else "no headless Chromium: the Debian package chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MESSAGE, PROMPT = "#chat textarea[aria-label=Message]", "#compare textarea[aria-label=Prompt]"
WATCHING = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, for as long as the block runs."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


class Watched:
    """A tab. ``page`` is playwright's. At the end of the block nothing may have failed or left for elsewhere; ``may``:
    what the console may say."""

    def __init__(self, browser: Any, port: int, may: Sequence[str] = (), **context: Any) -> None:
        self._context = browser.new_context(viewport={"width": 1280, "height": 800}, **context)
        self._context.set_default_timeout(30_000)
        self._context.add_init_script(WATCHING)
        self.page, self.home, self._may = self._context.new_page(), f"http://127.0.0.1:{port}/ui/", may
        self.faults: list[str] = []
        self.page.on("console", lambda told: self._told(told.text) if told.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self._context.on("request", self._asked)

    def _told(self, text: str) -> None:
        if not any(re.search(pattern, text) for pattern in self._may):
            self.faults.append(f"console: {text}")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.home.removesuffix("ui/"), "blob:", "data:")):
            self.faults.append(f"request: {request.url}")

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, kind: Any, *raised: Any) -> None:
        violations = [] if kind else self.page.evaluate("window.violations ?? []")
        self._context.close()
        if kind is None:
            assert self.faults == [] and violations == []

    def open(self, fragment: str = "", ready: str = "#chat option") -> Any:
        """The page, once its models are there; returns playwright's page."""
        self.page.goto(self.home + fragment)
        self.page.wait_for_selector(ready, state="attached")
        return self.page

    def fake_answer(self, *pieces: str, **more: Any) -> None:
        """From now on every chat is answered by these pieces, with the server not asked."""
        events = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], **more})
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self.fake("**/v1/chat/completions", body, "text/event-stream")

    def fake(self, where: str, body: Any, kind: str = "application/json", status: int = 200, **headers: str) -> None:
        """From now on requests to these addresses are answered so."""
        text = body if isinstance(body, str) else json.dumps(body)
        dashed = {name.replace("_", "-"): value for name, value in headers.items()}
        self.page.route(
            where, lambda route: route.fulfill(status=status, body=text, headers={"content-type": kind, **dashed})
        )


class Paced:
    """The engine of a server, slowed to a few steps a second so that a test can act between them; ``most``: rows that
    were worked on together."""

    def __init__(self, server: Any, seconds: float = 0.01) -> None:
        loop = server.service.engine
        step, self.most, self.quick = loop._engine.step, 0, threading.Event()

        def slow() -> Any:
            self.most = max(self.most, len(loop._rows))
            if not self.quick.is_set():
                time.sleep(seconds)
            return step()

        loop._engine.step = slow


def choose(page: Any, selector: str, name: str) -> None:
    page.locator(selector).select_option(name)
