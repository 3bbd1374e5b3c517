"""Methods by names that are none of ours: a variant that is an option of another method, and what Halter has not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from halter.elsewhere import NOT_HERE

VARIANTS = {
    "loraplus": ("lora", "loraplus_lr_ratio", 16),
    "rslora": ("lora", "rslora", True),
    "adaptionprompt": ("llama_adapter", "", None),
    "lntuning": ("norm_tuning", "", None),
    "trainabletokens": ("token_rows", "", None),
    "fullfinetuning": ("full", "", None),
}
"""{a name without its signs: (the method that it is, the option that makes it so, the option's value)}."""
ABSENT = {
    **dict.fromkeys(
        ("adalora", "vblora", "xlora", "randlora", "lorafa", "loraga", "delora", "sora", "eva", "corda"),
        ("lora", "dora"),
    ),
    **dict.fromkeys(("oft", "boft", "hra", "fourierft", "waveft", "shira", "c3a", "bone", "miss"), ("lora", "lokr")),
    **dict.fromkeys(("galore", "apollo", "lomo", "badam", "lisa"), ("lora", "full")),
    **dict.fromkeys(("poly", "cpt", "multitaskprompttuning", "mpt"), ("prompt_tuning", "lora")),
}
"""{a method that Halter has not, without its signs: those of its own that are nearest in kind}."""


def bare(name: str) -> str:
    """A method's name without the signs that people spell differently; a + says something: LoRA+ is not LoRA."""
    return re.sub(r"[\W_]+", "", name.lower().replace("+", "plus"))


def spelt(word: Any, known: Iterable[str]) -> Any:
    """That of the known names which a word spells as people do (LoRA, llama-adapter-v2), else what was given."""
    return {bare(name): name for name in known}.get(bare(word), word) if isinstance(word, str) else word


def variant(name: str) -> tuple[str, str, Any] | None:
    """What VARIANTS says of a name."""
    return VARIANTS.get(bare(name))


def absent(name: str) -> str:
    """What is said of a method that is known elsewhere and not here; '' of any other word."""
    near = ABSENT.get(bare(name))
    return f"{name} {NOT_HERE} {', '.join(near)}" if near else ""


def in_python(name: str, known: Iterable[str]) -> str:
    """How a method under another's name is had in Python; '' where none is meant."""
    if found := variant(name):
        option = f", {found[1]}={found[2]}" if found[1] else ""
        return f'halter.adapt(model, "{found[0]}"{option})'
    near = get_close_matches(re.sub(r"[\W_]+", "_", name.lower()), known, 1)
    return absent(name) or (f"did you mean {near[0]}?" if near else "")


def as_variant(name: str) -> str:
    """How a comparison has a method under another's name: a variant in a recipe's section compare; '' of no other."""
    if not (found := variant(name)):
        return absent(name)
    if not found[1]:
        return found[0]
    return f"variants: {{mine: {{name: {found[0]}, {found[1]}: {str(found[2]).lower()}}}}}, and --methods mine"


def in_words(name: str) -> str:
    """What a method under another's name is in a recipe; '' where none is meant."""
    if found := variant(name):
        return found[0] + (f" with method.{found[1]}={str(found[2]).lower()}" if found[1] else "")
    return absent(name)
