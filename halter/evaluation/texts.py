"""Measures on texts: an answer beside the one that was wanted."""

from __future__ import annotations

from collections.abc import Sequence

from halter.files.extras import missing_extra

ROUGE = ("rouge1", "rouge2", "rougeL")


def exact_match(answer: str, wanted: str, strict: bool = False) -> bool:
    """Whether two texts are equal, white space aside; ``strict``: character for character."""
    return answer == wanted if strict else answer.split() == wanted.split()


def rouge(answers: Sequence[str], wanted: Sequence[str]) -> list[dict[str, float]]:
    """ROUGE-1, -2 and -L (F-measure, Porter stemming) of each answer, by the library rouge-score.

    Its tokens are runs of a-z and 0-9, so it says nothing of texts in other scripts. Refusal ``extra-missing``.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise missing_extra("eval", "ROUGE", "evaluate", error) from error
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    scores = (scorer.score(target, answer) for answer, target in zip(answers, wanted, strict=True))
    return [{name: float(score[name].fmeasure) for name in ROUGE} for score in scores]
