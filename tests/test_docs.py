"""What the pages say of the project is so: links, files, folders, names in files, commands of make, floors; and every
page can be found from docs/README.md."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from test_floors import FLOOR

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FOLDERS = ("docs", "examples", ".github", "tests")
PAGES = [*sorted(ROOT.glob("*.md")), *(page for name in FOLDERS for page in sorted((ROOT / name).rglob("*.md")))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
PART = re.compile(r"\]\(([^)#\s:]*)#([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|toml|yaml|md|json|jinja|txt))(?:::(\w+))?(?:\[[^`]*\])?`")
ALONE = re.compile(r"`([\w-]+\.py)(?:::\w+)?`")
FOLDER = re.compile(r"`((?:[\w.-]+/)+)`")
NAME_IN = re.compile(r"`([A-Za-z_][\w.]*)`(?: of| in)? \(`((?:[\w.-]+/)+[\w.-]+\.py)`")
MAKE = re.compile(r"`make ([a-z]\w*)")
THEIRS = {
    "README.md": {"adapter/", "checkpoints/"},  # of a run folder
    "docs/guide/add-a-method.md": {"halter/methods/channel_scale.py"},  # to be written
    "docs/guide/add-an-objective.md": {"halter/training/objectives/focal.py"},
    "docs/guide/add-a-server-route.md": {"cli/serve.py", "serve/"},
    "docs/design/architecture.md": {"chat/", "codecs/", "templates/", "serve/"},  # in text/; to be built
    "docs/design/decisions.md": {"generate/", "train/"},  # of another program
    "docs/design/house.md": {"entering.py"},  # which is gone, as its line says
}
"""What a page names and is not there, because it is to be written, is another program's, or is gone."""


def page(name: str, text: str) -> list[str]:
    """What a page points to or names and is not there."""
    links = {link for link in LINK.findall(text) if "://" not in link and not link.startswith("mailto:")}
    missing = {link for link in links if not (ROOT / name).parent.joinpath(link).exists()}
    for link, part in PART.findall(text):
        target = (ROOT / name).parent / link if link else None
        if target is None or target.is_file():
            missing |= {f"{link}#{part}"} - {
                f"{link}#{one}" for one in parts(target.read_text("utf-8") if target else text)
            }
    for file, test in FILE.findall(text):
        found = at(file)
        if found is None:
            missing.add(file)
        elif test and not has(found, test):
            missing.add(f"{file}::{test}")
    missing |= {folder for folder in FOLDER.findall(text) if at(folder) is None}
    missing |= {file for file in ALONE.findall(text) if file not in file_names()}
    missing |= {f"{word} in {file}" for word, file in NAME_IN.findall(text) if (p := at(file)) and not has(p, word)}
    makefile = (ROOT / "Makefile").read_text("utf-8")
    missing |= {f"make {word}" for word in MAKE.findall(text) if f"\n{word}:" not in makefile}
    return sorted(missing - THEIRS.get(name, set()))


def parts(text: str) -> set[str]:
    """What links call the headings of a page."""
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in HEADING.findall(text)}


def at(name: str) -> Path | None:
    """Where a file or folder lies that a page names: from the project's folder on, or from the package's."""
    return next((path for folder in (ROOT, ROOT / "halter") if (path := folder / name).exists()), None)


def has(file: Path, word: str) -> bool:
    """Whether a name such as Engine.add stands in a file, its last part as a word of its own."""
    return re.search(rf"\b{word.rsplit('.', 1)[-1]}\b", file.read_text("utf-8")) is not None


@cache
def file_names() -> frozenset[str]:
    folders = ("halter", "tests", "docs", "benchmarks", "examples")
    return frozenset(path.name for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_page_points_to_is_there(path: Path):
    assert not page(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))


def test_what_is_not_there_is_seen():
    text = "[a](guide/nothing.md#x) `halter/nowhere/x.py` [b](https://a.b/c) `methods/lora.py`"
    assert page("docs/x.md", text) == ["guide/nothing.md", "halter/nowhere/x.py"]
    assert page("docs/measured/x.md", "`tests/run/test_nothing.py`") == ["tests/run/test_nothing.py"]
    text = "`tests/tiny.py::peer` `tests/tiny.py::gone` `attic/` `tests/laws/` `attic.py` `lora.py`"
    assert page("docs/x.md", text) == ["attic.py", "attic/", "tests/tiny.py::gone"]
    text = "[a](../docs/README.md#measured) [b](../docs/README.md#nowhere) [c](#here) [d](#gone)\n## Here\n"
    assert page("docs/x.md", text) == ["#gone", "../docs/README.md#nowhere"]
    text = "`Lora` (`methods/lora.py`), `Lora.bild` (`methods/lora.py`), `make pages`, `make hay`"
    assert page("docs/x.md", text) == ["Lora.bild in methods/lora.py", "make hay"]


def unlisted(index: str, pages: list[str], own: dict[str, str]) -> list[str]:
    """The ``pages``, by their paths in docs/, that no link of ``index`` leads to, neither itself nor by an index that
    its folder has of its own (``own``: {path: text}) and that ``index`` links."""
    listed = set(LINK.findall(index))
    for name, text in own.items():
        if name in listed:
            listed |= {(Path(name).parent / link).as_posix() for link in LINK.findall(text)}
    return [page for page in pages if page not in listed]


def test_every_page_is_found_from_the_index():
    indices = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("README.md")}
    index = indices.pop("README.md")
    pages = [path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md"))]
    lost = unlisted(index, [name for name in pages if name != "README.md"], indices)
    assert not lost, "docs/README.md needs a link to each of these"
    own = {"m/README.md": "[a](a.md)"}
    assert unlisted("[m](m/README.md) [b](b.md)", ["b.md", "c.md", "m/README.md", "m/a.md", "m/d.md"], own) == [
        "c.md",
        "m/d.md",
    ]
    assert unlisted("", ["m/a.md"], own) == ["m/a.md"]


def test_the_floors_of_the_page_are_those_that_are_held():
    text = (DOCS / "design" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| (-?[\d.]+) \| ((?:`[\w./]+` ?)+) \|", text, re.MULTILINE)
    named = [(name.removesuffix(".py").rstrip("/"), floor) for floor, cell in rows for name in cell.split("`")[1::2]]
    told = {name: float(floor) for name, floor in named}
    there = {name: floor for name, floor in FLOOR.items() if at(name) or at(f"{name}.py")}
    assert told == there
