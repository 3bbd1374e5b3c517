"""What readers read in the pictures of a row, put ahead of each in what the row means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from halter.data.fault import BadRow
from halter.data.meaning import Canonical
from halter.data.parts import has_pictures, is_picture, text_of
from halter.readers.frame import ahead
from halter.readers.readings import ReadPicture
from halter.text.chat.pictures import SIGN


def read_ahead(meant: Canonical, found: Sequence[ReadPicture], blind: bool) -> tuple[Canonical, dict[str, int]]:
    """A row's meaning with what was read in its pictures, and what is to be told of it (data.told); ``blind``: in place
    of these, as nobody will see them. Raises BadRow for token ids, into which nothing is written."""
    if meant.tokens is not None:
        raise BadRow("a row of token ids, ahead of which no reader can write what it reads")
    texts = iter([read.text for read in found])
    messages = None if meant.messages is None else read_in(meant.messages, texts, blind)
    prompt, completion, text = (_in_text(said, texts, blind) for said in (meant.prompt, meant.completion, meant.text))
    pictures = () if blind else tuple(read.place for read in found)
    cut = sum(len(read.cut) for read in found)
    told = {"readings_cut": cut} if cut else {}
    made = replace(meant, messages=messages, pictures=pictures, prompt=prompt, completion=completion, text=text)
    return made, told


def read_in(messages: Sequence[dict[str, Any]], texts: Iterator[str], blind: bool) -> list[dict[str, Any]]:
    """Messages with the next of ``texts`` ahead of each picture, or, ``blind``, in place of it."""
    return [
        {**m, "content": _in_parts(m["content"], texts, blind)} if has_pictures(m.get("content")) else m
        for m in messages
    ]


def _in_parts(parts: Sequence[Any], texts: Iterator[str], blind: bool) -> Any:
    made: list[Any] = []
    for number, part in enumerate(parts):
        if not is_picture(part):
            made.append(part)
            continue
        said = ahead(next(texts), text_of(made[-1:]), text_of(parts[number + 1 : number + 2]))
        made += [{"type": "text", "text": said}, part]
    return text_of(made) if blind else made


def _in_text(text: str | None, texts: Iterator[str], blind: bool) -> str | None:
    """The same of a text in which SIGN stands for a picture."""
    if text is None or SIGN not in text:
        return text
    made, *rest = text.split(SIGN)
    for behind in rest:
        made += ahead(next(texts), made, behind) + ("" if blind else SIGN) + behind
    return made
