"""Setting up never replaces a torch that the user has: it is borrowed, or named when it is too old."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

SET_UP = Path(__file__).resolve().parent.parent / ".ci" / "set_up.py"

DRIVER = """
import importlib.util, json, sys, venv
spec = importlib.util.spec_from_file_location('set_up', {path!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
calls = []
def pip(python, *arguments):
    if '-c' in arguments:
        lines = open(arguments[arguments.index('-c') + 1]).read().splitlines()
        calls.append([a for a in arguments if a[0] == '.'] + [l for l in lines if l.startswith('torch==')])
    else:
        calls.append(list(arguments))
        for site in python.parent.parent.glob('lib/python*/site-packages'):
            fake = site / 'torch'
            fake.mkdir()
            (fake / '__init__.py').write_text('')
            info = site / 'torch-2.13.0.dist-info'
            info.mkdir()
            (info / 'METADATA').write_text('Metadata-Version: 2.1\\nName: torch\\nVersion: 2.13.0\\n')
module.pip = pip
module.venv.create = lambda folder, **options: venv.EnvBuilder(symlinks=True).create(folder)
sys.argv = ['set_up.py', {target!r}, '--dev']
module.main()
print(json.dumps(calls))
"""


def user_environment(folder: Path, torch: str | None) -> Path:
    venv.create(folder, with_pip=False, symlinks=True)
    if torch is not None:
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "torch").mkdir()
        (site / "torch" / "__init__.py").write_text("raise RuntimeError('the probe must not import torch')")
        (site / f"torch-{torch}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {torch}\n"
        (site / f"torch-{torch}.dist-info" / "METADATA").write_text(metadata)
    return folder / "bin" / "python"


def set_up(python: Path, target: Path) -> subprocess.CompletedProcess[str]:
    code = DRIVER.format(path=str(SET_UP), target=str(target))
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=SET_UP.parent.parent)


@pytest.mark.parametrize(
    ("torch", "installed"),
    [
        ("2.12.1+cu128", [[".[dev]", "torch==2.12.1+cu128"]]),
        ("2.11.0", [[".[dev]", "torch==2.11.0"]]),
        (None, [["torch==2.13.0"], [".[dev]", "torch==2.13.0"]]),
    ],
)
def test_a_torch_that_is_there_is_kept(torch: str | None, installed: list[list[str]], tmp_path: Path) -> None:
    python = user_environment(tmp_path / "user", torch)
    before = sorted(p.name for p in (tmp_path / "user").rglob("*"))
    done = set_up(python, tmp_path / "own")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == installed
    assert sorted(p.name for p in (tmp_path / "user").rglob("*") if "__pycache__" not in str(p)) == before
    assert f"Using your torch {torch}" in done.stdout or torch is None


def test_a_torch_that_is_too_old_is_named_and_left_alone(tmp_path: Path) -> None:
    done = set_up(user_environment(tmp_path / "user", "2.10.3"), tmp_path / "own")
    assert done.returncode == 1 and "has torch 2.10.3" in done.stderr and "will not replace" in done.stderr


def test_the_borrowed_torch_is_what_the_environment_imports(tmp_path: Path) -> None:
    set_up(user_environment(tmp_path / "user", "2.12.0"), tmp_path / "own")
    code = "import importlib.util as u; print(u.find_spec('torch').origin)"
    own = [str(tmp_path / "own" / "bin" / "python"), "-c", code]
    found = subprocess.run(own, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(tmp_path / "user")) and sys.version_info >= (3, 11)
