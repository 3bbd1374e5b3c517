"""Files that are given for a recipe and are none: scripts in Python, Modelfiles of Ollama's, and what to type."""

from __future__ import annotations

import ast
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from halter.errors import Refusal

FLAGS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "learning_rate",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "warmup_steps",
    "weight_decay",
    "seed",
)
"""Arguments of a script that are flags of ours by the same name."""
ASKED = {
    "temperature": "temperature",
    "top_p": "top-p",
    "top_k": "top-k",
    "seed": "seed",
    "num_predict": "max-new-tokens",
    "repeat_penalty": "repetition-penalty",
}
"""{a Modelfile's PARAMETER: the flag of halter chat}."""
INSTRUCTION = re.compile(r'^(FROM|ADAPTER|SYSTEM|PARAMETER)[ \t]+("""[\s\S]*?"""|.*)', re.MULTILINE | re.IGNORECASE)


def refuse_no_recipe(file: Path) -> None:
    """Refusal ``foreign-unknown`` of a script or a Modelfile, with its own values as the flags that they are here."""
    with suppress(OSError, UnicodeDecodeError):
        text = file.read_text("utf-8")
        if file.suffix.lower() == ".py":
            what = "is a script, and Python is not read"
            fix = f"type its options as flags: halter train --model DIR --data FILE{_flags(text)}"
            raise Refusal("foreign-unknown", what, where=str(file), fix=fix)
        lines = [(name.upper(), value.strip().strip('"').strip()) for name, value in INSTRUCTION.findall(text)]
        if dict(lines).keys() & {"FROM"} and (file.suffix == "" or len(lines) > 1):
            what = "is a Modelfile, which says how Ollama asks a model, and nothing of training"
            raise Refusal("foreign-unknown", what, where=str(file), fix=f"halter chat{_asked(lines)}")


def _flags(text: str) -> str:
    """The arguments of a script's calls that are written as they are and are flags here."""
    given: dict[str, Any] = {}
    with suppress(SyntaxError, ValueError, RecursionError):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.keyword) and node.arg in FLAGS:
                with suppress(ValueError):
                    given.setdefault(node.arg, ast.literal_eval(node.value))
    words = {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in given.items()}
    return "".join(f" --{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in words.items())


def _asked(lines: list[tuple[str, str]]) -> str:
    """The flags of ``halter chat`` that a Modelfile's lines are."""
    told = ""
    for name, value in lines:
        key, _, number = value.partition(" ")
        if name == "PARAMETER" and key in ASKED:
            told += f" --{ASKED[key]} {number.strip()}"
        elif name != "PARAMETER":
            told += f" --{'model' if name == 'FROM' else name.lower()} {shlex.quote(value)}"
    return told
