"""An objective dropped in as one file, the template of docs/guide/add-an-objective.md, passes every law."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = "focal"
ASK = """
from halter.recipe import load
from halter.recipe.fields import keys_of, words
from halter.training.objective import make
from halter.training.options import TrainOptions

base = {"model": "m", "data": "d"}
assert load({**base, "train": {"objective": "focal"}}).train.objective == "focal"
given = load({**base, "train": {"objective": {"name": "focal", "gamma": 1.0}}}).train.objective
assert make(given).gamma == 1.0 and make("focal").gamma == 2.0
print(words(keys_of(TrainOptions)["objective"].type))
for wrong in ("fokal", {"name": "fokal"}, {"name": "focal", "gama": 1}, {"name": "focal", "gamma": -1.0}):
    try:
        load({**base, "train": {"objective": wrong}})
    except Exception as refused:
        print(refused)
    else:
        raise SystemExit(f"{wrong} was read")
"""


def test_the_template_passes_all_laws(tmp_path):
    page = (ROOT / "docs" / "guide" / "add-an-objective.md").read_text()
    template = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)[0]
    for folder in ("halter", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "halter" / "training" / "objectives" / f"{NAME}.py").write_text(template)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    laws = ["tests/laws/test_objectives.py", "tests/test_floors.py"]
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *laws, "-k", f"{NAME} or registry or rule"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stdout[-3000:]
    passed = int(re.findall(r"(\d+) passed", child.stdout)[0])
    print(f"the template objective: {passed} laws and rules passed")
    assert passed > 60
    asked = subprocess.run(
        [sys.executable, "-c", ASK], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr[-2000:]
    assert "one of focal, sft or a mapping" in asked.stdout
    assert "no objective is called 'fokal'; there are: focal, sft; did you mean focal?" in asked.stdout
    assert "focal has no such option; gama" in asked.stdout and "gamma is -1.0" in asked.stdout
