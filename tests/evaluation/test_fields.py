"""Key-value pairs of answers against figures worked out by hand."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import halter
from halter.cli.evaluate import _table
from halter.comparison import scores
from halter.data.example import Example
from halter.evaluation import score
from halter.evaluation.measures.fields import Fields, alike, field_scores, pairs
from halter.evaluation.measures.measure import Scored
from halter.evaluation.options import MeasureOptions
from halter.playground import base_folder

WANTED = ["kind: invoice\nnumber: 4711\nday: Monday", "kind: receipt\ntotal: 9.50"]


def scored(said: list[str], wanted: list[str] = WANTED) -> Scored:
    return Fields([[text] for text in wanted], MeasureOptions()).score(said)


def figures(said: list[str], wanted: list[str] = WANTED) -> list[float]:
    """Precision, recall and F1."""
    return list(scored(said, wanted).totals.values())


def test_missing_made_up_and_wrong_by_hand() -> None:
    """Of 5 wanted 3 are right; 5 are said: one wrong value, one made up. The day is missing."""
    told = scored(["kind: invoice\nnumber: 4712", "kind: receipt\ntotal: 9.50\nname: Kolven"])
    assert list(told.totals.values()) == [3 / 5, 3 / 5, 3 / 5]
    assert [values.tolist() for values in told.rows.values()] == [[1 / 2, 2 / 3], [1 / 3, 1], [2 / 5, 4 / 5]]
    assert told.parts["fields"] == {
        "kind": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "wanted": 2},
        "number": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "wanted": 1},
        "day": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "wanted": 1},
        "total": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "wanted": 1},
    }


def test_counts_are_of_all_rows_together() -> None:
    """The first row is all right (3 of 3), the second says nothing: recall 3 of 5, and not the mean of 1 and 0."""
    assert figures([WANTED[0], ""]) == [1.0, 3 / 5, pytest.approx(2 * 1 * 0.6 / 1.6)]


@pytest.mark.parametrize("said", ["", "It is an invoice.", '{"kind": "invoice", "number": 47', "[1, 2]", "null", "{}"])
def test_of_what_cannot_be_read_everything_is_wrong(said: str) -> None:
    assert figures([said, said]) == [0.0, 0.0, 0.0]


def test_a_line_that_is_no_pair_is_made_up_unless_it_is_wanted() -> None:
    assert figures(["kind: receipt\ntotal: 9.50\nThank you!"], WANTED[1:])[:2] == [2 / 3, 1.0]
    assert figures(["4711 "], ["4711"]) == [1.0, 1.0, 1.0] and figures(["4712"], ["4711"]) == [0.0, 0.0, 0.0]


def test_a_pair_said_twice_is_right_once() -> None:
    assert figures(["kind: receipt\nkind: receipt\ntotal: 9.50"], WANTED[1:])[:2] == [2 / 3, 1.0]
    assert figures(['{"kind": "receipt", "kind": "order", "total": 9.50}'], WANTED[1:])[:2] == [2 / 3, 1.0]


def test_of_several_right_answers_the_nearest_counts() -> None:
    told = Fields([["kind: order\nday: Monday", "kind: offer"]], MeasureOptions()).score(["kind: offer"])
    assert told.totals["field_f1"] == 1.0 and set(told.parts["fields"]) == {"kind"}


def test_json_and_lines_are_compared_as_the_same_pairs() -> None:
    said = ['{"day": "monday", "number": 4711, "Kind": "Invoice"}', '{"total": 9.50, "kind": "receipt", "name": null}']
    assert figures(said) == [1.0, 1.0, 1.0]
    nested = '{"to": "Ann", "items": [{"count": 2, "thing": "lamp"}, {"count": 3, "thing": ""}], "paid": true}'
    assert pairs(nested) == Counter(
        [("to", "ann"), ("items.0.count", "2"), ("items.0.thing", "lamp"), ("items.1.count", "3"), ("paid", "true")]
    )


def test_case_and_white_space_do_not_count_and_nothing_else_is_made_alike() -> None:
    assert (
        pairs("Name:  Ko\u0308lven   GmbH ")
        == pairs("name: k\u00f6lven gmbh")
        == Counter([("name", "k\u00f6lven gmbh")])
    )
    assert pairs("total: 1,234.50") != pairs("total: 1234.5") and pairs("day: 2 May") != pairs("day: 02/05")
    assert pairs("at: 12:30") == Counter([("at", "12:30")])
    for plain in ("see http://a.b", "So it is. Answer: 7.", "7 + 8: 15"):
        assert list(pairs(plain)) == [("", plain.lower())]
    assert pairs("name:\nday: Monday") == Counter([("day", "monday")])


def test_compare_takes_fields_where_all_that_is_wanted_is_fields() -> None:
    assert field_scores(WANTED, WANTED) == {"field_precision": 1.0, "field_recall": 1.0, "field_f1": 1.0}
    assert field_scores(["a"], ["a lamp"]) == {} == field_scores(WANTED, [WANTED[0], "Monday."])
    assert field_scores([], []) == {} == field_scores(["kind: a"], ["kind: a\nand so on"]) == field_scores(["a"], [""])


def test_deep_nesting_is_no_answer_and_no_crash() -> None:
    for deep in (960, 990, 100_000):
        assert all(key == "" for key, _ in pairs('{"a":' * deep + "1" + "}" * deep))


KEYS = st.sampled_from(["kind", "number", "total", "day"])
ROWS = st.lists(st.dictionaries(KEYS, st.sampled_from(["1", "2", "lamp"]), min_size=1), min_size=1, max_size=6)


@given(ROWS, st.randoms(use_true_random=False))
def test_perfect_answers_have_one_and_the_order_of_rows_and_pairs_is_nothing(rows, random) -> None:
    def text(row, order=()):
        return "\n".join(f"{key}: {row[key]}" for key in sorted(row, key=lambda key: (key in order, key)))

    wanted = [text(row) for row in rows]
    assert figures([text(row, ("day", "kind")) for row in rows], wanted) == [1.0, 1.0, 1.0]
    said = [*wanted[1:], wanted[0]]
    order = list(range(len(rows)))
    random.shuffle(order)
    assert figures([said[i] for i in order], [wanted[i] for i in order]) == figures(said, wanted)
    assert all(alike(alike(one)) == alike(one) for one in wanted)


class Said:
    """An answer of nobody."""

    finish_reason = "stop"

    def __init__(self, text: str) -> None:
        self.text = text


def test_evaluate_reports_fields_of_both_and_prints_them(tmp_path, monkeypatch, capsys) -> None:
    asked = [("Which are they?", WANTED[0]), ("And here?", WANTED[1])]
    rows = "".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in asked)
    (tmp_path / "rows.jsonl").write_text(rows, "utf-8")
    monkeypatch.setattr(score, "answers", lambda model, tokenizer, questions, *rest: [Said("kind: invoice")] * 2)
    found = halter.evaluate(
        model=str(base_folder()), data=str(tmp_path / "rows.jsonl"), output=str(tmp_path / "out"), measures="fields"
    )
    assert (found.base.field_precision, found.base.field_recall, found.base.field_f1) == (1 / 2, 1 / 5, 2 / 7)
    assert found.base.fields["kind"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "wanted": 2}
    assert json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["base"]["field_f1"] == 2 / 7
    assert "field_f1               0.286" in _table(found.report)


def test_compare_reports_fields_beside_exact_match(monkeypatch) -> None:
    model, tokenizer = halter.load(str(base_folder()), dtype="float32")
    ids = [np.array([*tokenizer.encode("Which?"), *tokenizer.encode(text)], np.int32) for text in WANTED]
    first = len(tokenizer.encode("Which?"))
    rows = [Example(one, np.arange(len(one)) >= first) for one in ids]
    monkeypatch.setattr(scores, "answers", lambda model, tokenizer, questions, *rest: [Said("kind: invoice")] * 2)
    suite = scores.EvaluationSuite(tokenizer, rows, [], questions=2, max_new_tokens=4, pass_tokens=512)
    found = scores.evaluate_on(model, suite)["scores"]
    assert [found[name] for name in Fields.formats] == [1 / 2, 1 / 5, 2 / 7] and found["exact_match"] == 0
