"""`halter keys`: the keys with which people ask a server."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from halter.errors import Refusal

KeysFile = Annotated[Path, typer.Option("--file", help="The file that has the keys.")]
FILE = Path("keys.json")


def command() -> None:
    """Keys of a server. Its file holds their digests alone: a key is shown once, when it is made."""


def new(
    tenant: Annotated[
        str, typer.Argument(metavar="TENANT", help="Who asks with it: a name, for rates and the audit log.")
    ],
    file: KeysFile = FILE,
    id: Annotated[
        str | None, typer.Option("--id", help="What the audit log calls the key. Not given: TENANT-N.")
    ] = None,
    adapters: Annotated[
        str,
        typer.Option(help="Adapters it may ask for, with commas between, the base among them by its name; * is all."),
    ] = "*",
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests a minute at most.", min=1)] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(help="Tokens a minute at most, read and written.", min=1)
    ] = None,
) -> None:
    """Make a key, add its digest to the file (made where it is missing), and print the key, this once."""
    from halter.files import folders
    from halter.serve.adapters.naming import NAME
    from halter.serve.trust.keys import KeyRing, ServeKey, digest_of, new_key, read_keys, write_keys

    folders.try_out(file)
    there = read_keys(file).keys if file.exists() or file.is_symlink() else ()
    id = _free_id(tenant, {key.id for key in there}) if id is None else id
    wrong = [word for word in (tenant, id) if not NAME.fullmatch(word)]
    if wrong:
        what = "names of tenants and keys are small letters, digits, dots, dashes and underscores, at most 64"
        raise Refusal("usage", what, found=wrong, fix=f"halter keys new {_as_name(wrong[0])}")
    if id in {key.id for key in there}:
        raise Refusal(
            "already-exists", f"there is a key {id} in {file}", fix=f"halter keys remove {id}, or another --id"
        )
    names = tuple(name for word in adapters.split(",") if (name := word.strip()))
    if not names:
        raise Refusal("usage", "a key that may ask for nothing is none", fix="--adapters NAME,NAME, or leave it out")
    key = new_key()
    made = ServeKey(id, tenant, digest_of(key), names, requests_per_minute, tokens_per_minute)
    write_keys(file, KeyRing((*there, made)))
    print(key)


def list_(
    file: KeysFile = FILE,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, the digests too, as JSON.")] = False,
) -> None:
    """The keys of a file: id, tenant, rates and adapters."""
    from halter.serve.trust.keys import read_keys

    keys = read_keys(file).keys
    if as_json:
        print(json.dumps([asdict(key) for key in keys], indent=2))
        return
    width = max(len(key.id) for key in keys) + 2
    for key in keys:
        rates = (("requests", key.requests_per_minute), ("tokens", key.tokens_per_minute))
        limits = ", ".join(f"{rate:,} {what} a minute" for what, rate in rates if rate is not None) or "no limit"
        print(f"{key.id:<{width}}{key.tenant}: {limits}; {', '.join(key.adapters)}")


def remove(
    id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as halter keys list has it.")],
    file: KeysFile = FILE,
) -> None:
    """Take a key out of the file: at its next start a server does not know it any more."""
    from halter.errors import meant
    from halter.serve.trust.keys import KeyRing, read_keys, write_keys

    there = read_keys(file).keys
    left = tuple(key for key in there if key.id != id)
    ids = [key.id for key in there]
    if id not in ids:
        raise Refusal("usage", f"no key in {file} has the id {id!r}", expected=", ".join(ids), fix=meant(id, ids))
    if not left:
        fix = "make the new one first: halter keys new; to let nobody in, stop the server"
        raise Refusal("usage", f"{id} is the last key of {file}, and a server does not start without one", fix=fix)
    write_keys(file, KeyRing(left))


COMMANDS = {"new": new, "list": list_, "remove": remove}


def _free_id(tenant: str, taken: set[str]) -> str:
    return next(name for n in range(1, len(taken) + 2) if (name := f"{tenant}-{n}") not in taken)


def _as_name(word: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", word.lower()).strip("._-")[:64] or "acme"
