"""Reasoning inside an answer: ``<think>...</think>`` before what is said, told apart without any tokenizer."""

from __future__ import annotations

import re
from dataclasses import dataclass

TAGS = "think|thinking|reasoning|thought"
OPENING = re.compile(rf"\s*<({TAGS})>\s*")
OPENED = re.compile(rf"<({TAGS})>(\s*)$")
"""How a generation prompt ends that has the model reason first."""


@dataclass(frozen=True)
class Parts:
    """An answer in pieces; put together in this order they are its text again."""

    opening: str
    """White space and, where it is there, the opening tag."""
    thought: str
    closing: str
    """The closing tag with the white space around it."""
    answer: str


def parts(content: object) -> Parts | None:
    """The pieces of an answer that reasons first; None where nothing does. The opening tag may be missing, as in
    answers to a prompt that ends with it."""
    if not isinstance(content, str) or "</" not in content:
        return None
    opened = OPENING.match(content)
    tag = opened[1] if opened else "think"
    start = opened.end() if opened else len(content) - len(content.lstrip())
    end = content.find(f"</{tag}>", start)
    if end < 0:
        return None
    thought = content[start:end].rstrip()
    after = content[end + len(tag) + 3 :]
    answer = after.lstrip()
    return Parts(content[:start], thought, content[start + len(thought) : len(content) - len(answer)], answer)


def known(source: str) -> bool:
    """Whether a template looks for reasoning. In others the tags are words like any, and never become tokens."""
    return re.search(rf"</({TAGS})>", source) is not None


def without(content: str) -> str:
    """What is said after the reasoning."""
    found = parts(content)
    return content if found is None else found.answer


def continued(found: Parts, prompt: str) -> Parts:
    """The pieces as they continue a prompt that has opened the reasoning: the opening that it holds is not repeated."""
    told = OPENED.search(prompt)
    space = told[2] if told else ""
    tag = OPENING.match(found.opening)
    opening = found.opening[found.opening.index(">") + 1 :].removeprefix(space) if tag else ""
    return Parts(opening, found.thought, found.closing, found.answer)


def closing(prompt: str) -> str:
    """What closes at once the reasoning that a prompt has opened."""
    told = OPENED.search(prompt)
    tag, space = (told[1], told[2]) if told else ("think", "")
    return f"\n\n</{tag}>\n\n".removeprefix(space)
