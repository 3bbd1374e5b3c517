"""Caption scores: those of pycocoevalcap itself on real captions, by hand where that is short, and what is refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from caption_rows import PLAIN, coco, java, needs_captions, stand_in
from own_data import Own

from halter.cli import main
from halter.errors import Refusal
from halter.evaluation.measures import captions
from halter.evaluation.measures.captions import Captions, ptb_words
from halter.evaluation.measures.measure import Scored
from halter.evaluation.measures.registry import MEASURES, chosen
from halter.evaluation.measures.spice import JARS, Spice
from halter.evaluation.options import MeasureOptions

HUMAN = {
    "cider_d": 1.2271055564195565,
    "coco_bleu1": 0.6763848396481739,
    "coco_bleu2": 0.48387313804717186,
    "coco_bleu3": 0.3556723917701768,
    "coco_bleu4": 0.26402409060523796,
    "coco_rouge_l": 0.5286863508802511,
}
"""Caption 1 of 31 COCO pictures beside their other four, pycocoevalcap 1.2 with its own tokenizer, 2026-11-30."""


@needs_captions
def test_the_human_ceiling_and_the_floor_on_31_pictures(shared: Path) -> None:
    facts = Captions(coco(shared), PLAIN).facts()
    assert facts["human"] == pytest.approx(HUMAN, rel=1e-12) and facts["human_rows"] == facts["rows"] == 31
    assert facts["floor"]["cider_d"] == pytest.approx(0.02681218603978972, rel=1e-12)
    assert facts["references"] == [5, 5]


@needs_captions
def test_words_are_those_of_the_librarys_tokenizer(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = [text for row in coco(shared) for text in row] + ["It's a dog's (red) ball, isn't it?", "2.5 km -- far..."]
    theirs = PTBTokenizer().tokenize({0: [{"caption": text} for text in texts]})[0]
    assert ptb_words(texts) == theirs
    monkeypatch.setenv("LC_ALL", "C")
    odd = ["", "Ein Café\u2028und ein\nHund.", "", "x", ""]
    assert ptb_words(odd) == ["", "ein café und ein hund", "", "x", ""]


@needs_captions
def test_scores_by_hand() -> None:
    """BLEU of "a dog runs fast" beside "a dog runs home": 3 of 4, 2 of 3, 1 of 2 and 0 of 1. ROUGE-L: 3 of 4 both ways.
    The other row agrees wholly, with none of its words in the first: it has the most that CIDEr-D can have."""
    right = [["a dog runs home"], ["two red cars stand here"]]
    scored = Captions(right, PLAIN).score(["A dog runs fast.", "Two red cars stand here!"])
    assert scored.rows["coco_rouge_l"].tolist() == pytest.approx([0.75, 1])
    assert scored.rows["coco_bleu2"][0] == pytest.approx(math.sqrt(3 / 4 * 2 / 3))
    assert scored.totals["coco_bleu3"] == pytest.approx((8 / 9 * 6 / 7 * 4 / 5) ** (1 / 3))
    assert scored.rows["cider_d"][1] == pytest.approx(10)
    # Equal weights, so each n-gram counts the same: shares 3/4, 2/3, 1/2 and 0 of it, times 10, over 4.
    assert scored.rows["cider_d"][0] == pytest.approx(10 * (3 / 4 + 2 / 3 + 1 / 2) / 4)


@needs_captions
def test_one_row_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for right in ([["a dog runs"]], [["a dog runs"], ["..."]]):
        with pytest.raises(Refusal) as refusal:
            Captions(right, PLAIN).score(["a dog"] * len(right))
        assert refusal.value.id == "few-rows"


def test_a_caption_of_several_lines_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, tmp_path)
    java(monkeypatch, tmp_path, "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read().lower())")
    assert ptb_words(["A dog\nruns .", "", "Zwei\u2028 Äpfel"]) == ["a dog runs", "", "zwei Äpfel"]


def test_what_stands_beside_the_scores_is_of_other_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Human: the first caption of rows with several, beside the others; floor: the next row's first, beside all."""
    asked: list[tuple[list[list[str]], list[str]]] = []

    def scored(right: list[list[str]], answers: list[str]) -> Scored:
        asked.append(([list(texts) for texts in right], list(answers)))
        return Scored({"cider_d": float(len(asked))})

    monkeypatch.setattr(captions, "ptb_words", list)
    monkeypatch.setattr(captions, "_scored", scored)
    facts = Captions([["a", "b", "c"], ["d"], ["e", "f"]], PLAIN).facts()
    assert asked == [
        ([["a", "b", "c"], ["d"], ["e", "f"]], ["d", "e", "a"]),
        ([["b", "c"], ["f"]], ["a", "e"]),
    ]
    assert facts["floor"] == {"cider_d": 1} and facts["human"] == {"cider_d": 2} and facts["human_rows"] == 2
    assert facts["rows"] == 3 and facts["references"] == [1, 3]


