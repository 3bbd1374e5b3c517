"""A copy of the tree with one more method in it: the template of docs/guide/add-a-method.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = "channel_scale"


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
