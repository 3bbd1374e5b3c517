"""Pictures among a row's tokens: the tokens that stand for them, and by what two rows are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Protocol

import numpy as np

from halter.errors import Refusal
from halter.model.pictures import PictureRules
from halter.pictures.seen import LookedAt, RowPicture

NUMBER_BYTES = 7
"""Of a digest, in a number below 0 that stands for a picture: one in 10^16 that two pictures have the same."""


class HasTokens(Protocol):
    """A tokenizer, as far as pictures are concerned."""

    def token_id(self, token: str) -> int | None: ...


def refuse_other_token(rules: PictureRules, tokenizer: HasTokens) -> None:
    """Refusal ``picture-token`` where the tokenizer does not make of the picture's token what the model knows."""
    made = tokenizer.token_id(rules.token)
    if made != rules.token_id:
        raise Refusal(
            "picture-token",
            f"the model takes {rules.token} for a picture, and this tokenizer does not write it so",
            found=[f"{rules.token} is {'no token of it' if made is None else f'its token {made}'}"],
            expected=f"token {rules.token_id}",
            fix="take the tokenizer files that belong to the checkpoint",
        )


def expanded(
    tokens: Sequence[int], learned: Sequence[bool], looked: Sequence[LookedAt], rules: PictureRules
) -> tuple[list[int], list[bool], tuple[RowPicture, ...]]:
    """(tokens, which of them are learned, pictures) of a row in which each ``rules.token_id`` is a picture, in order:
    a picture's own tokens take its place, and none of them is learned.

    Of more pictures than such tokens the rest is left out, as it belongs to later turns; ValueError of fewer.
    """
    made: list[int] = []
    flags: list[bool] = []
    pictures: list[RowPicture] = []
    rest = iter(looked)
    for token, flag in zip(tokens, learned, strict=True):
        if token != rules.token_id:
            made.append(token)
            flags.append(flag)
            continue
        one = next(rest, None)
        if one is None:
            raise ValueError(f"more than {len(looked)} of {rules.token} and no picture for them")
        ids = rules.ids(one.grid)
        pictures.append(RowPicture(one.digest, len(made), len(ids), one.grid, one.size, one.place))
        made += ids
        flags += [False] * len(ids)
    return made, flags, tuple(pictures)


def seen_by(
    tokens: np.ndarray, learned: np.ndarray, pictures: Sequence[RowPicture], rules: PictureRules | None
) -> tuple[np.ndarray, np.ndarray, tuple[RowPicture, ...]]:
    """A row for another who sees: each picture with the tokens that it has by ``rules``; None: without its pictures."""
    made, flags, found = list[np.ndarray](), list[np.ndarray](), list[RowPicture]()
    at = size = 0
    for one in pictures:
        ids = () if rules is None else rules.ids(one.grid)
        made += [tokens[at : one.start], np.array(ids, tokens.dtype)]
        flags += [learned[at : one.start], np.zeros(len(ids), bool)]
        size += one.start - at
        if rules is not None:
            found.append(replace(one, start=size, length=len(ids)))
        size, at = size + len(ids), one.end
    return np.concatenate([*made, tokens[at:]]), np.concatenate([*flags, learned[at:]]), tuple(found)


def number_of(picture: RowPicture) -> int:
    """A number below 0 that stands for a picture where tokens are compared."""
    return -1 - int(picture.digest[: 2 * NUMBER_BYTES], 16)


def compared(tokens: Sequence[int], pictures: Sequence[RowPicture], reads_ahead: bool = False) -> tuple[int, ...]:
    """A row by which it is compared with others: its tokens, each of a picture's in the place of which stands the
    picture's number, so that equal tokens of different pictures differ.

    A picture that is seen from everywhere is in the number of every token. ``reads_ahead``: tokens ahead of a picture
    see it (ModelConfig.reads_ahead). One number that stands for all of them is then in the place of all tokens as far
    as the last picture, so that rows agree in all of these or in none.
    """
    if not pictures:
        return tuple(tokens)
    return tuple(compared_array(np.array(tokens, np.int64), pictures, reads_ahead).tolist())


def compared_array(tokens: np.ndarray, pictures: Sequence[RowPicture], reads_ahead: bool = False) -> np.ndarray:
    """``compared`` as int64 [T]; the tokens themselves where there is no picture."""
    if not pictures:
        return tokens
    made = tokens.astype(np.int64)
    for one in pictures:
        made[one.start : one.end] = number_of(one)
    if everywhere := [number_of(one) for one in pictures if not one.length]:
        return _under(made, everywhere)
    if reads_ahead:
        whole = made[: pictures[-1].end]
        whole[:] = _number_of_all(whole)
    return made


def _under(numbers: np.ndarray, pictures: Sequence[int]) -> np.ndarray:
    """Numbers below 0 that stand for these where all of them are computed under pictures: int64 [T]."""
    lead = np.array(pictures, np.int64).tobytes()
    names = {number: _number_of_all(np.frombuffer(lead + number.tobytes(), np.int64)) for number in np.unique(numbers)}
    return np.array([names[number] for number in numbers], np.int64)


def _number_of_all(numbers: np.ndarray) -> int:
    """A number below 0 that stands for these."""
    return -1 - int.from_bytes(blake2b(numbers.tobytes(), digest_size=NUMBER_BYTES).digest(), "little")


def marks(pictures: Sequence[RowPicture]) -> bytes:
    """Bytes that are equal where pictures and their places are; b"" without pictures."""
    return b"".join(one.start.to_bytes(8, "little") + bytes.fromhex(one.digest) for one in pictures)


def outside(pictures: Sequence[RowPicture], cut: int) -> int:
    """The last place up to ``cut`` at which a row may be cut: not within a picture."""
    return next((one.start for one in pictures if one.start < cut < one.end), cut)


def behind(pictures: Sequence[RowPicture], cut: int) -> int:
    """``cut`` where it lies behind all pictures, else 0: where a row whose tokens see pictures ahead may be cut."""
    return cut if not pictures or cut >= pictures[-1].end else 0
