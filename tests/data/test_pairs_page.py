"""docs/guide/train-on-pairs.md: its changes, made in a copy of the package, make of its row what its table says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guide" / "train-on-pairs.md").read_text("utf-8")
READ = """
import json, sys
from pathlib import Path
from dataclasses import replace
from halter.data.load import load_examples
from halter.data.options import DataOptions
from halter.data.pack import pack
from halter.errors import Refusal
from halter.text.tokenizer import Tokenizer

tokenizer = Tokenizer.from_folder(Path(sys.argv[2]))
asked = DataOptions(train=sys.argv[1], validation=None, pairs=True, cache=False)


def told(options):
    try:
        loaded = load_examples(options, tokenizer, None)
    except Refusal as refusal:
        return refusal.id
    rows = []
    for one in loaded.train:
        learned = tokenizer.decode(one.tokens[one.supervised])
        rows.append([one.group, one.label, tokenizer.decode(one.tokens), learned, len(one.tokens)])
    batch = pack(list(loaded.train), grouped=True)
    return {"rows": rows, "groups": batch.groups, "labels": batch.labels, "notes": loaded.report.notes}


whole = told(asked)
first, second = (row[-1] for row in whole["rows"])
assert first < second
print(json.dumps({
    "whole": whole,
    "without": told(replace(asked, pairs=False)),
    "cut": told(replace(asked, max_length=second - 1, on_long="cut")),
    "dropped": told(replace(asked, max_length=second - 1, on_long="drop")),
}))
"""


def changed(tree: Path) -> None:
    """Make the page's changes below ``tree``; each finds its place once."""
    (block,) = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for part in block.split("--- ")[1:]:
        name, *lines = part.splitlines()
        old, new = ("".join(f"{line[1:]}\n" for line in lines if line[:1] != sign) for sign in "+-")
        text = (tree / name).read_text("utf-8")
        assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
        (tree / name).write_text(text.replace(old, new), "utf-8")


def test_the_changes_make_a_pair_of_the_row(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "halter", tmp_path / "halter", ignore=shutil.ignore_patterns("__pycache__"))
    changed(tmp_path)
    (row,) = re.findall(r"^```jsonl\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "pairs.jsonl").write_text(row, "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", READ, "pairs.jsonl", str(ROOT / "tests" / "golden" / "story")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    told = json.loads(child.stdout)
    table = re.findall(r"^\| (?:first|second) \| (\d+) \| (-?[\d.]+) \| `(.*?)` \| `(.*?)` \|$", PAGE, re.MULTILINE)
    want = [[int(group), float(label), text, learned] for group, label, text, learned in table]
    assert len(want) == 2 and [row[:4] for row in told["whole"]["rows"]] == want
    assert told["whole"]["groups"] == [0, 0] and told["whole"]["labels"] == [1.0, -1.0]
    assert "contradicting" not in told["whole"]["notes"]
    assert told["without"] == "data-preference"
    assert [row[:2] for row in told["cut"]["rows"]] == [[0, 1.0], [0, -1.0]]
    assert told["dropped"] == "no-rows"  # and not the one that fits
    settings = ("--no-cache", "--config", str(ROOT / "pyproject.toml"))
    for rule in (["check"], ["format", "--check"]):
        made = [sys.executable, "-m", "ruff", *rule, *settings, "halter/data"]
        assert subprocess.run(made, cwd=tmp_path, check=False).returncode == 0
