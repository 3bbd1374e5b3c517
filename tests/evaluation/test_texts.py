"""Measures on texts against figures worked out by hand."""

from __future__ import annotations

import sys
from decimal import Decimal

import pytest

from halter.errors import Refusal
from halter.evaluation.texts import last_number, token_f1, translation


def test_bleu_and_chrf_by_hand() -> None:
    """BLEU: 5 of 6 words, 3 of 5 pairs, 2 of 4, 1 of 3, no penalty. chrF of abc, abd: 2 of 3, 1 of 2, 0 of 1."""
    bleu = translation(["the cat sat on a mat"], ["the cat sat on the mat"])["bleu"]
    assert bleu == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert translation(["abc"], ["abd"])["chrf"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 3)


def test_bleu_pools_the_counts_of_all_answers_and_punishes_shortness() -> None:
    """Of 8 words 8 match, of 6 pairs 6, 4 and 2; 8 words where 10 are wanted: exp(1 - 10 / 8)."""
    scores = translation(["a b c d", "e f g h"], ["a b c d", "e f g h i j"])
    assert scores["bleu"] == pytest.approx(100 * 2.718281828459045 ** (1 - 10 / 8))


def test_chrf_weighs_what_is_missing_twice() -> None:
    """ab for abcd: precision 1 and 1 (1 and 2 characters), recall 2/4 and 1/3; beta 2, orders without any are left."""
    precision, recall = 1.0, (2 / 4 + 1 / 3) / 2
    wanted = 100 * 5 * precision * recall / (4 * precision + recall)
    assert translation(["ab"], ["abcd"])["chrf"] == pytest.approx(wanted)


def test_without_sacrebleu_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(Refusal) as refusal:
        translation(["a"], ["a"])
    assert refusal.value.id == "extra-missing" and "[eval]" in str(refusal.value)


@pytest.mark.parametrize(
    ("answer", "wanted", "f1"),
    [
        ("24 coins (clause 4).", "24 coins (clause 4).", 1.0),
        ("24 Coins", "24 coins (clause 4).", 2 * 2 / (2 + 4)),
        ("the the cat", "the cat cat", 2 * 2 / 6),
        ("no", "yes", 0.0),
        ("", "yes", 0.0),
        ("...", "", 1.0),
        ("rödel ka", "ka rödel minën", 2 * 2 / 5),
    ],
)
def test_token_f1(answer: str, wanted: str, f1: float) -> None:
    assert token_f1(answer, wanted) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("48/2 = <<48/2=24>>24\n#### 72", "72"),
        ("So 27 + 48 = 75. Answer: 75.", "75"),
        ("It is $1,234.50.", "1234.5"),
        ("2,3", "3"),
        ("3 - 5 = -2", "-2"),
        ("5-3", "3"),
        ("none", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))
