"""What is said in a turn as parts, texts and pictures, in the spellings that people have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halter.data.fault import BadRow

TEXTS = ("text", "input_text", "output_text")
PICTURES = ("image", "image_url", "input_image")
VALUES = ("image", "path", "url", "image_url", "bytes")
"""Keys of a part under which its picture stands, the first that holds something."""

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
