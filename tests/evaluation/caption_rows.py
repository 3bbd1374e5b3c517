"""What tests of captions need: the library and Java where they are, and a stand-in for both where they are not."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from halter.evaluation.options import MeasureOptions

PLAIN = MeasureOptions()
there = importlib.util.find_spec("pycocoevalcap") is not None and shutil.which("java") is not None
needs_captions = pytest.mark.skipif(not there, reason="pycocoevalcap or java is not there (extra captions)")


def coco(shared: Path) -> list[tuple[str, ...]]:
    """The captions of the 31 COCO pictures, five each."""
    file = shared / "data" / "multimodal" / "coco_captions" / "captions.jsonl"
    return [tuple(json.loads(line)["captions"]) for line in file.read_text("utf-8").splitlines()]


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """A package pycocoevalcap in ``folder`` that holds nothing but its tokenizer's names."""
    place = folder / "pycocoevalcap" / "tokenizer" / "ptbtokenizer.py"
    module = ModuleType("pycocoevalcap.tokenizer.ptbtokenizer")
    module.__file__ = str(place)
    vars(module).update(PUNCTUATIONS=["."], STANFORD_CORENLP_3_4_1_JAR="tokenizer.jar")
    package, tokenizer = ModuleType("pycocoevalcap"), ModuleType("pycocoevalcap.tokenizer")
    vars(tokenizer)["ptbtokenizer"] = module
    for name, one in (("", package), (".tokenizer", tokenizer), (".tokenizer.ptbtokenizer", module)):
        monkeypatch.setitem(sys.modules, f"pycocoevalcap{name}", one)
    return place.parents[1]


def java(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """A program java that is this script, the only one on the PATH beside the system's."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
