"""A method dropped in as one file, the template of docs/guide/add-a-method.md, passes every law as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = "channel_scale"


def test_the_template_passes_all_laws(tmp_path):
    page = (ROOT / "docs" / "guide" / "add-a-method.md").read_text()
    (template,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    for folder in ("halter", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "halter" / "methods" / f"{NAME}.py").write_text(template)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    files = ("laws", "pairs", "option_sets", "compiled", "stacked", "ready", "mixed_quickly")
    files += ("base_untouched", "low_rank")
    laws = [*(f"tests/laws/test_{file}.py" for file in files), "tests/test_floors.py"]
    chosen = f"{NAME} or registry or rule or (ordered_pair and lora)"  # lora before it, and all others after it
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *laws, "-k", chosen],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stdout[-3000:]
    passed = int(re.findall(r"(\d+) passed", child.stdout)[0])
    print(f"the template method: {passed} laws and rules passed")
    assert passed > 90
    helped = subprocess.run(
        [sys.executable, "-m", "halter", "init", NAME, "-"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert helped.returncode == 0 and "layers_from: 0" in helped.stdout
    assert "The first layer that is scaled" in helped.stdout
