"""From what a row means to its tokens, and which of them are learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from halter.data.example import Example
from halter.data.formats import Canonical
from halter.data.options import DataOptions
from halter.data.pictured import without
from halter.data.readings import read_ahead
from halter.data.told import place
from halter.data.turns import BadRow, under_system
from halter.errors import Refusal, Waivers
from halter.model.pictures import PictureRules
from halter.pictures.process import PictureFault
from halter.pictures.seen import LookedAt, RowPicture, look_at
from halter.pictures.sources import place_of
from halter.pictures.tokens import expanded, outside, refuse_other_token
from halter.readers.named import readers_of
from halter.readers.reader import PictureReader
from halter.readers.readings import readings
from halter.text.chat.conversations import BUILTIN, ChatTemplate
from halter.text.chat.rows import Encoded, EncodedRows, encode_pair, encode_text
from halter.text.codecs.codec import Control
from halter.text.tokenizer import Tokenizer

T = TypeVar("T")
SHOWN = 60
"""Characters of a picture's name that a fault tells."""


def control_of(rules: PictureRules, tokenizer: Tokenizer) -> Control:
    """The control token by which the model knows a picture. Refusal ``picture-token``."""
    if rules.token_id < 0:  # an adapter's sight, for which the vocabulary has no token
        return Control(rules.token, rules.token_id)
    refuse_other_token(rules, tokenizer)
    return next((one for one in tokenizer.controls if one.id == rules.token_id), Control(rules.token, rules.token_id))


def folder_of(origin: str, asked: str | None) -> Path | None:
    """The folder to which the paths of a row's pictures are relative: the one asked for, or that of the row's file."""
    if asked is not None:
        return Path(asked).expanduser()
    file = Path(place(origin)[0])
    return file.parent if file.is_file() else None


def unseen(where: str) -> Refusal:
    """Refusal ``pictures-unseen``: pictures for a model that sees none."""
    return Refusal(
        "pictures-unseen",
        "there are pictures, and this model sees none",
        where=where,
        fix="take a model that sees (Llama 4, Llama 3.2 Vision), or an adapter that does (method.encoder), or have a "
        "text of each read (--reader ocr; recipes: data.readers); waived, the pictures are left out and the texts stay",
        waivable=True,
    )


def refuse_many(rules: PictureRules, pictures: int) -> None:
    """BadRow where a row has more pictures than who sees them takes."""
    most = getattr(rules, "pictures", None)
    if most is not None and pictures > most:
        raise BadRow(f"{pictures} pictures, and this adapter sees {most} in a row")


def _called(value: Any) -> str:
    """How a picture is called in its row; '' where its bytes stand there."""
    if isinstance(value, Mapping):
        value = value.get("path")
    return f", {value[:SHOWN]}" if isinstance(value, str) and not value.startswith("data:") else ""


def _each(meant: Canonical, do: Callable[[Any], T]) -> list[T]:
    """What ``do`` makes of what names each of a row's pictures. Raises BadRow with the first that cannot be used."""
    found = []
    for number, value in enumerate(meant.pictures, 1):
        try:
            found.append(do(value))
        except PictureFault as fault:
            raise BadRow(f"a picture that cannot be used: {fault} (picture {number}{_called(value)})") from None
    return found


