"""Bytes read by several threads are the file's bytes, and a file that ends too soon is told."""

from __future__ import annotations

import os
import random

import pytest

from halter.files import bulk


@pytest.fixture(params=["positions", "one after the other"])
def span(request, monkeypatch):
    """A span small enough for many threads' worth of parts; with and without reading at a position."""
    monkeypatch.setattr(bulk, "_SPAN", 1 << 12)
    monkeypatch.setattr(bulk, "_CALL", 3_000)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    if request.param != "positions":
        monkeypatch.setattr(bulk, "_READ_AT", None)


@pytest.mark.parametrize(("length", "offset"), [(0, 0), (1, 7), (4096, 1), (50_001, 13), (8192 * 4, 0)])
def test_every_byte_comes_from_its_place(span, tmp_path, length, offset):
    data = random.Random(0).randbytes(60_000)
    (tmp_path / "file").write_bytes(data)
    view = memoryview(bytearray(length))
    with open(tmp_path / "file", "rb", buffering=0) as file:
        bulk.fill(file.fileno(), view, offset)
    assert bytes(view) == data[offset : offset + length]


def test_a_file_that_ends_too_soon_is_told(span, tmp_path):
    (tmp_path / "file").write_bytes(bytes(50_000))
    with open(tmp_path / "file", "rb", buffering=0) as file, pytest.raises(bulk.Shortened):
        bulk.fill(file.fileno(), memoryview(bytearray(50_001)), 0)
