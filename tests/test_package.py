"""The package as a stranger gets it: quick to import, whole in a wheel, runnable outside the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SOURCE_SUFFIXES = {".py", ".pyc"}


@pytest.mark.parametrize("what", ["import halter", "import halter.cli.main as m; m.overview()"])
def test_nothing_heavy_is_imported_on_the_way(what: str) -> None:
    code = (
        f"{what}\nimport sys; print([m for m in ('torch', 'typer', 'pydantic', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve_and_others_are_refused() -> None:
    import halter

    for name in halter.__all__:
        assert getattr(halter, name) is not None, name
    with pytest.raises(AttributeError, match="it has: Callback, HalterError"):
        halter.lode  # noqa: B018


def test_constraints_pin_every_dependency() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {w.split(";")[0].split(">")[0].split("[")[0].strip().lower().replace("_", "-") for w in wanted}
    assert names <= pinned, f"unpinned: {names - pinned}"
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


def versions_told(contributing: str, changelog: str) -> list[str]:
    """The version that CONTRIBUTING.md says is the present one, and that of CHANGELOG.md's uppermost section."""
    now = re.findall(r"`halter/version\.py` \(now ([^)]+)\)", contributing)
    return [*now, *re.findall(r"^## (\S+)", changelog, re.MULTILINE)[:1]]


def test_pages_tell_the_version_that_is() -> None:
    from halter.version import __version__

    pages = [(ROOT / name).read_text("utf-8") for name in ("CONTRIBUTING.md", "CHANGELOG.md")]
    assert versions_told(*pages) == [__version__, __version__]
    planted = [page.replace(__version__, "9.9.9", 1) for page in pages]
    assert versions_told(*planted) == ["9.9.9", "9.9.9"]
    assert versions_told("", "") == []


def test_hooks_run_what_make_runs() -> None:
    """Each hook is a line of `make lint` or `make types`, each of these lines a hook, and nothing is fetched."""
    from ruamel.yaml import YAML

    made = re.findall(r"^(?:lint|types):.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    lines = [line.strip().replace("$(BIN)", ".venv/bin") for lines in made for line in lines.splitlines()]
    (repo,) = YAML(typ="safe").load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert repo["repo"] == "local" and {hook["language"] for hook in repo["hooks"]} == {"system"}
    assert [hook["entry"] for hook in repo["hooks"]] == lines and len(lines) == 3


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # From a copy, so that a build folder of an earlier build cannot lend its files.
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("no git checkout to take the package's files from")
    for name in tracked.stdout.splitlines():
        if (name.startswith("halter/") or "/" not in name) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(folder.glob("*.whl"))


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    source = wheel.parent / "source"
    expected = {p.relative_to(source).as_posix() for p in (source / "halter").rglob("*") if p.is_file()}
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == expected, f"missing {sorted(expected - names)}, too many {sorted(names - expected)}"
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in zipfile.ZipFile(wheel).namelist())
    size = sum(info.file_size for info in zipfile.ZipFile(wheel).infolist() if info.filename.endswith(".safetensors"))
    assert size <= 6_600_000 + 10_000_000  # the dense base, and beside it the small ones with experts


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin folder of a clean environment with the wheel in it; the dependencies are lent by this one."""
    folder = tmp_path_factory.mktemp("clean") / "env"
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    own = Path(
        subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    lent = {sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("site-packages"))}
    # Plain paths: .pth files in them, which an editable install of Halter would use, are not read.
    (own / "lent.pth").write_text("\n".join(lent) + "\n")
    return folder / "bin"


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HALTER_SHARED")}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=clean | environment, timeout=400)


def test_every_module_imports_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "import halter, importlib, json, pkgutil\n"
        "found = pkgutil.walk_packages(halter.__path__, 'halter.')\n"
        "names = [m.name for m in found if not m.name.endswith('__main__')]\n"
        "bad = {}\n"
        "for name in names:\n"
        "    try: importlib.import_module(name)\n"
        "    except Exception as error: bad[name] = repr(error)\n"
        "print(json.dumps([halter.__file__, len(names), bad]))"
    )
    done = run([str(installed / "python"), "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    where, count, bad = json.loads(done.stdout)
    assert str(installed.parent) in where and count > 20 and not bad, bad


def test_init_and_version_run_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    assert run([str(installed / "halter"), "--version"], tmp_path).stdout.startswith("halter ")
    assert run([str(installed / "halter"), "init", "qlora"], tmp_path).returncode == 0
    assert (tmp_path / "recipe.yaml").stat().st_size > 1000


def test_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    from halter.cli.main import VERBS

    if "demo" not in VERBS:
        pytest.skip("there is no verb demo yet")
    done = run([str(installed / "halter"), "demo"], tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
