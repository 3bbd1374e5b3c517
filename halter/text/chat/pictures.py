"""Pictures in conversations: where they stand in messages, and in the text that a template makes of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halter.errors import Refusal
from halter.text.codecs.codec import Control, Match

SIGN = "\U000f5a19"
"""Stands for a picture within a text, where the text is ours to write: of private use as layout.OPEN is, so that no
template changes it."""


def count(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many pictures there are in messages."""
    return sum(
        _is_picture(part) for m in messages if isinstance(m.get("content"), list | tuple) for part in m["content"]
    )


def _is_picture(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image"


def signed(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with one text in place of their parts, SIGN in it where a picture stands: for built-in templates
    that know texts alone."""
    return [{**m, "content": _signed(m["content"])} if count([m]) else m for m in messages]


def _signed(parts: Sequence[Any]) -> Any:
    return "".join(
        SIGN if _is_picture(part) else part["text"]
        for part in parts
        if _is_picture(part) or (isinstance(part, Mapping) and isinstance(part.get("text"), str))
    )


def signs(text: str, picture: Control) -> list[Match]:
    """The places of a text at which a picture stands, as the model's control token for one."""
    return [Match(at, at + 1, at, picture) for at, sign in enumerate(text) if sign == SIGN]


def joined(matches: Sequence[Match], text: str, picture: Control | None) -> Sequence[Match]:
    """The control tokens of a text and the pictures in it, in their order."""
    if picture is None:
        return matches
    return sorted((*matches, *signs(text, picture)), key=lambda match: match.start)


def written(text: str, picture: Control | None) -> str:
    """A text as it is shown: with the model's token where a picture stands."""
    return text if picture is None else text.replace(SIGN, picture.text)


def refuse_miscounted(tokens: Sequence[int], due: int, picture: Control, where: str) -> None:
    """Refusal ``template-pictures`` where a template does not write the model's token once for each picture."""
    there = sum(token == picture.id for token in tokens)
    if there != due:
        raise Refusal(
            "template-pictures",
            f"writes {picture.text}, by which this model knows a picture, {there} times for {due} pictures",
            where=where,
            fix="take the chat template of the checkpoint, or a built-in one: --template llama-4 or llama-3.2-vision",
        )
