"""The models and rows of tests/golden and own_rows: as they were made, small, and what tests count on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from own_data import GOLDEN, Data, Own

from halter.data.load import load_examples
from halter.data.options import DataOptions
from halter.pretrained.load import load
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

ROWS = {
    "train": (400, "65ce7deb43df7867"),
    "test": (150, "3f2e901576c9a871"),
    "stories": (200, "e5d37ba02970ee55"),
    "alpaca": (2500, "881393dbc24adbe9"),
    "identity": (200, "2749849d5df266b0"),
    "tool_calls": (150, "48e05deeb5b33c36"),
    "rated": (100, "b8c3ea2e2e9b072d"),
    "questions": (40, "f7fd282a20b4c002"),
    "preferences": (100, "6ae1ad2ff2ad3566"),
    "seed_tasks": (50, "371bbb4f48f55930"),
    "sums": (2500, "7c68dc761e8eab48"),
}
"""{file: (rows, the first 16 digits of its SHA-256)}"""


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_the_same_everywhere(own: Own, name: str) -> None:
    path = getattr(own, name)
    assert (len(rows(path)), hashlib.sha256(path.read_bytes()).hexdigest()[:16]) == ROWS[name]


def test_what_is_committed_is_small() -> None:
    kept = [*(f for name in ("story", "letters", "pieces") for f in (GOLDEN / name).iterdir()), GOLDEN / "greedy.json"]
    assert sum(file.stat().st_size for file in kept) < 1_500_000


def test_instructions_like_alpacas_have_what_makes_them_hard(own: Own) -> None:
    found = rows(own.alpaca)
    assert sum(not row["input"] for row in found) > len(found) / 2 and any(row["input"] for row in found)
    assert sum(not row["output"] for row in found) == 2 and max(len(row["output"]) for row in found) > 2000
    assert any(ord(c) > 0xFFFF for row in found for c in row["output"])  # beyond the first 65,536 characters


def test_the_base_has_learned_and_rows_go_beyond_its_context(data: Data) -> None:
    """Tales it never read cost below 2 nats a token, where knowing nothing costs 6.2."""
    model, tokenizer = load(str(data.base), "float32", say=lambda _: None)
    assert model.config.context == 512 and model.config.num_parameters == 260_032 and tokenizer.chat_template is None
    found = load_examples(
        DataOptions(train=str(data.train), max_length=512, on_long="cut"), tokenizer, ChatTemplate.builtin("alpaca")
    ).report
    losses = []
    for row in rows(data.stories)[:8]:
        ids = torch.tensor([[1, *tokenizer.encode(row["text"])][:512]])
        with torch.no_grad():
            losses.append(float(torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])))
    assert sum(losses) / len(losses) < 2
    assert 0.2 < found.long_cut / found.rows < 0.6 and found.long_dropped == 0


@pytest.mark.nightly
def test_tokenizers_are_those_that_the_recipe_makes(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(GOLDEN)!r}); import make, pathlib; make.make(pathlib.Path('.'), 0, 0)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    for name in ("story", "letters", "pieces"):
        made, kept = (Tokenizer.from_folder(folder / name) for folder in (tmp_path, GOLDEN))
        assert made.digest == kept.digest
