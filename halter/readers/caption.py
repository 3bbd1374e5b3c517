"""What a picture shows, told by a model that sees behind any endpoint that speaks OpenAI's chat/completions.

Where it is and by what key it is entered stands in the environment, never in an option: a recipe or an adapter of a
stranger's can then ask for captions, and cannot say who gets the pictures.
"""

from __future__ import annotations

import base64
import io
import json
import os
from functools import partial
from hashlib import sha256
from typing import Any

from halter.errors import Refusal
from halter.pictures.fetching import Unanswered, posted
from halter.pictures.process import PictureFault
from halter.readers import frame
from halter.readers.reader import CHARACTERS, PictureReader

AT_VARIABLE = "HALTER_CAPTION_URL"
MODEL_VARIABLE = "HALTER_CAPTION_MODEL"
KEY_VARIABLE = "HALTER_CAPTION_KEY"
INSTRUCTION = "Describe this picture in one or two plain sentences."
SECONDS = 120.0
"""For one answer, all of it."""
ANSWER_BYTES = 1 << 20
TOKENS = 300
SIDE = 2048
"""Pixels of a picture's longer side at most as it is sent."""
OF_THE_PICTURE = (400, 413, 415, 422)
"""Answers that say that this picture will not do; all others are of the endpoint."""
SHOWN = 200


def caption(
    model: str = "",
    instruction: str = INSTRUCTION,
    characters: int = CHARACTERS,
    *,
    url: str = "",
    key: str = "",
) -> PictureReader:
    """``url``: the address ahead of /chat/completions, else HALTER_CAPTION_URL; ``model``: else HALTER_CAPTION_MODEL;
    ``key``: else HALTER_CAPTION_KEY, or none. Refusal ``reader-unset`` without an address or a model.

    Reading raises PictureFault where the endpoint will not have a picture, Refusal ``reader-failed`` for all else.
    """
    url, model = url or os.environ.get(AT_VARIABLE, ""), model or os.environ.get(MODEL_VARIABLE, "")
    key = (key or os.environ.get(KEY_VARIABLE, "")).strip()
    lacking = [] if url.lower().startswith(("http://", "https://")) else [f"{AT_VARIABLE}: an address, http or https"]
    lacking += [] if model else [f"{MODEL_VARIABLE}, or caption:model=NAME: what the endpoint calls its model"]
    lacking += [] if key.isascii() and key.isprintable() else [f"{KEY_VARIABLE}: a key of ASCII's letters and signs"]
    if lacking:
        what = "reader caption is not told whom to ask"
        fix = f"export {AT_VARIABLE}=http://localhost:8000/v1 {MODEL_VARIABLE}=NAME"
        raise Refusal("reader-unset", what, found=lacking, fix=fix)
    address = url.rstrip("/")
    address = address if address.endswith("/chat/completions") else f"{address}/chat/completions"
    decides = sha256("\0".join((address, model, instruction, str(TOKENS), str(SIDE))).encode()).hexdigest()
    ask = partial(_asked, address, model, instruction, key)
    return PictureReader("caption", ask, decides, frame.SHOWN, characters)


def _asked(address: str, model: str, instruction: str, key: str, picture: Any) -> str:
    body = {"model": model, "max_tokens": TOKENS, "temperature": 0, "messages": [_message(instruction, picture)]}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        said = posted(address, json.dumps(body).encode(), headers, ANSWER_BYTES, SECONDS)
    except Unanswered as fault:
        why = _without(key, " ".join(filter(None, (str(fault.status or ""), fault.why, _told(fault.said)))))
        if fault.status in OF_THE_PICTURE:
            raise PictureFault(f"the captions' endpoint will not have it: {why}") from None
        raise _failed(address, why) from None
    if len(said) > ANSWER_BYTES:
        raise _failed(address, f"an answer of more than {ANSWER_BYTES:,} bytes")
    return _content(address, said)


def _message(instruction: str, picture: Any) -> dict[str, Any]:
    if max(picture.size) > SIDE:
        picture = picture.copy()
        picture.thumbnail((SIDE, SIDE))
    held = io.BytesIO()
    picture.save(held, "PNG")
    shown = {"url": f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"}
    parts = [{"type": "text", "text": instruction}, {"type": "image_url", "image_url": shown}]
    return {"role": "user", "content": parts}


def _content(address: str, said: bytes) -> str:
    try:
        content = json.loads(said)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise _failed(address, f"an answer of another form: {_shown(said)}") from None
    if isinstance(content, list):
        content = "".join(str(one["text"]) for one in content if isinstance(one, dict) and "text" in one)
    if not isinstance(content, str):
        raise PictureFault("the captions' endpoint said nothing of it")
    return content


def _told(said: bytes) -> str:
    """What an endpoint says of its refusal, in the form of OpenAI's or as it stands."""
    try:
        return str(json.loads(said)["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return _shown(said)


def _shown(said: bytes) -> str:
    return " ".join(frame.reading(said[: 4 * SHOWN].decode("utf-8", "replace"), SHOWN).text.split())


def _without(key: str, text: str) -> str:
    text = text.replace(key, "***") if key else text
    return " ".join(frame.reading(text, SHOWN).text.split())


def _failed(address: str, why: str) -> Refusal:
    fix = f"look at the endpoint, {AT_VARIABLE}, {MODEL_VARIABLE} and {KEY_VARIABLE}; then run again: what was read so "
    fix += "far is kept"
    return Refusal(
        "reader-failed", "the endpoint of reader caption did not answer", where=address, found=[why], fix=fix
    )
