"""One word for one thing in what people read: messages, help, the recipes' comments, README and the docs.

The words on the right of docs/guide/glossary.md that mean nothing else are forbidden here; strings of the
package are read from its syntax trees, a dataclass's option by its docstring, which is its help.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    r"(un)?learnt": "learned",
    r"offenders?": "found",
    r"verbs?": "command",
    r"mend(s|ed|ing)?|to mend": "fix",
    r"parted( by)?": "say what separates them",
    r"passed over|passing over": "skipped",
    r"target tokens?|supervised tokens?": "learned tokens",
    r"(a|of a|each|every|forward) pass (of|holds|takes)|in one pass|passes of|tokens a pass|rows a pass": "micro-batch",
    r"make no sense|makes no sense": "cannot be used",
    r"nothing is wrong": "no problem found",
    r"kept although": "duplicates kept",
    r"snapshots?": "checkpoint",
    r"subcommands?": "command",
    r"eval loss": "held-out loss",
}
PATTERN = re.compile("|".join(rf"(?P<w{n}>\b(?:{word})\b)" for n, word in enumerate(FORBIDDEN)), re.IGNORECASE)
SHELL = {"halter/cli/completion.py": {"subcommand"}}
"""Words of the shells' own functions."""
WORLD = ("halter/playground/",)
"""A little world in which people mend roofs."""
PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", ".github", "examples", "recipes"),
    *("docs/design/architecture.md", "docs/guide", "docs/methods", "docs/applications"),
)
"""docs/measured and docs/design/decisions.md quote what was said at their time."""


def said(text: str) -> list[str]:
    """The forbidden words in a text, each with the word to use."""
    return [f"{m[0]!r} ({list(FORBIDDEN.values())[int(str(m.lastgroup)[1:])]})" for m in PATTERN.finditer(text)]


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of every string that can be shown: all but docstrings of modules, classes and functions. Strings
    under a dataclass's fields, which are help, count."""
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                command = isinstance(node, ast.FunctionDef) and node.name == "command"  # what --help shows
                hidden |= set() if command else {id(first.value)}
    yield from (
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in hidden
    )


def in_code(source: str, name: str) -> Iterator[str]:
    tree = ast.parse(source)
    inner = _notes(tree, name)
    for line, text in strings(tree):
        if " " not in text.strip() or (line, text) in inner:
            continue  # a key or a name, not words
        for found in said(text):
            if not any(word in found for word in SHELL.get(name, ())):
                yield f"{name}:{line}: {found}"


def _notes(tree: ast.Module, name: str) -> set[tuple[int, str]]:
    """Strings that stand alone and are no help: notes below constants, and below the fields of classes without help."""
    helps = name.endswith("options.py") or name in HELPING
    found = set()
    for holder in ast.walk(tree):
        if isinstance(holder, ast.Module) or (isinstance(holder, ast.ClassDef) and not helps):
            for node in holder.body:
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    found.add((node.value.lineno, str(node.value.value)))
    return found


HELPING = {"halter/run/opening.py", "halter/run/scored.py", "halter/recipe/sections.py"} | {
    p.relative_to(ROOT).as_posix() for p in (ROOT / "halter" / "methods").glob("*.py")
}
"""Files beside options.py whose dataclasses become flags, keys and help."""


def test_the_package_says_no_forbidden_word() -> None:
    files = [p for p in sorted((ROOT / "halter").rglob("*.py")) if not p.relative_to(ROOT).as_posix().startswith(WORLD)]
    found = [f for p in files for f in in_code(p.read_text("utf-8"), p.relative_to(ROOT).as_posix())]
    assert len(files) > 100 and not found, "\n" + "\n".join(found)


def test_pages_and_recipes_say_no_forbidden_word() -> None:
    paths = [ROOT / page for page in PAGES]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.*")))]
    found = []
    for file in files:
        if file.suffix in (".md", ".yaml") and file.name != "glossary.md":
            for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
                found += [f"{file.relative_to(ROOT)}:{number}: {one}" for one in said(line)]
    assert len(files) > 40 and not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    ['raise Refusal("x", "there is no verb here")', 'say(f"{n} target tokens of it")', 'x = "nothing was learnt here"'],
)
def test_a_planted_word_is_seen(source: str) -> None:
    assert list(in_code(source, "halter/x.py"))
    assert not list(in_code(f"""'''{source}'''\nx = 1""", "halter/x.py"))


def test_help_is_read() -> None:
    assert list(in_code('class A:\n    r: int = 1\n    """Numbers that are learnt."""', "halter/data/options.py"))
    assert list(in_code('def command():\n    """Mend a run."""', "halter/cli/x.py"))
