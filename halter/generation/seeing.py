"""Pictures in what is asked: taken out of the messages, looked at, and put among the prompt's tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from halter.data.columns import TALKING
from halter.data.encode import control_of, folder_of, refuse_many, unseen
from halter.data.meaning import Canonical
from halter.data.options import DataOptions
from halter.data.parts import content_of, has_pictures, is_picture, text_of
from halter.data.pictured import column_of, pictured
from halter.data.readings import read_in
from halter.data.turns import BadRow
from halter.errors import Refusal, Waivers
from halter.model.pictures import PictureRules
from halter.pictures.process import PictureFault
from halter.pictures.seen import LookedAt, RowPicture, look_at
from halter.pictures.sources import ADDRESS, place_of
from halter.pictures.tokens import expanded
from halter.readers.reader import PictureReader
from halter.readers.readings import readings
from halter.telling import tell_once
from halter.text.chat.pictures import SIGN
from halter.text.codecs.codec import Control
from halter.text.tokenizer import Tokenizer

Messages = list[dict[str, Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Seeing:
    """How pictures of prompts are taken."""

    rules: PictureRules | None = None
    """The model's; None: it sees none."""
    fetch: bool = False
    """Whether what is named by an address is fetched."""
    waivers: Waivers | None = None
    """What the user lets pass, where he could say so."""
    readers: tuple[PictureReader, ...] = ()
    """What reads the pictures, so that a text of each stands ahead of it, or in its place where nothing is seen."""

    def control(self, tokenizer: Tokenizer) -> Control:
        """The model's token for a picture. Refusal ``picture-token``."""
        assert self.rules is not None
        return control_of(self.rules, tokenizer)

    def look(self, messages: Messages) -> tuple[Messages, list[LookedAt]]:
        """The messages with their pictures' places alone, and what was found in these.

        Refusals of the readers, ``pictures-unseen``, ``picture-unusable`` (naming every picture that cannot be used),
        ``picture-address``, ``pictures-many``, ``messages-malformed``.
        """
        if not any(has_pictures(message.get("content")) for message in messages):
            return messages, []
        messages, values = apart(messages)
        if self.readers:
            messages, values = self._read(messages, values)
            if self.rules is None:
                return messages, []
        if self.rules is None:
            refusal = unseen("")
            if self.waivers is None:
                refusal.waivable = False
                refusal.args = (refusal.paragraph(),)
                raise refusal
            self.waivers.refuse(refusal)
            return [{**m, "content": text_of(m.get("content"))} for m in messages], []
        try:
            refuse_many(self.rules, len(values))
        except BadRow as fault:
            raise Refusal("pictures-many", f"this prompt has {fault}", fix="ask about one picture at a time") from None
        rules = self.rules
        return messages, _each(values, lambda value: look_at(rules, place_of(value, fetch=self.fetch)))

    def _read(self, messages: Messages, values: Sequence[Any]) -> tuple[Messages, list[Any]]:
        """The messages with what was read in their pictures, and where these lie. What was cut is told."""
        found = _each(values, lambda value: readings.at(self.readers, place_of(value, fetch=self.fetch)))
        for read in found:
            for reader, said in read.cut:
                most = f"{len(said.text):,} of {said.whole:,} characters"
                tell_once(f"note: of what {reader.name} read in {read.place.name} {most} are taken")
        texts = iter([read.text for read in found])
        return read_in(messages, texts, self.rules is None), [read.place for read in found]

    def placed(self, tokens: Sequence[int], looked: Sequence[LookedAt]) -> tuple[list[int], tuple[RowPicture, ...]]:
        """A prompt's tokens with those of its pictures, and where these stand."""
        if self.rules is None or not looked:
            return [*tokens], ()
        made, _, pictures = expanded(tokens, [False] * len(tokens), looked, self.rules)
        return made, pictures


def apart(messages: Messages) -> tuple[Messages, list[Any]]:
    """(the messages with parts {type: image} alone where pictures stand, what says where each lies)."""
    made: Messages = []
    values: list[Any] = []
    for number, message in enumerate(messages, 1):
        said = message.get("content")
        if has_pictures(said):
            said = _parts(said, number)
            values += [part.get("image") for part in said if is_picture(part)]
            said = [{"type": "image"} if is_picture(part) else part for part in said]
        if SIGN in text_of(said):
            what = f"message {number} holds a character that Halter keeps for itself, U+{ord(SIGN):X}"
            raise Refusal("messages-malformed", what, fix="leave it out")
        made.append({**message, "content": said})
    return made, values


def _parts(said: Any, number: int) -> list[Any]:
    try:
        parts = content_of(said)
    except BadRow as fault:
        what = f"message {number}: {fault}"
        raise Refusal(
            "messages-malformed", what, fix='parts are {"type": "text", ...} or {"type": "image", ...}'
        ) from None
    return parts if isinstance(parts, list) else []


def _each(values: Sequence[Any], do: Callable[[Any], T]) -> list[T]:
    """What ``do`` makes of what names each picture. Refusal ``picture-unusable`` with every one that cannot be used."""
    found, faults = [], []
    for number, value in enumerate(values, 1):
        try:
            found.append(do(value))
        except PictureFault as fault:
            faults.append(f"picture {number}{_called(value)}: {fault}")
    if faults:
        what, fix = "pictures of this prompt cannot be used", "correct the path, or save the picture as PNG or JPEG"
        raise Refusal("picture-unusable", what, found=faults, fix=fix)
    return found


def _called(value: Any) -> str:
    named = value.get("path") if isinstance(value, Mapping) else value
    named = str(named) if isinstance(named, str | Path) else getattr(value, "name", "")
    return f", {named[:80]}" if named and not named.startswith("data:") else ""


def of_row(prompt: Any, row: Mapping[str, Any], origin: str, options: DataOptions) -> Any:
    """What a row asks, with the pictures that it has: those of a column of its own, and those that messages name, found
    as in training. A text becomes a user's turn. Raises BadRow."""
    if isinstance(prompt, str) and not column_of(row):
        return prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    meant = pictured(Canonical(messages), row, talk=any(isinstance(row.get(name), list) for name in TALKING))
    if not meant.pictures:
        return prompt
    base = folder_of(origin, options.image_folder)
    try:
        values = iter([_found(value, base, options.fetch_pictures) for value in meant.pictures])
    except PictureFault as fault:
        raise BadRow(f"a picture that cannot be used: {fault}") from None
    return [
        {**m, "content": [{"type": "image", "image": next(values)} if is_picture(p) else p for p in m["content"]]}
        if has_pictures(m.get("content"))
        else m
        for m in meant.messages or ()
    ]


def _found(value: Any, base: Path | None, fetch: bool) -> Any:
    """What names a picture wherever it stands: a path with its folder, and what lies at an address where it is to be
    ``fetch``ed."""
    named = value.get("path") if isinstance(value, Mapping) and value.get("bytes") is None else value
    if not isinstance(named, str) or named[:5].lower() in ("data:", "file:"):
        return value
    if ADDRESS.match(named):
        return place_of(named, fetch=True) if fetch else named
    path = Path(named).expanduser()
    return str(path if base is None or path.is_absolute() else base / path)
