"""What the pages point to is there: every link within the project, and every file of ours that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("docs", "examples", ".github")
PAGES = [*sorted(ROOT.glob("*.md")), *(page for name in FOLDERS for page in sorted((ROOT / name).rglob("*.md")))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|toml|yaml|md))(?:::\w+)?`")
THEIRS = {
    "docs/guide/add-a-method.md": {"halter/methods/channel_scale.py"},  # to be written
    "docs/guide/add-an-objective.md": {"halter/training/objectives/focal.py"},
}
QUOTING = ("docs/measured", "docs/design/decisions.md", "docs/design/house.md", "docs/methods", "CHANGELOG.md")
"""What these say of files was so at its time, or is of other people's files."""


def page(name: str, text: str) -> list[str]:
    """What a page points to and is not there."""
    links = {link for link in LINK.findall(text) if "://" not in link and not link.startswith("mailto:")}
    missing = [link for link in links if not (ROOT / name).parent.joinpath(link).exists()]
    if not name.startswith(QUOTING):
        named = set(FILE.findall(text)) - THEIRS.get(name, set())
        missing += [file for file in named if not any((at / file).exists() for at in (ROOT, ROOT / "halter"))]
    return sorted(missing)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_page_points_to_is_there(path: Path):
    assert not page(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))


def test_what_is_not_there_is_seen():
    text = "[a](guide/nothing.md#x) `halter/nowhere/x.py` [b](https://a.b/c) `methods/lora.py`"
    assert page("docs/x.md", text) == ["guide/nothing.md", "halter/nowhere/x.py"]
    assert page("docs/measured/x.md", text) == ["guide/nothing.md"]