def test_lines_that_are_lost_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, tmp_path)
    java(monkeypatch, tmp_path, "print('one line')")
    assert ptb_words(["One line."]) == ["one line"]
    with pytest.raises(Refusal) as refusal:
        ptb_words(["one", "two"])
    assert refusal.value.id == "java-failed" and refusal.value.found == ("1 lines of 2 came back",)
    java(monkeypatch, tmp_path, "import sys; sys.exit('no heap')")
    with pytest.raises(Refusal) as refusal:
        ptb_words(["one"])
    assert refusal.value.id == "java-failed" and refusal.value.found == ("no heap",)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refusal) as refusal:
        chosen(MeasureOptions(measures=("vqa,captions",)))
    assert refusal.value.id == "java-missing" and "jre" in refusal.value.fix
    monkeypatch.setitem(sys.modules, "pycocoevalcap.tokenizer", None)
    with pytest.raises(Refusal) as refusal:
        chosen(MeasureOptions(measures=("captions",)))
    assert refusal.value.id == "extra-missing" and "[captions]" in refusal.value.fix


def test_a_measure_that_is_unknown_has_its_nearest() -> None:
    with pytest.raises(Refusal) as refusal:
        chosen(MeasureOptions(measures=("caption", "vqa")))
    assert refusal.value.id == "unknown-measure" and refusal.value.found == ("caption (did you mean captions?)",)
    with pytest.raises(Refusal) as refusal:
        chosen(MeasureOptions(measures=("CIDEr", "scienceqa", "vqa-accuracy", "xyz")))
    meant = ["CIDEr (did you mean captions?)", "scienceqa (did you mean choices?)", "vqa-accuracy (did you mean vqa?)"]
    assert refusal.value.found == (*meant, "xyz")
    assert chosen(MeasureOptions(measures=("vqa, choices",))) == {"vqa": MEASURES["vqa"]}


SPICE = """
import json, sys
at = sys.argv.index("edu.anu.spice.SpiceScorer")
assert sys.argv[at - 3 : at - 1] == ["-Xmx8G", "-cp"]
path = sys.argv[at - 1].split(":")
assert [one.rsplit("/", 1)[1] for one in path] == ["spice-1.0.jar", *JARS, "*"], path
rows = json.load(open(sys.argv[at + 1]))
values = [None if not row["test"] else float(row["test"] in row["refs"]) for row in rows]
found = [{"image_id": row["image_id"], "scores": {"All": {"f": v}}} for row, v in zip(rows, values)]
json.dump(found[::-1], open(sys.argv[sys.argv.index("-out") + 1], "w"))
"""


def test_spice_calls_its_program_with_the_folders_jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, tmp_path)
    java(monkeypatch, tmp_path, SPICE.replace("JARS", repr(list(JARS))))
    for given, missing in ((None, JARS), (str(tmp_path), JARS)):
        with pytest.raises(Refusal) as refusal:
            Spice.ready(MeasureOptions(spice_jars=given))
        assert refusal.value.id == "spice-jars" and refusal.value.found == tuple(f"no {name}" for name in missing)
        assert "--measures captions" in refusal.value.fix
    for name in JARS:
        (tmp_path / name).touch()
    options = MeasureOptions(spice_jars=str(tmp_path))
    Spice.ready(options)
    spice = Spice([["a dog", "a cat"], ["a car"], ["a sun"]], options)
    scored = spice.score(["a cat", "a dog", "a star"])
    assert scored.rows["spice"].tolist() == [1, 0, 0] and scored.totals["spice"] == pytest.approx(1 / 3)
    assert spice.facts()["floor"] == {"spice": 0}


@needs_captions
def test_evaluate_has_them_in_its_table_and_files(own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With every row's picture left out: this base sees none."""
    said = [["A dog runs home.", "The dog is running home."], ["Two cars stand here."]]
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows = [{"image": f"{n}.jpg", "captions": texts, "kind": "ab"[n]} for n, texts in enumerate(said)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", str(own.base), "--template", "alpaca", "--allow", "pictures-unseen", "--max-new-tokens", "8"]
    words += ["--data", str(file), "--measures", "captions", "--by", "kind", "--output", str(out)]
    assert main.run(words) == 0
    table = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line.get("references") for line in lines] == said
    answers = [line["base"]["answer"] for line in lines]
    scored = Captions(said, PLAIN).score(answers)
    for name, total in scored.totals.items():
        assert report["base"][name] == total
        assert [line["base"][name] for line in lines] == scored.rows[name].tolist()
        assert f"\n{name}" in table
    facts = report["measures"]["captions"]
    assert facts["rows"] == 2 and facts["references"] == [1, 2] and "human" not in facts  # one row alone has several
    assert report["by"]["kind"]["b"]["base"]["cider_d"] == scored.rows["cider_d"][1]
    assert "kind = a (1 rows): base exact_match" in table and "floor" in table
