"""Measures on texts: an answer beside the one that was wanted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from unicodedata import category

from halter.files.extras import missing_extra

ROUGE = ("rouge1", "rouge2", "rougeL")
TRANSLATION = ("bleu", "chrf")
WORD = re.compile(r"\w+")
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def exact_match(answer: str, wanted: str, strict: bool = False) -> bool:
    """Whether two texts are equal, white space aside; ``strict``: character for character."""
    return answer == wanted if strict else answer.split() == wanted.split()


def rouge(answers: Sequence[str], wanted: Sequence[str | Sequence[str]]) -> list[dict[str, float]]:
    """ROUGE-1, -2 and -L (F-measure, Porter stemming) of each answer, by the library rouge-score; of several texts that
    are wanted each the highest.

    Its tokens are runs of a-z and 0-9, so it says nothing of texts in other scripts. Refusal ``extra-missing``.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise missing_extra("eval", "ROUGE", "evaluate", error) from error
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    scores = (scorer.score_multi(several(texts), answer) for answer, texts in zip(answers, wanted, strict=True))
    return [{name: float(score[name].fmeasure) for name in ROUGE} for score in scores]


def translation(answers: Sequence[str], wanted: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """BLEU and chrF of all answers together, from 0 to 100, by the library sacrebleu with its defaults
    (13a tokens and exponential smoothing; characters up to 6, beta 2), which counts each answer against all the texts
    that are wanted of it. Refusal ``extra-missing``.
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise missing_extra("eval", "BLEU and chrF", "evaluate", error) from error
    texts = [several(one) for one in wanted]
    most = max(map(len, texts))
    references: list[list[Any]] = [[one[n] if n < len(one) else None for one in texts] for n in range(most)]
    scores = (metric.corpus_score(list(answers), references) for metric in (BLEU(), CHRF()))
    return {name: float(score.score) for name, score in zip(TRANSLATION, scores, strict=True)}


def several(wanted: str | Sequence[str]) -> list[str]:
    """One text or several as a list."""
    return [wanted] if isinstance(wanted, str) else list(wanted)


def token_f1(answer: str, wanted: str) -> float:
    """F1 of the words of two texts as bags, from 0 to 1; case and punctuation do not count, articles do.

    SQuAD's measure (Rajpurkar et al. 2016), but for the articles, which only English has.
    """
    said, meant = Counter(WORD.findall(answer.lower())), Counter(WORD.findall(wanted.lower()))
    if not said and not meant:  # emoji, or marks of what a tokenizer does not know: no words, and something said
        return float(_symbols(answer) == _symbols(wanted))
    return 2 * (said & meant).total() / (said.total() + meant.total())


def _symbols(text: str) -> list[str]:
    """The characters of a text that are no white space and no punctuation."""
    return [char for char in text if not char.isspace() and not category(char).startswith("P")]


def last_number(text: str) -> Decimal | None:
    """The last number of a text, where a worked answer has its result; thousands may have commas. None: no number.

    A minus belongs to the number unless a digit or a letter stands before it.
    """
    numbers = list(NUMBER.finditer(text))
    if not numbers:
        return None
    value, start = numbers[-1][0], numbers[-1].start()
    if value.startswith("-") and start and text[start - 1].isalnum():
        value = value[1:]
    return Decimal(value.replace(",", ""))
