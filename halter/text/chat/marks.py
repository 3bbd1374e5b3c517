"""What templates write around turns, found in texts that people wrote: there a template was used already."""

from __future__ import annotations

import re
from collections.abc import Collection

BEGINS = re.compile(
    r"### ?(?:Instruction|Response):|\[/?INST\]|<<SYS>>|<start_of_turn>"
    r"|<\|(?:begin_of_text|start_header_id|header_start|im_start|system|user|assistant)\|>"
    r"|\bUSER: (?=[\s\S]*\bASSISTANT:)"
)
"""Of the families that are common: Alpaca, Llama 2 to 4, Gemma, ChatML, Zephyr, Vicuna."""
ENDS = (
    "</s>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eot|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
    "<eos>",
)


FAMILIES = {
    "alpaca": r"### ?(?:Instruction|Response):",
    "llama-2": r"(?:<s>)?(?:\[/?INST\]|<<SYS>>)|<s>",
    "llama-3": r"<\|(?:begin_of_text|start_header_id)\|>",
    "llama-4": r"<\|header_start\|>",
    "chatml": r"<\|im_start\|>",
    "zephyr": r"<\|(?:system|user|assistant)\|>",
    "vicuna": r"\bUSER: (?=[\s\S]*\bASSISTANT:)",
}
"""{a template: the marks by which it is known}."""


MARKS = {"llama-2": "llama-2's marks ([INST], <<SYS>>, <s>)"}
"""{a template: what its marks are called}, where their look says little."""


def families(text: str) -> list[str]:
    """The templates whose marks a text holds."""
    return [name for name, marks in FAMILIES.items() if begun(text) and re.search(marks, text)]


def begun(text: str) -> str:
    """The first mark in a text with which a template begins somebody's turn; '' where there is none."""
    found = BEGINS.search(text)
    return "" if found is None else found[0].strip()


def ended(text: str, also: Collection[str] = ()) -> str:
    """The mark with which a text ends as a model's turn does; '' where there is none."""
    rest = text.rstrip()
    return next((mark for mark in (*ENDS, *also) if rest.endswith(mark)), "")
