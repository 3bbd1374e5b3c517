"""`halter audit`: the audit log of a server, verified and shown."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from halter.errors import Refusal

DAMAGED = 1
SHOWN = 20

LogFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the log's lines.")]


def command() -> None:
    """The audit log of a server: whether it is as the server wrote it, and what it says."""


def verify(
    folder: LogFolder,
    beside: Annotated[
        Path | None,
        typer.Option("--seal", help="Folder of the log's secret and head. Not given: FOLDER.seal, beside the log."),
    ] = None,
    begin: Annotated[int, typer.Option(help="Number of the first line, where older files are kept elsewhere.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> int:
    """Walk along every line and say what was changed, removed, swapped, cut off or torn; exit code 1 if anything was.

    A server may be writing meanwhile.
    """
    from halter.serve.audit import seal
    from halter.serve.audit.head import read_head
    from halter.serve.audit.lines import log_files
    from halter.serve.audit.log import apart
    from halter.serve.audit.walk import walk

    beside = apart(folder) if beside is None else beside
    if not log_files(folder) and not (beside / seal.SECRET).exists():
        raise _no_log(folder)
    secret, head = seal.read(beside), read_head(beside)  # the head before the lines: these only grow
    files = [(first, path) for first, path in log_files(folder) if first >= begin]
    found = walk(files, secret, head, begin)
    if as_json:
        damages = [{"kind": damage.kind, "text": damage.text} for damage in found.damages]
        print(
            json.dumps({"lines": found.lines, "last": found.last, "damages": damages, "notes": found.notes}, indent=2)
        )
    else:
        for note in found.notes:
            print(f"note: {note}")
        for damage in found.damages[:SHOWN]:
            print(f"{damage.kind}: {damage.text}")
        if len(found.damages) > SHOWN:
            print(f"and {len(found.damages) - SHOWN:,} more; --json has all")
        counted = f"lines: {found.lines:,}, files: {len(files):,}"
        print(f"{counted}: {'damaged' if found.damages else 'no problem found'}")
    return DAMAGED if found.damages else 0


def show(
    folder: LogFolder,
    request: Annotated[str | None, typer.Option(help="Only the request with this id.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Only requests that this adapter, by name, had a part in.")
    ] = None,
    last: Annotated[int, typer.Option(help="So many lines, the last ones.", min=1)] = SHOWN,
    as_json: Annotated[bool, typer.Option("--json", help="Print whole lines, as JSON.")] = False,
) -> None:
    """Print lines of the log, as they stand there: only halter audit verify says whether they are genuine."""
    from halter.telling import tell

    chosen: deque[dict[str, Any]] = deque(maxlen=last)
    unreadable = 0
    for line in _lines(folder):
        if line is None:
            unreadable += 1
        elif request in (None, line.get("request")) and (adapter is None or adapter in _names(line)):
            chosen.append(line)
    if unreadable:
        tell(f"warning: {unreadable:,} lines cannot be read: halter audit verify {folder}")
    if as_json:
        print(json.dumps(list(chosen), indent=2))
        return
    for line in chosen:
        print(_in_words(line))


COMMANDS = {"verify": verify, "show": show}


def _lines(folder: Path) -> Iterator[dict[str, Any] | None]:
    """Every line of a log as it is read, None for one that cannot be."""
    from halter.serve.audit.lines import log_files, raw_lines

    files = log_files(folder)
    if not files:
        raise _no_log(folder)
    for _, path in files:
        for raw in raw_lines(path):
            try:
                line = json.loads(raw)
            except (ValueError, RecursionError):
                line = None
            yield line if isinstance(line, dict) else None


def _no_log(folder: Path) -> Refusal:
    fix = "name the folder in which the server keeps it"
    return Refusal("not-an-audit-log", "there is no audit log in this folder", where=str(folder), fix=fix)


def _adapters(line: dict[str, Any]) -> list[dict[str, Any]]:
    there = line.get("adapters")
    return [one for one in there if isinstance(one, dict)] if isinstance(there, list) else []


def _names(line: dict[str, Any]) -> list[Any]:
    return [adapter.get("name") for adapter in _adapters(line)]


def _in_words(line: dict[str, Any]) -> str:
    """A line in one line: number, time, request, finish, who asked, which adapters, tokens in and out."""
    start = f"{line.get('number')}  {line.get('time')}"
    if "note" in line:
        from halter.serve.audit.walk import note_text

        return f"{start}  note: {note_text(line)}"
    used = " + ".join(f"{one.get('name')}@{str(one.get('digest'))[:8]}" for one in _adapters(line)) or "base"
    who = line.get("tenant") or "-"
    tokens = f"{line.get('prompt_tokens')} + {line.get('output_tokens')} tokens"
    times = f" x {line['times']}" if line.get("times", 1) != 1 else ""
    return f"{start}  {line.get('request')}  {line.get('finish')}{times}  {who}  {used}  {tokens}"
