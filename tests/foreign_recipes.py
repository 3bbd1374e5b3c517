"""The example recipes of other tools (tests/golden/foreign, ours), filled in with models and rows that are there."""

from __future__ import annotations

import json
from pathlib import Path

from own_data import Own

GOLDEN = Path(__file__).resolve().parent / "golden" / "foreign"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
TOOLS = {"llama_factory": "LLaMA-Factory", "axolotl": "Axolotl", "trl": "TRL", "mlx": "mlx-lm"}


def title(name: str) -> str:
    """The tool of an example, by its file's name."""
    return next(title for start, title in TOOLS.items() if name.startswith(start))


def rows(own: Own) -> list[dict[str, str]]:
    return [json.loads(line) for line in own.train.read_text("utf-8").splitlines()]


def lay(folder: Path, own: Own) -> dict[str, str]:
    """What the examples' open places are filled with: files below ``folder``."""
    folder.mkdir(exist_ok=True)
    told = rows(own)[:40]
    asked = [{"q": row["instruction"], "a": row["output"]} for row in told]
    pairs = [{"prompt": row["instruction"], "completion": " " + row["output"]} for row in told]
    for name, listed in (("asked", asked[:30]), ("kept_back", asked[30:]), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed), "utf-8")
    split = folder / "mlx"
    split.mkdir(exist_ok=True)
    lines = (folder / "pairs.jsonl").read_text("utf-8").splitlines(keepends=True)
    (split / "train.jsonl").write_text("".join(lines[:30]), "utf-8")
    (split / "valid.jsonl").write_text("".join(lines[30:]), "utf-8")
    info = {
        "tales": {"file_name": str(own.train), "num_samples": 40},
        "more_tales": {"file_name": str(own.test)},
        "asked": {"file_name": "asked.jsonl", "columns": {"prompt": "q", "response": "a"}},
        "kept_back": {"file_name": "kept_back.jsonl", "columns": {"prompt": "q", "response": "a"}},
        "talks": {
            "file_name": str(own.identity),
            "formatting": "sharegpt",
            "columns": {"messages": "conversations"},
            "tags": {"user_tag": "human", "role_tag": "from"},
        },
        "compared": {"file_name": "x.jsonl", "ranking": True},
        "online": {"hf_hub_url": "org/name", "subset": "en", "split": "train"},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    jinja = Path(__file__).resolve().parents[1] / "halter" / "text" / "templates" / "vicuna.jinja"
    return {
        "model": str(own.base),
        "info": str(folder),
        "train": str(own.train),
        "test": str(own.test),
        "talks": str(own.identity),
        "pairs": str(folder / "pairs.jsonl"),
        "stories": str(own.stories),
        "folder": str(split),
        "jinja": str(jinja),
    }


def example(name: str, folder: Path, own: Own) -> Path:
    """The example of that name, filled in, as a file in ``folder``."""
    path = folder / name
    path.write_text((GOLDEN / name).read_text("utf-8").format(**lay(folder / "data", own)), "utf-8")
    return path
