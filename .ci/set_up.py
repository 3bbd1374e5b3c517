"""Make .venv ready for `make demo` (run-time packages) or `make test` (development packages too).

Standard library only, because it runs before anything is installed. The rule about torch: one that the calling
Python can import is borrowed, never replaced. It is borrowed through a .pth file in .venv, so nothing is ever
installed into, or removed from, the environment that it belongs to.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 11)
BORROWED = "halter_borrowed_torch.pth"


def torch_of(python: Path) -> tuple[str, str] | None:
    """(version, site folder) of the torch that `python` would import, without importing it; None if it has none."""
    probe = (
        "import importlib.util as u, importlib.metadata as m, pathlib as p\n"
        "s = u.find_spec('torch')\n"
        "print(m.version('torch'), p.Path(s.origin).parent.parent, sep='\\n') if s and s.origin else None"
    )
    done = subprocess.run([str(python), "-c", probe], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    return (lines[0], lines[1]) if done.returncode == 0 and len(lines) == 2 else None


def numbers(version: str) -> tuple[int, int]:
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def borrow(python: Path, folder: Path) -> None:
    """Let the Python in `folder` see the calling Python's packages, behind its own."""
    here = torch_of(Path(sys.executable))
    if here is None:
        return
    version, site = here
    if numbers(version) < OLDEST_TORCH:
        wanted = ".".join(map(str, OLDEST_TORCH))
        sys.exit(
            f"Your Python ({sys.executable}) has torch {version}. Halter needs {wanted} or newer and will not replace "
            "it. Upgrade it, or give a Python without torch: make PYTHON=/path/to/python ..."
        )
    own_site = next(folder.glob("lib/python*/site-packages"))
    (own_site / BORROWED).write_text(site + "\n", encoding="utf-8")
    print(f"Using your torch {version} from {site}.")


def pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"The installation failed: {' '.join(command)}")


def constraints(torch_version: str, folder: Path) -> Path:
    """constraints.txt with the torch that is there in place of the pinned one."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("torch==")] + [f"torch=={torch_version}"]
    path = folder / "constraints.txt"
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return path


def pinned_torch() -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path)
    parser.add_argument("--dev", action="store_true", help="development packages too")
    options = parser.parse_args()
    if sys.version_info < OLDEST_PYTHON:
        found_python = sys.version.split()[0]
        sys.exit(f"Halter needs Python 3.11 or newer; this is {found_python}: make PYTHON=/path/to/python ...")
    started = time.monotonic()
    folder = options.venv.resolve()
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"Making the environment {folder}.", flush=True)
        venv.create(folder, with_pip=True, symlinks=True)
        borrow(python, folder)
    if torch_of(python) is None:
        arguments = os.environ.get("TORCH_PIP", "").split()
        print(
            f"Installing {pinned_torch()}. Where pip finds no CPU build this fetches gigabytes; "
            "TORCH_PIP='--index-url ...' names another place.",
            flush=True,
        )
        pip(python, *arguments, pinned_torch())
    found = torch_of(python)
    if found is None:
        sys.exit("torch was installed but cannot be found.")
    kind = "development" if options.dev else "run-time"
    print(f"Installing Halter and its {kind} packages (a minute or two).", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        pip(python, "-c", str(constraints(found[0], Path(scratch))), "-e", ".[dev]" if options.dev else ".")
    print(f"Ready after {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
