"""`make recipes` and `make pages` write all that is to be written of a method dropped in as one file."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from dropping_in import NAME, ROOT, asked, dropped_in

WRITTEN = {
    f"recipes/{NAME}.yaml": "make recipes",
    f"docs/methods/{NAME}.md": "make pages",
    "docs/methods/README.md": "make pages",
    "halter/cli/completion.json": "make pages",
}
"""{file that is new or another with the method: what writes it}; all others stay as they are."""
ALL_IN_ONE = """
import runpy, sys
sys.path.insert(0, "docs")  # as Python has it for a script that lies there
from halter.recipe.sections import method_names
for script in sys.argv[1:]:
    runpy.run_path(script, run_name="__main__")
print(*method_names())
"""


OF_METHODS = ["docs/make_methods.py", "docs/make_completion.py"]
"""Of the scripts of `make pages`, those that say anything of a method; the others take most of the time."""


@pytest.mark.parametrize("chosen", [OF_METHODS, pytest.param(None, marks=pytest.mark.nightly)], ids=["methods", "all"])
def test_recipes_and_pages_are_made_without_another_edit(chosen, tmp_path):
    dropped_in(tmp_path, "halter", "docs", "recipes")
    before = digests(tmp_path)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    scripts = re.findall(r"docs/make_\w+\.py", makefile.split("\npages:")[1].split("\n\n")[0])
    assert set(OF_METHODS) < set(scripts) and "$(BIN)/halter init $$m - > recipes/$$m.yaml" in makefile
    known = asked(tmp_path, "-c", ALL_IN_ONE, *(chosen or scripts)).split()
    assert NAME in known  # for these `make recipes` writes a recipe each
    (tmp_path / "recipes" / f"{NAME}.yaml").write_text(asked(tmp_path, "-m", "halter", "init", NAME, "-"), "utf-8")

    after = digests(tmp_path)
    assert {name for name in after if before.get(name) != after[name]} == set(WRITTEN) and before.keys() <= after.keys()
    recipe, page, listed, completion = ((tmp_path / name).read_text("utf-8") for name in WRITTEN)
    assert f"method:\n  name: {NAME}\n  # The first layer that is scaled, counted from 0.\n  layers_from: 0\n" in recipe
    assert page.startswith(f"# {NAME}\n\nChannel scale: a strength for every output channel") and "llama-3-8b" in page
    assert "| `layers_from` | `0` | The first layer that is scaled, counted from 0. |" in page
    assert f"| [{NAME}]({NAME}.md) | Channel scale:" in listed
    words = json.loads(completion)
    assert NAME in words["methods"] and "--layers-from" in words["keys"]


def digests(tree: Path) -> dict[str, str]:
    """{file: SHA-256} of all that is there."""
    files = [path for path in tree.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(tree).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
