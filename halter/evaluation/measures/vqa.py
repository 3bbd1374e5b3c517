"""Accuracy of visual question answering, by the rule of the VQA challenge (Antol et al. 2015; visualqa.org/evaluation).

Ten people answered each question. An answer is worth min(1, people who gave it / 3), taken over the ten subsets that
leave one of them out, and their mean. Texts are made alike first: small letters, no articles, numbers up to ten in
digits, apostrophes of contractions put back, punctuation away but for the apostrophe, the colon and the point within a
number. Written anew from that description and the published tables: of the libraries that have it, those that are kept
(lmms-eval) bring some fifty others, pinned.

Chosen here: texts are always made alike (the challenge's script does not where all ten people agree to the letter), and
with fewer than four answers a subset asks for as many matches as it has answers, so that what all say is worth 1; with
one answer it is exact match after making alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from halter.data.references import commonest
from halter.evaluation.measures.measure import FLOOR, AnswerMeasure, Scored
from halter.evaluation.options import MeasureOptions

ENOUGH = 3
"""People who must have given an answer for it to be wholly right."""
ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {"none": "0"} | {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")
THOUSANDS = re.compile(r"\d,\d")
WHOLE = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".lower().split()
"""Contractions of the challenge's table; it knows each without one of its apostrophes."""
CONTRACTIONS = {
    whole[:at] + whole[at + 1 :]: whole for whole in WHOLE for at, letter in enumerate(whole) if letter == "'"
}


def alike(text: str) -> str:
    """A text as answers are compared."""
    text = " ".join(text.split())
    made = text
    for mark in PUNCTUATION:
        # Beside a blank, or wherever a number has a comma in it, a mark goes; between two words it parts them.
        apart = f"{mark} " in text or f" {mark}" in text or THOUSANDS.search(text) is not None
        made = made.replace(mark, "" if apart else " ")
    words = (NUMBERS.get(word, word) for word in PERIOD.sub("", made).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def accuracy(answer: str, given: Sequence[str]) -> float:
    """What an answer is worth beside those that people gave, all made alike: 0 to 1."""
    matches = [one == answer for one in given]
    if len(given) == 1:
        return float(matches[0])
    most = min(ENOUGH, len(given) - 1)
    return sum(min(1.0, (sum(matches) - match) / most) for match in matches) / len(given)


class Vqa(AnswerMeasure):
    """VQA accuracy: the mean over rows, 0 to 1."""

    formats = {"vqa_accuracy": ".1%"}

    def __init__(self, right: Sequence[Sequence[str]], options: MeasureOptions) -> None:
        super().__init__(right, options)
        self.given = [[alike(text) for text in texts] for texts in self.right]

    @classmethod
    def ready(cls, options: MeasureOptions) -> None:
        """Nothing is needed."""

    def score(self, answers: Sequence[str]) -> Scored:
        values = np.array(
            [accuracy(alike(answer), given) for answer, given in zip(answers, self.given, strict=True)], np.float64
        )
        return Scored({"vqa_accuracy": float(values.mean())}, {"vqa_accuracy": values})

    def facts(self) -> dict[str, Any]:
        """Also ``best`` (each row's commonest answer) and, where rows have several, ``human``: what the answer of each
        person is worth beside those of the others, and on how many rows."""
        said = [commonest(given) for given in self.given]
        counts = [len(given) for given in self.given]
        facts: dict[str, Any] = {
            "rows": len(said),
            "references": [min(counts), max(counts)],
            "best": self.score(said).totals,
            FLOOR: self.score([*said[1:], *said[:1]]).totals,
        }
        people = [_person(given) for given in self.given if len(given) > 1]
        if people:
            facts |= {"human": {"vqa_accuracy": float(np.mean(people))}, "human_rows": len(people)}
        return facts


def _person(given: Sequence[str]) -> float:
    """What people's answers are worth beside those of the others."""
    most = min(ENOUGH, len(given) - 1)
    return sum(min(1.0, (given.count(one) - 1) / most) for one in given) / len(given)
