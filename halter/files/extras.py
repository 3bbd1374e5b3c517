"""The refusal that names the extra to install."""

from __future__ import annotations

from pathlib import Path

from halter.errors import Refusal


def missing_extra(extra: str, needed_for: str, where: str | Path, error: ImportError) -> Refusal:
    """Refusal ``extra-missing`` for a library that an optional part of Halter needs."""
    return Refusal(
        "extra-missing",
        f"the library {error.name or error} is not installed; it is needed for {needed_for}",
        where=str(where),
        fix=install(extra),
    )


def install(extra: str) -> str:
    """The command that brings an extra; from a checkout where Halter was installed from one."""
    source = Path(__file__).parents[2]
    name = str(source) if (source / "pyproject.toml").is_file() else "halter"
    return f'pip install "{name}[{extra}]"'
