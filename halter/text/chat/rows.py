"""Rows of tokens with what is to be learned marked: chats, prompt and completion, plain text."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from halter.text.chat import pictures as chat_pictures
from halter.text.chat.locate import Located
from halter.text.codecs.codec import Control

if TYPE_CHECKING:
    from halter.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row: ids, for each whether it is learned, and the text they stand for (BOS and EOS by name).

    ``date``: the ISO date that the chat template asked for and was told, else None.
    """

    tokens: list[int]
    supervised: list[bool]
    text: str
    date: str | None = None


@dataclass(frozen=True)
class EncodedRows:
    """The rows of one conversation, and what is to be told of it: {name: count}, names of data.report's NOTES."""

    encoded: list[Encoded]
    notes: dict[str, int]


def encode_text(
    tokenizer: Tokenizer, text: str, bos: bool = True, eos: bool = True, picture: Control | None = None
) -> Encoded:
    """Plain text: all of it is learned, EOS too, BOS not. Control tokens spelled in it stay text; ``picture`` is what
    the model has for a picture, where chat.pictures.SIGN says that one stands."""
    ids = _plain(tokenizer, text, picture)
    row = _Row(tokenizer, ids, [True] * len(ids), chat_pictures.written(text, picture))
    if bos:
        row.open()
    if eos:
        row.close(True)
    return row.done(None)


def _plain(tokenizer: Tokenizer, text: str, picture: Control | None, continues: bool = False) -> list[int]:
    if picture is None or chat_pictures.SIGN not in text:
        return tokenizer.encode(text, continues=continues)
    cuts = {0: False} if continues else None
    return [id for run in tokenizer.encode_runs(text, chat_pictures.signs(text, picture), cuts) for id in run.ids]


def encode_pair(
    tokenizer: Tokenizer,
    prompt: str,
    completion: str,
    *,
    train_on_prompt: bool = False,
    picture: Control | None = None,
) -> Encoded:
    """A prompt and what is to follow it, encoded apart: BOS, prompt, completion, EOS; completion and EOS are learned.
    ``picture`` as in encode_text.

    SentencePiece treats the completion as a text of its own, unless it brings its own space along.
    """
    head = _plain(tokenizer, prompt, picture)
    ids = _plain(tokenizer, completion, picture, continues=completion.startswith(" "))
    text = chat_pictures.written(prompt + completion, picture)
    row = _Row(tokenizer, head + ids, [train_on_prompt] * len(head) + [True] * len(ids), text)
    row.open()
    row.close(True)
    return row.done(None)


def encode_chat(
    tokenizer: Tokenizer,
    located: Located,
    learned: Collection[int],
    *,
    fresh_response: bool,
    train_on_prompt: bool,
    date: str | None,
    picture: Control | None = None,
) -> Encoded:
    """The row of a located chat. ``learned``: the numbers of the messages whose responses are learned."""
    text = located.text
    cuts = {}
    for turn in located.turns:
        cuts[turn.start] = fresh_response and not text.startswith(" ", turn.start)
        cuts.setdefault(turn.end, False)
    tokens: list[int] = []
    supervised: list[bool] = []
    matches = chat_pictures.joined(located.chat.matches, text, picture)
    for run in tokenizer.encode_runs(text, matches, cuts, located.markers):
        inside = [turn for turn in located.turns if turn.start <= run.start and run.end <= turn.end]
        flag = any(turn.message in learned for turn in inside) or (train_on_prompt and not inside)
        tokens += run.ids
        supervised += [flag] * len(run.ids)
    row = _Row(tokenizer, tokens, supervised, chat_pictures.written(text, picture))
    row.open()
    last = located.turns[-1] if located.turns else None
    if last is not None and last.open:
        row.close(last.message in learned)
    return row.done(date)


class _Row:
    def __init__(self, tokenizer: Tokenizer, tokens: list[int], supervised: list[bool], text: str) -> None:
        self._tokenizer = tokenizer
        self._tokens, self._supervised, self._text = tokens, supervised, text

    def open(self) -> None:
        """Exactly one BOS at the start, never learned: added where it lacks, thinned out where a template wrote two."""
        bos = self._tokenizer.bos_id
        if bos is None:
            return
        while self._tokens[:2] == [bos, bos]:
            del self._tokens[0], self._supervised[0]
        if self._tokens[:1] != [bos]:
            self._tokens.insert(0, bos)
            self._supervised.insert(0, False)
            self._text = self._tokenizer.token(bos) + self._text
        self._supervised[0] = False

    def close(self, supervised: bool) -> None:
        """EOS at the end, where the tokenizer has one and it is not there yet."""
        eos = self._tokenizer.eos_id
        if eos is not None:
            self._tokens.append(eos)
            self._supervised.append(supervised)
            self._text += self._tokenizer.token(eos)

    def done(self, date: str | None) -> Encoded:
        return Encoded(self._tokens, self._supervised, self._text, date)
