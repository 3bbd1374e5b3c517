"""The page's own files: read once, served from a table of exact paths, with headers that let them do little."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = "/ui/"
FOLDER = Path(__file__).resolve().parent / "static"
START = "index.html"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Nothing from elsewhere, nothing inline, and no text that becomes markup: whatever writes to innerHTML throws."""
HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class PageFile:
    """One file of the page."""

    data: bytes
    kind: str
    etag: str


@cache
def page_files() -> Mapping[str, PageFile]:
    """{path of a request: file}. A path that is not in it is nothing: none is ever joined to a folder."""
    table = {}
    for file in sorted(FOLDER.iterdir()):
        if file.suffix in KINDS:
            data = file.read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            table[ROOT + ("" if file.name == START else file.name)] = PageFile(data, KINDS[file.suffix], etag)
    return table
