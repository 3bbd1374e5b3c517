"""What the page tells of each model: what lies in its folder, read without its weights being put on the base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halter.adapters import folder_files
from halter.adapters.describing import describe
from halter.errors import HalterError, Refusal
from halter.files.manifest import MANIFEST
from halter.files.nearby import adapter_folder, children
from halter.files.reading import lines_of, read_json, read_text
from halter.model.storages import held_in
from halter.pretrained.digest import BaseIdentity
from halter.pretrained.save import licence_files
from halter.serve.adapters.held import digest_of
from halter.serve.wire.shapes import ServedBase

MOST_SCORES, MOST_LETTERS = 12, 200
STATED = re.compile(r"^licen[cs]e:\s*(\S.*)$", re.MULTILINE)
REPORT = "report.json"


class Cards:
    """Cards of the base and of adapters' folders; those of files that have not changed are kept. For threads."""

    def __init__(self, base: ServedBase) -> None:
        self._base = base
        self._kept: dict[Path, tuple[Any, dict[str, Any]]] = {}

    def of_base(self) -> dict[str, Any]:
        """The base's card."""
        base, identity = self._base, self._base.model.identity
        folder = identity.folder if isinstance(identity, BaseIdentity) else None
        return {
            "name": base.name,
            "kind": "base",
            "method": None,
            "parameters": base.model.config.num_parameters,
            "held": held_in(base.model) or str(base.model.dtype).removeprefix("torch."),
            "context": base.model.config.context,
            "digest": base.digest_now(),
            "licence": _licence(folder),
        }

    def of_adapter(self, name: str, folder: Path) -> dict[str, Any]:
        """An adapter's card; where the folder cannot be used, ``unusable`` has the id of the refusal."""
        try:
            place = adapter_folder(folder)
            stamp = _stamp([*place.iterdir(), *_reports(folder)])
            kept = self._kept.get(folder)
            if kept is None or kept[0] != stamp:
                kept = self._kept[folder] = stamp, _card(place, folder)
            return {"name": name, "kind": "adapter", **kept[1]}
        except (HalterError, OSError) as error:
            return {"name": name, "kind": "adapter", "unusable": error.id if isinstance(error, Refusal) else "failed"}


def _card(place: Path, folder: Path) -> dict[str, Any]:
    told = describe(place)
    facts = read_json(place / folder_files.FACTS) if (place / folder_files.FACTS).is_file() else {}
    run = facts.get("run") or {}
    return {
        "method": told["method"],
        "methods": _placeless(told["methods"]),
        "parameters": told["parameters"],
        "rank": told["rank"],
        "bits": told["bits"],
        "bytes": told["bytes"],
        "base": _placeless(told["base"]),
        "template": (facts.get("template") or {}).get("name"),
        "steps": run.get("steps"),
        "digest": digest_of(place),
        "whole": (place / MANIFEST).is_file(),
        "licence": _licence(place),
        "scores": _scores(folder),
    }


def _placeless(value: Any) -> Any:
    """A value without where things lie on this machine: of a path its last part."""
    if isinstance(value, Mapping):
        return {name: _placeless(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_placeless(one) for one in value]
    return Path(value).name if isinstance(value, str) and value[:1] in ("/", "~", ".") else value


def _licence(folder: Path | None) -> str | None:
    """What a folder says of its licence: the head of its README, as the hub writes it, else the first line of a file of
    the licence's own."""
    if folder is None or not folder.is_dir():
        return None
    readme = folder / "README.md"
    if readme.is_file() and (head := re.match(r"---\n(.*?)\n---", _beginning(readme), re.DOTALL)):
        if found := STATED.search(head[1]):
            return found[1].strip("\"' ")[:MOST_LETTERS]
    for file in licence_files(folder):
        if first := next((line.strip() for line in lines_of(_beginning(file)) if line.strip()), ""):
            return first[:MOST_LETTERS]
    return None


def _beginning(file: Path) -> str:
    try:
        return read_text(file, 1 << 20)[: 1 << 14].replace("\r\n", "\n")
    except HalterError:
        return ""


def _reports(folder: Path) -> list[Path]:
    """The run's evaluations, the newest first."""
    found = [one / REPORT for one in reversed(children(folder / "evaluations"))]
    return [file for file in found if file.is_file()]


def _scores(folder: Path) -> dict[str, Any] | None:
    """The newest evaluation: {data, rows, base, adapter}, each side's plain numbers."""
    for file in _reports(folder)[:1]:
        report = read_json(file)
        sides = {side: _numbers(report.get(side)) for side in ("base", "adapter")}
        data = Path(str(report.get("data", ""))).name
        return {"data": data[:MOST_LETTERS], "rows": report.get("rows"), **sides}
    return None


def _numbers(side: Any) -> dict[str, float]:
    given = side.items() if isinstance(side, Mapping) else ()
    plain = {str(k)[:64]: v for k, v in given if isinstance(v, int | float) and not isinstance(v, bool)}
    return dict([*plain.items()][:MOST_SCORES])


def _stamp(files: list[Path]) -> Any:
    return [(str(file), s.st_size, s.st_mtime_ns, s.st_ino) for file in sorted(files) for s in [file.stat()]]
