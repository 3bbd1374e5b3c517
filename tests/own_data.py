"""What tests read: models that have learned, tokenizers and rows. Ours are always there, the shared data's perhaps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import own_rows

TESTS = Path(__file__).resolve().parent
GOLDEN = TESTS / "golden"


def shared_folder() -> Path:
    """HALTER_SHARED, or shared beside the checkout; it need not exist."""
    return Path(os.environ.get("HALTER_SHARED") or TESTS.parents[1] / "shared")


def has_shared() -> bool:
    return (shared_folder() / "data").is_dir()


class Real:
    """Files of the shared data folder, third parties' all."""

    name = "real"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        models, instruct = folder / "models", folder / "instruct"
        self.base = models / "stories260K"
        """A LLaMA of 260,032 parameters that tells stories: 512 pieces and bytes, 512 positions, no chat template."""
        self.letters = models / "babyllama-105"
        """One that knows single characters and no bytes, 256 positions."""
        self.pieces = models / "llama2_tokenizer"
        """A folder with nothing but a SentencePiece tokenizer.model, as Meta ships it."""
        self.ranks = models / "llama4_tokenizer"
        """A folder with Llama 4's tokenizer.model, which Meta's licence keeps out of most places."""
        self.train = instruct / "tinystories_instruct_train.jsonl"
        """Instructions that ``base`` can follow: {"instruction", "input", "output"}, many longer than 512 tokens."""
        self.test = instruct / "tinystories_instruct_test.jsonl"
        """150 more."""
        self.stories = folder / "text" / "tinystories_test.jsonl"
        """{"text"}"""
        self.alpaca = instruct / "alpaca_5000.jsonl"
        self.identity = folder / "chat" / "sharegpt_vicuna_identity.jsonl"
        self.tool_calls = folder / "chat" / "sharegpt_glaive_toolcall_en.jsonl"
        self.rated = folder / "chat" / "messages_kto_en.jsonl"
        self.questions = folder / "chat" / "mt_bench_questions.jsonl"
        self.preferences = folder / "preference" / "dpo_en_demo.jsonl"
        self.seed_tasks = instruct / "self_instruct_seed_tasks.jsonl"
        self.sums = folder / "eval" / "gsm8k_train_1000.jsonl"


class Own:
    """The same kinds of files, ours: small models of tests/golden, and rows of own_rows, written when asked for."""

    name = "own"
    base, letters, pieces = GOLDEN / "story", GOLDEN / "letters", GOLDEN / "pieces"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _write(self, name: str, rows: Iterable[own_rows.Row]) -> Path:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return path

    @cached_property
    def train(self) -> Path:
        return self._write("train", own_rows.instructions(0, 400))

    @cached_property
    def test(self) -> Path:
        return self._write("test", own_rows.instructions(1, 150))

    @cached_property
    def stories(self) -> Path:
        return self._write("stories", own_rows.stories(0, 200))

    @cached_property
    def alpaca(self) -> Path:
        return self._write("alpaca", own_rows.alpaca(0, 2500))

    @cached_property
    def identity(self) -> Path:
        return self._write("identity", own_rows.identity(0, 200))

    @cached_property
    def tool_calls(self) -> Path:
        return self._write("tool_calls", own_rows.tool_calls(0, 150))

    @cached_property
    def rated(self) -> Path:
        return self._write("rated", own_rows.rated(0, 100))

    @cached_property
    def questions(self) -> Path:
        return self._write("questions", own_rows.questions(0, 40))

    @cached_property
    def preferences(self) -> Path:
        return self._write("preferences", own_rows.preferences(0, 100))

    @cached_property
    def seed_tasks(self) -> Path:
        return self._write("seed_tasks", own_rows.seed_tasks(0, 50))

    @cached_property
    def sums(self) -> Path:
        return self._write("sums", own_rows.sums(0, 2500))


Data = Own | Real
