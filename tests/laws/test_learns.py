"""Learns: at the same budget of tokens, with its defaults, a method closes half of the gap to full fine-tuning.

The page lists by name those that do not; a method file that is not on the page has not been looked at.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from halter.contract.registry import find, names

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "measured" / "learning-curves.md"
SPEC = importlib.util.spec_from_file_location("learning_curves", ROOT / "benchmarks" / "learning_curves.py")
assert SPEC is not None and SPEC.loader is not None
curves = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(curves)


def listed():
    """{method: share on the page}, and the methods that the page names as below half."""
    text = PAGE.read_text()
    rows = re.findall(r"^\| (\w+) \|.*\| (-?\d+)% \| \d+ \|$", text, re.M)
    below = re.search(r"^Below half of the gap: (.*)$", text, re.M)
    assert below is not None
    return {name: int(share) / 100 for name, share in rows}, re.findall(r"(\w+) \(", below[1])


def learns_from_text():
    """The methods whose rows need no pictures: all others leave such rows as they are."""
    return {name for name in names() if not find(name)().equipped().picture_tokens}


def test_every_method_is_on_the_page_and_those_behind_are_named():
    shares, below = listed()
    assert set(shares) == learns_from_text()
    assert sorted(below) == sorted(name for name, share in shares.items() if share < curves.ENOUGH)


@pytest.mark.nightly
def test_every_method_learns(tmp_path):
    files = curves.data("translate", tmp_path)
    runs = {name: curves.curve(name, files, tmp_path / name) for name in sorted(learns_from_text())}
    found = curves.closed({"runs": runs})
    print({name: f"{share:.0%}" for name, share in sorted(found.items(), key=lambda item: item[1])})
    _, below = listed()
    assert {name for name, share in found.items() if share < curves.ENOUGH} == set(below)