@dataclass(frozen=True)
class Encoder:
    """Everything that decides a row's tokens."""

    options: DataOptions
    tokenizer: Tokenizer
    template: ChatTemplate | None
    system: str | None = None
    """The system message of every conversation, in place of one that a row has."""
    context: int | None = None
    """The most tokens that the model reads, where that is known: no length beyond it is ever offered."""
    rules: PictureRules | None = None
    """How the model takes pictures; None: it sees none."""
    waivers: Waivers = field(default_factory=Waivers)
    """What the user lets pass."""

    @property
    def at_context(self) -> bool:
        """Whether the longest row that is taken is all that the model reads."""
        return self.context is not None and self.options.max_length >= self.context

    @cached_property
    def picture(self) -> Control | None:
        """The model's token for a picture. Refusal ``picture-token`` where the tokenizer has another."""
        return None if self.rules is None else control_of(self.rules, self.tokenizer)

    @cached_property
    def readers(self) -> tuple[PictureReader, ...]:
        """What reads the rows' pictures. Refusals of readers_of."""
        return readers_of(self.options.readers)

    def examples(self, meant: Canonical, origin: str, base: Path | None = None) -> tuple[list[Example], dict[str, int]]:
        """Tokens and targets of a row, which may be several rows to train on, and what is to be told of it (data.told).

        Raises BadRow where nothing is learnt; Refusal ``no-template`` where a conversation has no template to be
        written with, ``pictures-unseen`` for pictures where the model sees none, and those of the template.
        """
        meant, looked, told = self._looked(meant, origin)
        if meant.tokens is not None:
            rows = EncodedRows([self._given(meant)], {})
        else:
            rows = self._encoded(meant, origin)
        made = [self._example(one, looked, origin) for one in rows.encoded]
        notes = {**rows.notes, **told}
        if not any(example.targets for example in made):
            raise BadRow("no token to learn")
        return [example for example in made if example.targets], notes

    def _encoded(self, meant: Canonical, origin: str) -> EncodedRows:
        every = self.options.train_on == "all"
        if meant.text is not None:
            return EncodedRows([encode_text(self.tokenizer, meant.text, picture=self.picture)], {})
        if meant.messages is None:
            prompt, completion = meant.prompt or "", meant.completion or ""
            pair = encode_pair(self.tokenizer, prompt, completion, train_on_prompt=every, picture=self.picture)
            return EncodedRows([pair], {})
        if self.template is None:
            raise Refusal(
                "no-template",
                "conversations need a chat template, and this checkpoint has none",
                where=origin,
                expected=f"data.template: {', '.join(BUILTIN)} or a Jinja file",
                fix="for a base model, --template alpaca is the usual choice",
            )
        return self.template.rows(
            self.tokenizer,
            meant.messages if self.system is None else under_system(meant.messages, self.system),
            tools=meant.tools,
            date=self.options.template_date,
            on_responses="last" if self.options.train_on == "last_response" else "all",
            train_on_prompt=every,
            reasoning=self.options.reasoning,
            picture=self.picture if meant.pictures else None,
        )

    def _looked(self, meant: Canonical, origin: str) -> tuple[Canonical, list[LookedAt], dict[str, int]]:
        """A row's meaning, what was found in its pictures, and what is to be told of them."""
        if not meant.pictures:
            return meant, [], {}
        base, fetch = folder_of(origin, self.options.image_folder), self.options.fetch_pictures
        told: dict[str, int] = {}
        if self.readers:
            read = _each(meant, lambda value: readings.at(self.readers, place_of(value, base, fetch)))
            meant, told = read_ahead(meant, read, blind=self.rules is None)
            if self.rules is None:
                return meant, [], told
        rules = self.rules
        if rules is None:
            self.waivers.refuse(unseen(origin))
            return without(meant), [], {"pictures_dropped": len(meant.pictures)}
        refuse_many(rules, len(meant.pictures))
        found = _each(meant, lambda value: look_at(rules, place_of(value, base, fetch)))
        moving = sum(one.frames > 1 for one in found)
        return meant, found, told | ({"first_frames": moving} if moving else {})

    def _example(self, row: Encoded, looked: Sequence[LookedAt], origin: str) -> Example:
        tokens, supervised = row.tokens, row.supervised
        pictures: tuple[RowPicture, ...] = ()
        if self.rules is not None and (looked or self.rules.token_id in tokens):
            try:
                tokens, supervised, pictures = expanded(tokens, supervised, looked, self.rules)
            except ValueError as fault:
                raise BadRow(str(fault)) from None
        return Example(np.array(tokens, np.int32), np.array(supervised, bool), origin, pictures=pictures)

    def _given(self, meant: Canonical) -> Encoded:
        ids = np.array(meant.tokens, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= self.tokenizer.vocab_size):
            raise BadRow(f"token ids outside the vocabulary of {self.tokenizer.vocab_size}")
        learnt = np.ones(len(ids), bool) if meant.labels is None else np.array(meant.labels) != -100
        if meant.pictures and self.rules is not None and (ids == self.rules.token_id).sum() != len(meant.pictures):
            raise BadRow(f"{len(meant.pictures)} pictures, and another number of token {self.rules.token_id}")
        return Encoded(ids.tolist(), learnt.tolist(), "")

    def keeping(self, example: Example, meant: Canonical) -> tuple[str, ...]:
        """Which ``on_long`` would keep something of a row that is too long; () of other rows."""
        most = self.options.max_length
        if len(example.tokens) <= most:
            return ()
        cut = ("cut",) if example.supervised[: outside(example.pictures, most)].any() else ()
        return (*cut, "split") if self._splits(example, meant) else cut

    def _splits(self, example: Example, meant: Canonical) -> bool:
        """Whether a row may be split into several: plain text without pictures."""
        return (meant.text is not None or meant.tokens is not None) and not example.pictures

    def fitted(self, example: Example, meant: Canonical) -> list[Example]:
        """The example as rows of at most max_length tokens, by the recipe's ``on_long``; none where it is dropped.

        A row whose answer would be cut away entirely is dropped whatever the policy. No picture is cut: a row ends
        before one that does not fit whole.
        """
        most, policy = self.options.max_length, self.options.on_long
        if len(example.tokens) <= most:
            return [example]
        if policy == "split" and self._splits(example, meant):
            return [piece for piece in self._pieces(example, most) if piece.targets]
        if policy == "cut":
            end = outside(example.pictures, most)
            kept = tuple(one for one in example.pictures if one.end <= end)
            short = Example(example.tokens[:end], example.supervised[:end], example.origin, pictures=kept)
            return [short] if short.targets else []
        return []

    def _pieces(self, example: Example, most: int) -> Iterator[Example]:
        """Pieces that learn every target once: each repeats the last token of the one before, as something to begin
        from, after a BOS where the row has one."""
        tokens, supervised = example.tokens, example.supervised
        bos = self.tokenizer.bos_id
        again = int(bos is not None and tokens[0] == bos and most > 2)
        yield Example(tokens[:most], supervised[:most], example.origin)
        for start in range(most - 1, len(tokens) - 1, max(1, most - 1 - again)):
            piece = tokens[start : start + most - again]
            learnt = supervised[start : start + most - again].copy()
            learnt[0] = False
            if again:
                piece, learnt = np.insert(piece, 0, tokens[0]), np.insert(learnt, 0, False)
            yield Example(piece, learnt, example.origin)
