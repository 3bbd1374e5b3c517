"""docs/methods is what the methods' own files say: `make pages` renews it."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_pages_are_up_to_date():
    made = runpy.run_path(str(DOCS / "make_methods.py"))["pages"]()
    stale = [name for name, text in made.items() if (DOCS / "methods" / name).read_text("utf-8") != text]
    assert not stale and {path.name for path in (DOCS / "methods").iterdir()} == set(made)
