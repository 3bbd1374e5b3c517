"""What holds for every measure of answers, whatever it measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from caption_rows import java, stand_in, there
from test_captions import SPICE

from halter.evaluation.measures.measure import AnswerMeasure
from halter.evaluation.measures.registry import MEASURES, formats
from halter.evaluation.measures.spice import JARS
from halter.evaluation.options import MeasureOptions

MOST = {"cider_d": 10.0}
"""Of scores whose highest is not 1."""
ONE_BY_ONE = {"cider_d", "coco_rouge_l", "spice", "vqa_accuracy"}
"""Totals that are means of the rows."""
ROWS = [
    ("a brown dog runs over wet grass", "the dog is running", "a dog runs outside in the rain"),
    ("two red cars stand near a house", "red cars are parked by a house", "there are two cars"),
    ("a woman reads in the morning sun", "a woman with a book", "somebody reads in the sun"),
    ("three birds sit on a high wire", "birds on a wire", "a wire with three birds sitting"),
    ("a man eats soup at a small table", "a man is eating soup", "soup and a man"),
]
Made = Callable[[Sequence[Sequence[str]]], AnswerMeasure]


@pytest.fixture(params=sorted(MEASURES))
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Every measure over rows; SPICE over a stand-in of its program."""
    if request.param == "captions" and not there:
        pytest.skip("pycocoevalcap or java is not there (extra captions)")
    if request.param == "spice":
        stand_in(monkeypatch, tmp_path)
        java(monkeypatch, tmp_path, SPICE.replace("JARS", repr(list(JARS))))
    options = MeasureOptions(spice_jars=str(tmp_path))
    return lambda right: MEASURES[request.param](right, options)


def test_right_answers_have_the_most(made: Made) -> None:
    right = [texts[:1] for texts in ROWS]
    scored = made(right).score([texts[0] for texts in right])
    for name, total in scored.totals.items():
        assert total == pytest.approx(MOST.get(name, 1.0)), name
        assert scored.rows[name] == pytest.approx(np.full(len(right), MOST.get(name, 1.0))), name


def test_the_order_of_rows_changes_nothing(made: Made) -> None:
    answers = ["a dog runs over grass", "birds", "a woman reads in the morning sun", "a wire", "soup and a man"]
    scored = made(ROWS).score(answers)
    order = np.random.default_rng(0).permutation(len(ROWS))
    again = made([ROWS[n] for n in order]).score([answers[n] for n in order])
    for name, total in scored.totals.items():
        assert 0 < total < MOST.get(name, 1.0), name
        assert again.totals[name] == pytest.approx(total, rel=1e-12), name
        assert again.rows[name] == pytest.approx(scored.rows[name][order], rel=1e-12), name
        if name in ONE_BY_ONE:
            assert total == pytest.approx(scored.rows[name].mean(), rel=1e-12), name


def test_a_value_for_every_row_and_a_format_for_every_score(made: Made) -> None:
    one = made(ROWS)
    scored = one.score(["something else"] * len(ROWS))
    assert list(scored.totals) == list(scored.rows) == list(one.formats)
    assert all(values.shape == (len(ROWS),) for values in scored.rows.values())
    assert formats().keys() >= scored.totals.keys()
    facts = one.facts()
    assert facts["rows"] == len(ROWS) and facts["floor"].keys() == scored.totals.keys()
    assert facts["references"] == [3, 3]
