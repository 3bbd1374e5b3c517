"""What files of rows are called: by their suffix they are read."""

from __future__ import annotations

from pathlib import Path

TEXT = (".txt",)
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", *TEXT)
RECIPES = (".yaml", ".yml", ".json")
"""What recipes end in."""
PACKED = ".gz"
"""What may follow a suffix: the same, packed."""


def suffix_of(path: Path) -> str:
    """The suffix that says how a file is read, in lower case: .jsonl of a.jsonl and of a.jsonl.gz."""
    return (Path(path.name[: -len(PACKED)]) if path.name.lower().endswith(PACKED) else path).suffix.lower()


def called_rows(path: Path) -> bool:
    """Whether a file, there or not, is called as those of rows are."""
    return suffix_of(path) in SUFFIXES and not path.is_dir()
