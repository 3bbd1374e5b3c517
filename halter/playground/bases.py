"""The tiny bases that the playground has: what each is, where it lies, and the tasks that suit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from halter.errors import Refusal, meant
from halter.model.config import ModelConfig
from halter.playground.base import experts_shape, shape, twin_shape
from halter.playground.seeing import seeing_shape
from halter.playground.sights import LEFT_OUT, write_sights
from halter.playground.tasks import write_tasks


@dataclass(frozen=True)
class SmallBase:
    """One base that a committed recipe makes (halter.pretraining)."""

    about: str
    shape: Callable[[Tokenizer], ModelConfig]
    """Its sizes, of the tokenizer's ids."""
    folder: str = ""
    """Where its weights lie in the package; '': they do not."""
    write_tasks: Callable[[Path, int, int, int], list[Path]] = write_tasks
    """Writes TASK/train.jsonl and TASK/test.jsonl into a folder, of a seed, with so many rows each."""
    first_task: str = "lookup"
    """The task to begin with."""


BASES = {
    "dense": SmallBase("a LLaMA 3 in small", shape, "base"),
    "moe": SmallBase("a Llama 4 in small: eight experts a layer", experts_shape, "moe"),
    "moe-twin": SmallBase("moe without experts, as large as what one of its tokens passes; for comparison", twin_shape),
    "seeing": SmallBase("a Llama 4 in small that sees", seeing_shape, "seeing_base", write_sights, LEFT_OUT),
}
"""{name: base}; the first is what is taken where none is named."""


ENCODER = "encoder"
"""What the encoder of pictures is called where a base is named; it is none, and has no tasks."""


def encoder_folder() -> Path:
    """The folder of the encoder of pictures that comes with the package, as ``halter.encoders.load`` takes it."""
    return Path(__file__).with_name(ENCODER)


def base_folder(name: str = "dense") -> Path:
    """The folder of a base that comes with the package, as ``halter.load`` takes it. Refusal ``unknown-base``."""
    one = base(name)
    if not one.folder:
        fix = f"halter playground pretrain FOLDER --base {name}"
        raise Refusal("unknown-base", f"the weights of {name} are not in the package", fix=fix)
    return Path(__file__).with_name(one.folder)


def base(name: str) -> SmallBase:
    """The base of that name. Refusal ``unknown-base`` names those there are."""
    if name not in BASES:
        what = "the playground has no such base"
        raise Refusal("unknown-base", what, found=[name], expected=f"one of {', '.join(BASES)}", fix=meant(name, BASES))
    return BASES[name]
