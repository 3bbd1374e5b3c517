"""Keys of a server: what the file holds and must be, who is let in, and what a key may ask for."""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from halter.errors import Refusal
from halter.serve.trust.keys import KeyRing, ServeKey, digest_of, new_key, read_keys, write_keys
from halter.serve.trust.tenants import Tenant


def row(**more: Any) -> dict[str, Any]:
    return {"id": "acme-1", "tenant": "acme", "sha256": "ab" * 32, "adapters": ["*"]} | more


def written(folder: Path, value: Any) -> Path:
    path = folder / "keys.json"
    path.write_text(json.dumps(value))
    return path


def key(id: str, presented: str, *adapters: str) -> ServeKey:
    return ServeKey(id, "acme", digest_of(presented), adapters)


def test_a_file_of_keys_is_read_as_it_was_written(tmp_path: Path) -> None:
    keys = KeyRing((key("a", "one", "law"), ServeKey("b", "other", "cd" * 32, ("*",), 60, 100_000)))
    write_keys(tmp_path / "keys.json", keys)
    assert read_keys(tmp_path / "keys.json").keys == keys.keys
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    assert digest_of("one") == hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({}, "keys: a list with at least one key is needed"),
        ({"keys": []}, "at least one key"),
        ({"keys": {}}, "at least one key"),
        ({"keys": [row()], "kees": 1}, "kees: unknown"),
        ({"keys": ["x"]}, "key 1: not an object"),
        ({"keys": [row(id=None)]}, "key 1: id: a name"),
        ({"keys": [row(id="A b")]}, "key 1: id: a name"),
        ({"keys": [row(tenant="../x")]}, "key 1: tenant: a name"),
        ({"keys": [row(sha256="AB" * 32)]}, "key 1: sha256: a digest"),
        ({"keys": [row(sha256="halter-a-key-itself")]}, "key 1: sha256: a digest"),
        ({"keys": [row(adapters=None)]}, "key 1: adapters: a list of names"),
        ({"keys": [row(adapters=[])]}, "key 1: adapters: a list of names"),
        ({"keys": [row(adapters=[1])]}, "key 1: adapters: a list of names"),
        ({"keys": [row(adapters="*")]}, "key 1: adapters: a list of names"),
        ({"keys": [row(request_per_minute=3)]}, "did you mean requests_per_minute?"),
        ({"keys": [row(tokens_per_minute=0)]}, "key 1: tokens_per_minute: a whole number"),
        ({"keys": [row(tokens_per_minute=True)]}, "key 1: tokens_per_minute: a whole number"),
        ({"keys": [row(requests_per_minute=1.5)]}, "key 1: requests_per_minute: a whole number"),
        ({"keys": [row(), row(sha256="cd" * 32)]}, "id acme-1: several keys have it"),
        ({"keys": [row(), row(id="b")]}, f"sha256 {'ab' * 32}: several keys have it"),
    ],
)
def test_a_file_that_is_wrong_lets_nobody_in(value: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        read_keys(written(tmp_path, value))
    assert caught.value.id == "keys-file" and any(told in one for one in caught.value.found), caught.value.found


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        read_keys(written(tmp_path, {"keys": [row(id=1, adapters=[]), row(tenant=""), 3]}))
    assert len(caught.value.found) == 4


def test_a_file_that_is_missing_empty_unreadable_or_open_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for make, id in (
        (lambda: None, "file-missing"),
        (path.touch, "file-not-json"),
        (lambda: path.write_text("[]"), "file-not-json"),
        (lambda: path.write_bytes(b"\xff\xfe\x00"), "file-not-text"),
    ):
        make()
        with pytest.raises(Refusal, match=rf"\[{id}\]"):
            read_keys(path)
    written(tmp_path, {"keys": [row()]}).chmod(0o666)
    with pytest.raises(Refusal, match=r"may write to this file .*chmod 644 .*\[secret-open\]"):
        read_keys(path)
    path.chmod(0o444)  # as a mounted secret is
    assert len(read_keys(path).keys) == 1


def test_who_presents_a_key_is_who_has_it() -> None:
    keys = KeyRing((key("a", "one", "*"), key("b", "two", "*"), key("c", "three", "*")))
    for presented, id in (("one", "a"), ("two", "b"), ("three", "c")):
        found = keys.of(presented)
        assert found is not None and found.id == id
    for presented in ("", "One", "one ", "on", digest_of("one"), "\ud800", "x" * 100_000, "ключ"):
        assert keys.of(presented) is None


def test_every_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KeyRing(tuple(key(f"k{n}", f"word {n}", "*") for n in range(7)))
    compared: list[str] = []

    real = secrets.compare_digest

    def compare(a: str, b: str) -> bool:
        compared.append(a)
        return real(a, b)

    monkeypatch.setattr(secrets, "compare_digest", compare)
    for presented in ("word 0", "word 3", "word 6", "nobody's"):
        compared.clear()
        keys.of(presented)
        assert compared == [one.sha256 for one in keys.keys]


def test_an_adapter_that_a_key_may_not_ask_for_is_as_one_that_is_not_there() -> None:
    one = key("a", "one", "law", "gone").owner
    assert (one.name, one.key) == ("acme", "a")
    assert [name for name in ("base", "law", "medicine", "*") if one.may(name)] == ["law"]
    assert all(key("b", "two", *names).owner.may("base") for names in (("*",), ("law", "*")))


def test_the_ring_says_who_asks() -> None:
    keys = KeyRing((key("a", "one", "law"), ServeKey("b", "other", digest_of("two"), ("*",), 60, 100_000)))
    assert keys.admit("one") == Tenant("acme", "a", frozenset({"law"}))
    assert keys.admit("two") == Tenant("other", "b", None, None, 60, 100_000)
    assert keys.admit(None) is keys.admit("") is keys.admit("three") is None


def test_keys_are_drawn_anew() -> None:
    drawn = {new_key() for _ in range(100)}
    assert len(drawn) == 100 and all(len(one) == 50 and one.startswith("halter-") for one in drawn)
