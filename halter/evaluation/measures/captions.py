"""Scores of picture captions as COCO's server has them, by pycocoevalcap: CIDEr-D, BLEU-1 to 4 and ROUGE-L.

The library's ``Cider`` is CIDEr-D (counts clipped, a Gauss penalty on the difference in length with sigma 6, times 10;
Vedantam, Zitnick, Parikh 2015): papers print it times 100. The weights of its words come from the right answers that
are scored against, so scores on other rows do not compare. All its scores are of words as Stanford's PTB tokenizer
(CoreNLP 3.4.1, in Java) cuts them, in small letters and without punctuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from halter.errors import Refusal
from halter.evaluation.measures import java
from halter.evaluation.measures.measure import AnswerMeasure, Scored
from halter.evaluation.options import MeasureOptions
from halter.files.extras import missing_extra

NAME = "captions (CIDEr-D, BLEU and ROUGE-L by pycocoevalcap)"
FEWEST = 2
"""Rows that CIDEr-D needs: of one alone every word weighs log(1 / 1)."""
HUMAN = "human"


def library(needed_for: str) -> Path:
    """Where pycocoevalcap lies. Refusal ``extra-missing``."""
    try:
        from pycocoevalcap.tokenizer import ptbtokenizer
    except ImportError as error:
        raise missing_extra("captions", needed_for, "--measures", error) from error
    return Path(ptbtokenizer.__file__).parents[1]


def ptb_words(texts: Sequence[str]) -> list[str]:
    """The words of each text, a blank between two, by one call of the tokenizer that pycocoevalcap brings.

    As its own PTBTokenizer, which writes a file into the folder where it is installed, knows one of the marks at
    which a line may end, and does not see when lines are lost. Refusals ``extra-missing``, ``java-failed``.
    """
    folder = library(NAME) / "tokenizer"
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    lines = [" ".join(text.split()) for text in texts]
    program = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    said = java.run(["-cp", str(folder / STANFORD_CORENLP_3_4_1_JAR), *program], "".join(f"{line}\n" for line in lines))
    cut = said.split("\n")[:-1]
    if len(cut) != len(lines):
        raise java.failed(f"{len(cut)} lines of {len(lines)} came back")
    return [" ".join(word for word in line.split() if word not in PUNCTUATIONS) for line in cut]


class Captions(AnswerMeasure):
    """CIDEr-D, BLEU-1 to 4 and ROUGE-L of captions beside one or several right ones each."""

    formats = {"cider_d": ".3f"} | {f"coco_bleu{n}": ".3f" for n in (1, 2, 3, 4)} | {"coco_rouge_l": ".3f"}

    @classmethod
    def ready(cls, options: MeasureOptions) -> None:
        library(NAME)
        java.refuse_no_java(NAME)

    @cached_property
    def words(self) -> list[list[str]]:
        """The words of each row's right captions, all from one call. Refusal ``few-rows``."""
        cut = iter(ptb_words([text for texts in self.right for text in texts]))
        words = [list(islice(cut, len(texts))) for texts in self.right]
        if sum(any(texts) for texts in words) < FEWEST:
            raise Refusal(
                "few-rows",
                "CIDEr-D weighs words by the other rows' captions, and too few rows have words",
                where="--measures captions",
                found=[f"{len(words)} rows"],
                expected=f"{FEWEST} or more",
                fix="give more rows, or leave the measure out",
            )
        return words

    def score(self, answers: Sequence[str]) -> Scored:
        return _scored(self.words, ptb_words(answers))

    def facts(self) -> dict[str, Any]:
        """Also ``human``: the first caption of each row that has several, beside its others, and on how many rows."""
        words = self.words
        after = [texts[0] for texts in [*words[1:], *words[:1]]]
        counts = [len(texts) for texts in words]
        facts = {
            "rows": len(words),
            "references": [min(counts), max(counts)],
            "floor": _scored(words, after).totals,
            "library": "pycocoevalcap: CIDEr-D, words by Stanford's PTB tokenizer, without punctuation",
        }
        several = [texts for texts in words if len(texts) > 1]
        if len(several) >= FEWEST:
            others, first = [texts[1:] for texts in several], [texts[0] for texts in several]
            facts |= {HUMAN: _scored(others, first).totals, "human_rows": len(several)}
        return facts


def _scored(right: Sequence[Sequence[str]], answers: Sequence[str]) -> Scored:
    """Of texts that are words already."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    wanted = {row: list(texts) for row, texts in enumerate(right)}
    said = {row: [text] for row, text in enumerate(answers)}
    cider, ciders = Cider().compute_score(wanted, said)
    bleus, bleu_rows = Bleu(4).compute_score(wanted, said, verbose=0)
    rouge, rouges = Rouge().compute_score(wanted, said)
    totals = [cider, *bleus, rouge]
    rows = [ciders, *bleu_rows, rouges]
    return Scored(
        {name: float(value) for name, value in zip(Captions.formats, totals, strict=True)},
        {name: np.asarray(values, np.float64) for name, values in zip(Captions.formats, rows, strict=True)},
    )
