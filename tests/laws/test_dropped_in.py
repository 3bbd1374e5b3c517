"""A method dropped in as one file, the template of docs/guide/add-a-method.md: it passes every law as it stands, and
`make recipes` and `make pages` write all that is to be written of it, without an edit anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = "channel_scale"
WRITTEN = {
    f"recipes/{NAME}.yaml": "make recipes",
    f"docs/methods/{NAME}.md": "make pages",
    "docs/methods/README.md": "make pages",
    "halter/cli/completion.json": "make pages",
}
"""{file that is new or another with the method: what writes it}; all others stay as they are."""
ALL_IN_ONE = """
import runpy, sys
from halter.recipe.sections import method_names
for script in sys.argv[1:]:
    runpy.run_path(script, run_name="__main__")
print(*method_names())
"""


def dropped_in(target: Path, *folders: str) -> None:
    """A copy of these folders with the template as a file among the methods."""
    page = (ROOT / "docs" / "guide" / "add-a-method.md").read_text("utf-8")
    (template,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    for folder in folders:
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", target)
    (target / "halter" / "methods" / f"{NAME}.py").write_text(template, "utf-8")


def asked(tree: Path, *words: str) -> str:
    """What Python prints when it is started on the copy; it must end well."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    child = subprocess.run(
        [sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stdout[-3000:] + child.stderr[-3000:]
    return child.stdout


def test_the_template_passes_all_laws(tmp_path):
    dropped_in(tmp_path, "halter", "tests")
    for rule in (["check"], ["format", "--check"]):
        asked(tmp_path, "-m", "ruff", *rule, "--no-cache", f"halter/methods/{NAME}.py")
    files = ("laws", "pairs", "option_sets", "compiled", "stacked", "ready", "mixed_quickly")
    files += ("base_untouched", "low_rank")
    laws = [*(f"tests/laws/test_{file}.py" for file in files), "tests/test_floors.py", "tests/training/test_options.py"]
    chosen = f"{NAME} or registry or rule or table or (ordered_pair and lora)"  # lora before it, all others after it
    said = asked(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", *laws, "-k", chosen)
    passed = int(re.findall(r"(\d+) passed", said)[0])
    print(f"the template method: {passed} laws and rules passed")
    assert passed > 90


def test_recipes_and_pages_are_made_without_another_edit(tmp_path):
    dropped_in(tmp_path, "halter", "docs", "recipes")
    before = digests(tmp_path)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    scripts = re.findall(r"docs/make_\w+\.py", makefile.split("\npages:")[1].split("\n\n")[0])
    assert len(scripts) > 2 and "$(BIN)/halter init $$m - > recipes/$$m.yaml" in makefile
    known = asked(tmp_path, "-c", ALL_IN_ONE, *scripts).split()
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
