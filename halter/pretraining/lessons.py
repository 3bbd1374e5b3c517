"""The rows of the base that sees: drawings and talks about them, as tokens with pictures among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer

from halter.data.example import Example
from halter.model.llama4_tiles import IMAGE
from halter.model.pictures import PictureRules
from halter.pictures.process import DecodedPicture
from halter.pictures.seen import look_at
from halter.pictures.sources import PicturePixels
from halter.pictures.tokens import expanded
from halter.playground import sights
from halter.playground.base import SEED
from halter.playground.drawings import Drawing
from halter.playground.seeing import BOS, HEADER, HEADER_END, TURN_END
from halter.playground.tasks import Exchange


def lessons(
    tokenizer: Tokenizer,
    rules: PictureRules,
    tokens: int,
    types: Sequence[str],
    seed: object = SEED,
    nursery: bool = False,
) -> Iterator[Example]:
    """Rows of pre-training until ``tokens`` tokens are reached: a picture and a talk about it, answers learned."""
    at = used = 0
    while used < tokens:
        seen, said = sights.lesson(seed, at, types, nursery)
        at += 1
        if said:
            made = talk(tokenizer, rules, seen, said)
            used += len(made.tokens)
            yield made


def talk(tokenizer: Tokenizer, rules: PictureRules, seen: Drawing | None, said: Sequence[Exchange]) -> Example:
    """A talk as CHAT_TEMPLATE has it, the picture ahead of its first question; None: without one."""
    texts, learned = [], []
    for number, (question, answer) in enumerate(said):
        ahead = BOS if number == 0 else ""
        picture = IMAGE if number == 0 and seen is not None else ""
        asked = f"{ahead}{HEADER}user{HEADER_END}\n\n{picture}{question}{TURN_END}"
        texts += [f"{asked}{HEADER}assistant{HEADER_END}\n\n", f"{answer}{TURN_END}"]
        learned += [False, True]
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    tokens = [token for one in encodings for token in one.ids]
    flags = [flag for one, flag in zip(encodings, learned, strict=True) for _ in one.ids]
    looked = [] if seen is None else [look_at(rules, place_of_drawing(seen))]
    tokens, flags, pictures = expanded(tokens, flags, looked, rules)
    return Example(np.array(tokens, dtype=np.int32), np.array(flags), "playground", pictures=pictures)


def place_of_drawing(seen: Drawing) -> PicturePixels:
    """Where a drawing's pixels come from: this process."""
    return PicturePixels(DecodedPicture(torch.from_numpy(seen.draw()).permute(2, 0, 1)), "a drawing")
