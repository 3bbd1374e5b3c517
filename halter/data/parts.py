"""What is said in a turn as parts, texts and pictures, in the spellings that people have."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from halter.data.fault import BadRow

TEXTS = ("text", "input_text", "output_text")
PICTURES = ("image", "image_url", "input_image")
VALUES = ("image", "path", "url", "image_url", "bytes")
"""Keys of a part under which its picture stands, the first that holds something."""

BYTES = (bytes, bytearray, memoryview)
SCHEME = re.compile(r"(data|file|https?):", re.IGNORECASE)
"""How a name begins that is no path."""

Part = dict[str, Any]


def content_of(spoken: Sequence[Any]) -> str | list[Part]:
    """The text of a turn's parts; where pictures are among them, parts again: {type: text, text} and {type: image,
    image}, which says where it lies, or {type: image}, perhaps with an ``index``, where a column of the row has it.
    Raises BadRow.

    Read are OpenAI's parts (text, image_url; input_text, input_image), Hugging Face's (image with path, url, base64 or
    image) and Anthropic's (image with a source).
    """
    parts = [_part(one) for one in spoken]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def is_picture(part: Any) -> bool:
    """Whether a part of a turn is a picture."""
    return isinstance(part, Mapping) and part.get("type") in PICTURES


def has_pictures(content: Any) -> bool:
    """Whether there is a picture in what a turn says."""
    return isinstance(content, list | tuple) and any(map(is_picture, content))


def carried(row: Mapping[str, Any], columns: Sequence[str], base: Path | None) -> dict[str, Any]:
    """A row as JSON has it in a file of any folder: its pictures, in ``columns`` and in parts, by whole paths (those
    that are not whole are relative to ``base``), their bytes as data URIs; all else is as it was."""
    found = {}
    for name, value in row.items():
        if name not in columns:
            found[name] = _in_turns(value, base)
        elif isinstance(value, list | tuple):
            found[name] = [_anywhere(one, base) for one in value]
        else:
            found[name] = _anywhere(value, base)
    return found


def _in_turns(value: Any, base: Path | None) -> Any:
    if isinstance(value, list | tuple):
        return [_in_turns(one, base) for one in value]
    if not isinstance(value, Mapping):
        return value
    if not is_picture(value):
        return {key: _in_turns(one, base) for key, one in value.items()}
    return {key: _anywhere(one, base) if key in (*VALUES, "source") else one for key, one in value.items()}


def _anywhere(value: Any, base: Path | None) -> Any:
    """What names a picture, wherever the file lies that says it."""
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), BYTES):
            return _anywhere(value["bytes"], base)
        return {key: _anywhere(one, base) if key in ("path", "url") else one for key, one in value.items()}
    if isinstance(value, BYTES):
        return _uri(b64encode(value).decode())
    if type(value).__module__.partition(".")[0] == "PIL":
        held = BytesIO()
        value.save(held, "PNG")
        return _anywhere(held.getvalue(), base)
    if not isinstance(value, str) or base is None or SCHEME.match(value):
        return value
    path = Path(value).expanduser()
    return str(path if path.is_absolute() else (base / path).absolute())


def text_of(content: Any) -> str:
    """The words of what a turn says, its pictures left out."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else ()
    return "".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))


def _part(part: Any) -> Part:
    if is_picture(part):
        return _picture(part)
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    named = part.get("type") if isinstance(part, Mapping) else None
    what = f"a part {named}" if isinstance(named, str) and named not in TEXTS else "a part without a text"
    raise BadRow(f"wrong type of content: {what}, and Halter reads texts and pictures")


def _picture(part: Mapping[str, Any]) -> Part:
    source = part.get("source")
    if isinstance(source, Mapping):  # Anthropic's
        if isinstance(source.get("data"), str):
            return {"type": "image", "image": _uri(source["data"])}
        if isinstance(source.get("url"), str):
            return {"type": "image", "image": source["url"]}
        raise BadRow(f"wrong type of content: a picture by {source.get('type')}, and Halter reads base64 and url")
    if isinstance(part.get("base64"), str):
        return {"type": "image", "image": _uri(part["base64"])}
    value = next((part[key] for key in VALUES if part.get(key) is not None), None)
    if isinstance(value, Mapping) and isinstance(value.get("url"), str):  # OpenAI's
        value = value["url"]
    if value is not None:
        return {"type": "image", "image": value}
    index = part.get("index")
    return {"type": "image", "index": index} if isinstance(index, int) else {"type": "image"}


def _uri(text: str) -> str:
    return text if text[:5].lower() == "data:" else f"data:;base64,{text}"
