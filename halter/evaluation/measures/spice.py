"""SPICE (Anderson et al. 2016): F1 of what a caption says of things, their kinds and relations, by scene graphs.

By the program that pycocoevalcap brings. It needs Stanford's CoreNLP 3.6.0, which the library would fetch from the web
at its first use; here it is used where somebody gives the folder with its jars. **Nobody has run it here with them.**
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from halter.errors import Refusal
from halter.evaluation.measures import java
from halter.evaluation.measures.captions import library
from halter.evaluation.measures.measure import AnswerMeasure, Scored
from halter.evaluation.options import MeasureOptions
from halter.files import writing

JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
ARCHIVE = "http://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
HEAP = "-Xmx8G"
NAME = "SPICE"


class Spice(AnswerMeasure):
    """SPICE of captions, 0 to 1: the mean of all rows."""

    formats = {"spice": ".3f"}

    @classmethod
    def ready(cls, options: MeasureOptions) -> None:
        """Refusals ``extra-missing``, ``java-missing`` and ``spice-jars``."""
        given = options.spice_jars
        missing = [name for name in JARS if given is None or not (Path(given).expanduser() / name).is_file()]
        if missing:
            raise Refusal(
                "spice-jars",
                "SPICE needs the jars of CoreNLP 3.6.0, which do not come with pycocoevalcap",
                where=given or "--spice-jars",
                found=[f"no {name}" for name in missing],
                expected="a folder that holds both",
                fix=f"take them out of {ARCHIVE} and give --spice-jars FOLDER; --measures captions (CIDEr-D, BLEU, "
                "ROUGE-L) does without",
            )
        library(NAME)
        java.refuse_no_java(NAME)

    @cached_property
    def _path(self) -> str:
        folder = library(NAME) / "spice"
        jars = [str(Path(self.options.spice_jars or "").expanduser() / name) for name in JARS]
        return ":".join([str(folder / "spice-1.0.jar"), *jars, str(folder / "lib" / "*")])

    def score(self, answers: Sequence[str]) -> Scored:
        asked: list[dict[str, Any]] = [
            {"image_id": row, "test": answer, "refs": list(texts)}
            for row, (answer, texts) in enumerate(zip(answers, self.right, strict=True))
        ]
        with TemporaryDirectory() as folder:
            given, found = Path(folder) / "given.json", Path(folder) / "found.json"
            writing.write_text(given, json.dumps(asked))
            program = [HEAP, "-cp", self._path, "edu.anu.spice.SpiceScorer"]
            java.run([*program, str(given), "-out", str(found), "-subset", "-silent"])
            by_row = {one["image_id"]: one["scores"]["All"]["f"] for one in json.loads(found.read_text("utf-8"))}
        values = np.array([_number(by_row[row]) for row in range(len(asked))], np.float64)
        return Scored({"spice": float(values.mean())}, {"spice": values})


def _number(value: object) -> float:
    """SPICE writes null for what has no value."""
    return float(value) if isinstance(value, int | float) else math.nan
