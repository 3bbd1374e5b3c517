"""The little world: the same everywhere, its arithmetic true, its sister language regular."""

from __future__ import annotations

import hashlib
import json
import re

from hypothesis import given
from hypothesis import strategies as st

from halter.playground import words
from halter.playground.documents import CHAT_WEIGHT, KINDS, corpus, document
from halter.playground.errands import Sum
from halter.playground.scenes import contract, register, story
from halter.playground.words import Dice
from halter.playground.world import PEOPLE, PLACES, sentence, world

GOLDEN = "4c18724884c8813c56c532895eca861119b046b871157131fc144121b278e8b9"


def test_same_text_everywhere() -> None:
    """The first 500 documents of seed 0, as one digest: another Python, system or day must give the same."""
    text = json.dumps([[d.kind, d.text, list(d.messages)] for d in corpus(0, 500)], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN


def test_documents_are_addressed_by_number() -> None:
    assert list(corpus(3, 20))[15:] == list(corpus(3, 5, start=15))
    assert document(3, 17) == list(corpus(3, 20))[17]
    assert list(corpus(3, 20)) != list(corpus(4, 20))


def test_every_kind_comes_as_often_as_its_weight_says() -> None:
    weights = {kind: weight for kind, (weight, _) in KINDS.items()} | {"chat": CHAT_WEIGHT}
    n, total = 6000, sum(weights.values())
    seen = dict.fromkeys(weights, 0)
    for d in corpus(1, n):
        seen[d.kind] += 1
    for kind, weight in weights.items():
        share = weight / total
        deviation = (n * share * (1 - share)) ** 0.5
        assert abs(seen[kind] - n * share) < 4.5 * deviation, kind


def test_world_is_whole() -> None:
    w = world()
    assert (len(w.people), len(w.places)) == (PEOPLE, PLACES) == (96, 16)
    assert len({p.name for p in w.people}) == PEOPLE and len({p.first for p in w.people}) == PEOPLE
    assert {p.town for p in w.people} <= {p.name for p in w.places}
    assert len(set(w.ambrish.values())) == len(w.ambrish) == 113


def test_a_changed_seed_is_another_world() -> None:
    assert not {p.name for p in world(8).people} & {p.name for p in world().people}


@given(st.integers(0, 9999), st.integers(0, 9999), st.booleans())
def test_written_out_sums_are_true(a: int, b: int, plus: bool) -> None:
    """Every equation in the steps holds, the digits used are the numbers' own, and the end is the sum."""
    s = Sum(a, b) if plus else Sum(max(a, b), min(a, b), plus=False)
    steps, end = s.steps().split(": ", 1)[1].rsplit(". So ", 1)
    assert end == f"{s.a} {s.sign()} {s.b} = {a + b if plus else abs(a - b)}."
    equations = re.findall(r"(\d+) ([+-]) (\d+)(?: \+ (\d+))? = (-?\d+)", steps)
    assert equations
    for x, sign, y, carry, result in equations:
        assert (int(x) + int(y) + int(carry or 0) if sign == "+" else int(x) - int(y)) == int(result), steps
    columns = re.split(r"\. ", steps)
    assert len(columns) == max(len(str(s.a)), len(str(s.b)))
    ends = "".join(re.findall(r"= (\d+)", column)[-1][-1] for column in reversed(columns))
    assert int(ends) == s.result % 10 ** len(ends)


def read_ambrish(text: str) -> str:
    """An independent reader of Ambrish, written from its grammar: back to English."""
    english = {stem: word for word, stem in world().ambrish.items()}
    numbers = set(words.NUMBERS)

    def phrase(parts: list[str]) -> str:
        noun, rest = parts[0], [english[p] for p in parts[1:]]
        number = [w for w in rest if w in numbers]
        if number:
            assert noun.endswith("ir")
            noun = words.plural(english[noun[:-2]])
        else:
            noun = english[noun]
        return " ".join([number[0] if number else "the", *(w for w in rest if w not in numbers), noun])

    *nouns, verb = text.split()
    at = nouns.index("ka")
    present, past, _ = next(v for v in words.VERBS if v[0] == english[verb[:-2]])
    tense = {"ne": present, "ta": past}[verb[-2:]]
    return f"{phrase(nouns[:at])} {tense} {phrase(nouns[at + 1 :])}"


@given(st.integers(0, 10**6))
def test_ambrish_can_be_read_back(n: int) -> None:
    s = sentence(Dice("ambrish", n))
    assert read_ambrish(s.ambrish(world().ambrish)) == s.english()


@given(st.integers(0, 10**6))
def test_scenes_have_no_doubles(n: int) -> None:
    """What a question asks by must name one entry only."""
    dice = Dice("scenes", n)
    r = register(dice)
    for column in ("name", "job", "spot", "pet", "coins"):
        values = [getattr(e, column) for e in r.entries]
        assert len(set(values)) == len(values)
    c = contract(dice)
    assert len({name for name, _, _ in c.clauses}) == len(c.clauses)
    s = story(dice)
    assert s.found not in s.looked and len(set(s.looked)) == len(s.looked)


@given(st.integers(1, 1000), st.integers(0, 10**6))
def test_dice_stay_in_range(n: int, seed: int) -> None:
    dice = Dice(seed)
    assert all(0 <= dice.below(n) < n for _ in range(20))
    assert sorted(dice.shuffled(range(n))) == list(range(n))


def test_dice_are_fair() -> None:
    """Chi-square over 6 faces of 60,000 throws stays below the 0.1 % bound for 5 degrees of freedom (20.5)."""
    dice, faces = Dice("fair"), [0] * 6
    for _ in range(60_000):
        faces[dice.below(6)] += 1
    assert sum((f - 10_000) ** 2 / 10_000 for f in faces) < 20.5
