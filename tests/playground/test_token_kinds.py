"""Every token of a document has a kind: by hand on known sentences, and for all of the world's own words."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from halter.playground import base, base_folder, words
from halter.playground.token_kinds import known_documents, word_class, word_classes
from halter.playground.world import world


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(base_folder() / "tokenizer.json"))


def test_a_sentence_by_hand() -> None:
    text = "<|begin_of_text|>On Monday, 12 red lamps: Brelven saw.\n"
    classes = word_classes(text)
    assert len(classes) == len(text)
    told = [
        classes[text.index(part)] for part in ("<", "On", "Monday", ",", " 12", "12", "red", "lamps", "Brel", "saw")
    ]
    assert told == ["control", "word", "day", "sign", "space", "digit", "quality", "thing", "name", "verb"]
    assert classes[-1] == "line"


def test_the_worlds_own_words() -> None:
    for person in world().people:
        assert {word_class(word) for word in person.name.split()} <= {"name", "trade"}
    assert {word_class(place.name) for place in world().places} == {"name"}
    english = {*words.THINGS, *words.PETS, *words.JOBS, *words.COLOURS, *words.QUALITIES, *words.NUMBERS}
    assert all(
        word_class(word) == word_class(words.plural(word)) not in ("word", "name", "ambrish") for word in english
    )
    stems = [stem for word, stem in world().ambrish.items() if stem not in english]
    assert {word_class(stem) for stem in stems} == {word_class(stem + "ir") for stem in stems} == {"ambrish"}


def test_documents_are_those_of_the_reading(tokenizer: Tokenizer) -> None:
    """Same tokens in the same order, one class a token; a token that begins with a space is its word's."""
    documents, rows = known_documents(tokenizer, 3000), list(base.reading(tokenizer, 3000, base.HELD_OUT_SEED))
    assert [one.tokens.tolist() for one in documents] == [row.tolist() for row in rows]
    assert all(len(one.words) == len(one.tokens) for one in documents)
    seen: dict[str, set[str]] = {}
    for one in documents:
        assert one.words[0] == one.words[-1] == "control" or one.kind == "chat"
        for token, kind in zip(one.tokens, one.words, strict=True):
            seen.setdefault(tokenizer.decode([token], skip_special_tokens=False), set()).add(kind)
    assert seen["."] == {"sign"} and seen["\n"] == {"line"} and seen["7"] == {"digit"} and seen[" goat"] == {"animal"}
    assert len({kind for kinds in seen.values() for kind in kinds}) == 16
