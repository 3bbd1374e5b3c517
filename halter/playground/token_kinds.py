"""What kinds of tokens the world's documents are made of: of each token its document's kind and its word's class.

Routers of experts are asked whether their choices follow these (pretraining.specialised).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from tokenizers import Tokenizer

from halter.playground import base, vocabulary, words
from halter.playground.world import world

PIECE = re.compile(r"<\|\w+\|>|[^\W\d_]+|\s|.", re.DOTALL)
_START = f"({'|'.join(words.NAME_STARTS)})({'|'.join(words.NAME_VOWELS)})"
_ENDS = "|".join(words.FIRST_ENDS + words.FAMILY_ENDS)
_REST = f"({'|'.join(words.NAME_MIDDLES)})({_ENDS})|[lrnsm]({'|'.join(words.PLACE_ENDS)})"
NAME = re.compile(f"(?=[A-Z])(?i:{_START}({_REST}))")
"""As world.first_name, family_name and place_name make them."""
ENDINGS = ("ir", "ne", "ta")
"""What Ambrish adds to a stem: of nouns beside a number, of verbs."""


@dataclass(frozen=True)
class KnownDocument:
    """One document of a reading: its ``tokens`` int32 [n], its ``kind``, and the class of each token's ``word`` [n]."""

    tokens: np.ndarray
    kind: str
    words: tuple[str, ...]


def known_documents(tokenizer: Tokenizer, tokens: int, seed: int = base.HELD_OUT_SEED) -> list[KnownDocument]:
    """The documents that ``base.reading`` gives, with what their tokens are."""
    found = []
    for document, encoding in base.encoded(tokenizer, tokens, seed):
        text = vocabulary.render(document)
        classes = word_classes(text)
        at = [_first_letter(text, *offsets) for offsets in encoding.offsets]
        ids = np.array(encoding.ids, dtype=np.int32)
        found.append(KnownDocument(ids, document.kind, tuple(classes[place] for place in at)))
    return found


def _first_letter(text: str, start: int, end: int) -> int:
    """A token with a space ahead of its word belongs to the word."""
    return start + 1 if text[start] == " " and end > start + 1 else start


def word_classes(text: str) -> list[str]:
    """The class of the word, digit or sign that each letter of a rendered document stands in."""
    return [kind for piece in PIECE.findall(text) for kind in [word_class(piece)] * len(piece)]


def word_class(piece: str) -> str:
    """One of: control (a control token), the world's own kinds of words (``_LISTS``), ambrish, name (of a person or
    place), word (any other), digit, line, space, sign."""
    if piece in vocabulary.CONTROL:
        return "control"
    if piece[0].isalpha():
        known = _lexicon().get(piece) or _lexicon().get(piece.lower())
        if known:
            return known
        return "name" if NAME.fullmatch(piece) else "ambrish" if piece.lower() in _ambrish() else "word"
    if piece.isdigit():
        return "digit"
    if piece.isspace():
        return "line" if piece == "\n" else "space"
    return "sign"


@cache
def _lexicon() -> dict[str, str]:
    """{word: class}. Of a word in two classes the later counts."""
    listed = ((word, kind) for kind, some in _LISTS.items() for word in some)
    return {form: kind for word, kind in listed for form in (word, words.plural(word))}


@cache
def _ambrish() -> frozenset[str]:
    stems = (*world().ambrish.values(), "ka")
    return frozenset(stem + ending for stem in stems for ending in ("", *ENDINGS))


_LISTS: dict[str, tuple[str, ...]] = {
    "thing": words.THINGS + words.MATERIALS + words.INSTRUMENTS,
    "food": words.FOODS,
    "animal": words.PETS,
    "trade": words.JOBS,
    "quality": words.COLOURS + words.QUALITIES + words.WEATHER,
    "number": ("one", *words.NUMBERS),
    "verb": tuple(form for forms in words.VERBS for form in forms),
    "day": words.DAYS + words.MONTHS,
}
