"""The pictures of a row, each put where it stands in what the row means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from halter.data.fault import BadRow
from halter.data.meaning import Canonical, Row
from halter.data.parts import Part, has_pictures, is_picture, text_of
from halter.text.chat.pictures import SIGN

COLUMNS = ("images", "image")
PLACE = re.compile(r"<image>|<\|image\|>")
"""What people write where a picture stands. In a row that brings no picture it is text like any other."""
PLACE_LINE = re.compile(rf"\s*(?:{PLACE.pattern})\s*")
"""The same with the new line or blank that keeps it apart from the words, which belongs to neither."""


def column_of(row: Mapping[str, Any]) -> str:
    """The column in which a row has pictures, or says that it has none; '' where there is no such column."""
    found = {name: held for name in COLUMNS if (held := _listed(row.get(name))) is not None}
    return next((name for name, held in found.items() if held), next(iter(found), ""))


def _listed(value: Any) -> list[Any] | None:
    """What a column of pictures holds; None where it is no such column, or holds nothing. A list says how many there
    are: one of nothing says that there are none, and nothing beside pictures is one that is missing."""
    if isinstance(value, list | tuple):
        if all(map(_nothing, value)):
            return []
        return [*value] if all(_may_be(one) or _nothing(one) for one in value) else None
    return [value] if _may_be(value) else None


def _nothing(value: Any) -> bool:
    """Whether this stands where a picture would and names none."""
    if isinstance(value, Mapping):
        return "bytes" in value and value["bytes"] is None and value.get("path") is None
    return value is None or (isinstance(value, str) and not value.strip())


def _may_be(value: Any) -> bool:
    if isinstance(value, Mapping):
        return value.get("bytes") is not None or isinstance(value.get("path"), str)
    return isinstance(value, bytes) or (isinstance(value, str) and bool(value.strip())) or _of_pillow(value)


def _of_pillow(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "PIL"


def pictured(meant: Canonical, row: Row, talk: bool) -> Canonical:
    """What a row means with its pictures: those of its column, which stand where the text says <image>, and those that
    are parts of its messages. Raises BadRow where places and pictures differ in number.

    A row that is no conversation (``talk``) need not say where: its pictures then go ahead of what it asks.
    """
    column = column_of(row)
    given = _listed(row.get(column)) if column else None
    inline = any(has_pictures(message.get("content")) for message in meant.messages or ())
    if given is None and not inline:
        return meant
    if any(SIGN in text for text in _texts(meant)):
        raise BadRow(f"a character that Halter keeps for itself, U+{ord(SIGN):X}")
    given = given or []
    if meant.tokens is not None:
        return replace(meant, pictures=tuple(given))
    if inline:
        return _filled(meant, given)
    places = sum(len(PLACE.findall(text)) for text in _texts(meant))
    if not places and given and not talk:
        return _ahead(meant, given)
    if places != len(given):
        text = "" if given else "; where <image> is meant as text, leave the column out or give null"
        raise BadRow(f"{_count(places, 'place')} for pictures (<image>) and {_count(len(given), 'picture')}{text}")
    return _placed(meant, given)


def _texts(meant: Canonical) -> list[str]:
    said = [text_of(m.get(key)) for m in meant.messages or () for key in ("content", "input")]
    return [*said, meant.prompt or "", meant.completion or "", meant.text or ""]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _filled(meant: Canonical, given: Sequence[Any]) -> Canonical:
    """Pictures that are parts of messages: what a part names, or else the next of the column, or that of its index."""
    rest, found, indexed = iter(given), [], 0
    messages = []
    for message in meant.messages or ():
        parts = message["content"]
        if not has_pictures(parts):
            messages.append(message)
            continue
        for part in filter(is_picture, parts):
            index = part.get("index")
            if "image" in part:
                found.append(part["image"])
            elif index is not None and not 0 <= index < len(given):
                raise BadRow(f"a place for picture {index} and {_count(len(given), 'picture')}")
            else:
                indexed += 1
                found.append(given[index] if index is not None else next(rest, None))
        messages.append({**message, "content": [{"type": "image"} if is_picture(p) else p for p in parts]})
    if indexed != len(given):
        raise BadRow(f"{_count(indexed, 'place')} for pictures and {_count(len(given), 'picture')}")
    return replace(meant, messages=messages, pictures=tuple(found))


def _placed(meant: Canonical, given: Sequence[Any]) -> Canonical:
    """Pictures of a column where the text says that they stand."""

    def signed(text: str | None) -> str | None:
        return None if text is None else PLACE.sub(SIGN, text)

    messages = None if meant.messages is None else [_in_parts(message) for message in meant.messages]
    prompt, completion, text = map(signed, (meant.prompt, meant.completion, meant.text))
    return replace(meant, messages=messages, pictures=tuple(given), prompt=prompt, completion=completion, text=text)


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    said, beside = message.get("content"), message.get("input")
    if isinstance(beside, str) and PLACE.search(beside):
        said, message = f"{said}\n\n{beside}", {k: v for k, v in message.items() if k != "input"}
    if not isinstance(said, str) or not PLACE.search(said):
        return message
    first, *rest = PLACE_LINE.split(said)
    parts: list[Part] = [{"type": "text", "text": first}]
    for text in rest:
        parts += [{"type": "image"}, {"type": "text", "text": text}]
    return {**message, "content": [p for p in parts if p["type"] == "image" or p["text"]]}


def _ahead(meant: Canonical, given: Sequence[Any]) -> Canonical:
    """Pictures of a row that does not say where they stand: ahead of what is asked."""
    pictures = tuple(given)
    if meant.text is not None:
        return replace(meant, text=SIGN * len(given) + meant.text, pictures=pictures)
    if meant.messages is None:
        return replace(meant, prompt=SIGN * len(given) + (meant.prompt or ""), pictures=pictures)
    messages = [*meant.messages]
    first = next((at for at, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        raise BadRow(f"{_count(len(given), 'picture')} and nobody who asks about them")
    words = [{"type": "text", "text": text_of(messages[first]["content"])}]
    parts = [*({"type": "image"} for _ in given), *(one for one in words if one["text"].strip())]
    messages[first] = {**messages[first], "content": parts}
    return replace(meant, messages=messages, pictures=pictures)


def without(meant: Canonical) -> Canonical:
    """What a row means without its pictures."""
    messages = meant.messages
    if messages is not None:
        messages = [{**m, "content": text_of(m["content"])} if has_pictures(m.get("content")) else m for m in messages]
    texts = (meant.prompt, meant.completion, meant.text)
    prompt, completion, text = (said if said is None else said.replace(SIGN, "") for said in texts)
    return replace(meant, messages=messages, pictures=(), prompt=prompt, completion=completion, text=text)
