"""docs/measured/survey-tables.md is what its script makes; the script's figures are worked out by hand here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from made_record import record

from halter.model.families import published_names
from halter.planning import survey

DOCS = Path(__file__).resolve().parents[2] / "docs" / "measured"
sys.path.insert(0, str(DOCS.parent))
import make_survey_tables as script  # noqa: E402
import survey_claims  # noqa: E402


def test_the_page_is_what_the_script_makes():
    assert script.page() == (DOCS / "survey-tables.md").read_text("utf-8"), "make pages"


def test_counts_are_those_worked_out_by_hand():
    d, layers, ffn, heads = 4096, 32, 11008, 32
    square, wide = d + d, d + ffn
    counts = {
        survey.Q: layers * 8 * square,
        survey.QV: layers * 2 * 8 * square,
        survey.QKVO: layers * 4 * 8 * square,
        survey.ALL: layers * 8 * (4 * square + 3 * wide),
        survey.RECIPE: layers * 64 * (4 * square + 3 * wide),
        survey.V1: 30 * (10 * d + heads),
        # an input scale and an output bias of seven linears, two norms a layer and the last one
        survey.V2: layers * (4 * 2 * d + 2 * (d + ffn) + (ffn + d) + 2 * d) + d,
        survey.V2_PAPER: layers * (4 * 2 * d + 2 * 2 * ffn + 2 * d + 2 * d) + d,
        survey.EXCITOR: 30 * (30 * d + 16 * 2 * d + 1),
    }
    counts[survey.V2_PROMPTS] = counts[survey.V2_PAPER] + 31 * (10 * d + heads)
    assert {setting: survey.counted(setting) for setting in counts} == counts and set(counts) == set(survey.SETTINGS)
    assert survey.counted(survey.V2, survey.LARGE) == 13_811_712  # the authors' released module


def test_no_setting_of_r_8_gives_the_survey_s_count():
    """About 2.5M is said; every choice among the seven linear layers is tried."""
    per = [32 * 8 * n for n in (8192, 8192, 8192, 8192, 15104, 15104, 15104)]
    sums = {sum(n for i, n in enumerate(per) if choice >> i & 1) for choice in range(1, 128)}
    assert not any(2_400_000 <= total <= 2_600_000 for total in sums)


def test_bytes_of_the_base_are_those_of_the_qlora_paper_s_storage():
    """7 linear layers at 4.127 bits and the rest in 16: 3.866 GB of 7B, 34.459 GB of 65B (mechanisms, worked out)."""
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    rest = 2 * 32000 * 4096 + 65 * 4096
    assert survey_claims.base_bytes(survey.SEVEN, False) == 2 * (linear + rest)
    assert survey_claims.base_bytes(survey.SEVEN, True) == pytest.approx(linear * 4.126953125 / 8 + 2 * rest)
    assert survey_claims.base_bytes(survey.LARGE, True) == pytest.approx(34.459e9, abs=1e6)


def test_full_fine_tuning_takes_sixteen_bytes_a_parameter():
    """A float32 weight, its gradient and AdamW's two moments: 107.81 GB of 6,738,415,616 parameters."""
    (line,) = [line for line in script.page().splitlines() if line.startswith("| full fine-tuning")]
    assert line.count("107.81 GB") == 2 and f"{6_738_415_616 * (4 + 4 + 8) / 1e9:.2f}" == "107.81"


def test_what_merges():
    assert [survey_claims.merges(s) for s in (survey.QV, survey.V1, survey.V2, survey.V2_PROMPTS, survey.EXCITOR)] == [
        True,
        False,
        True,
        False,
        False,
    ]


def test_measured_figures_come_from_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(script, "RECORD", tmp_path / "none.json")
    assert "not measured yet" in script.page()
    (tmp_path / "record.json").write_text(json.dumps(record()))
    monkeypatch.setattr(script, "RECORD", tmp_path / "record.json")
    text = script.page()
    assert "not measured yet" not in text
    assert "a base of 3,279,104 parameters, 120,000 tokens and 3 seeds" in text
    for words in ("| 286,720 |", "1.1700 to 1.2300", "beta counts 5", "| 400 MB |", "does not fit in 1 GB"):
        assert words in text


def test_learning_curves_are_read_as_they_stand():
    """The survey's four trained methods and the baseline, each with its line of docs/measured/learning-curves.md."""
    curves = (DOCS / "learning-curves.md").read_text("utf-8").splitlines()
    page = [line.replace("\\", "") for line in script.page().splitlines()]
    for name in ("full", "lora", "llama_adapter", "llama_adapter_v2", "excitor"):
        (line,) = [line for line in curves if line.startswith(f"| {name} |")]
        assert line in page


def test_every_model_of_the_lineage_stands_in_table_1():
    """Each published shape but those of Code Llama, which the survey leaves out; the tests named are there."""
    members = survey_claims.lineage()
    listed = [name for member in members for name in member.sizes]
    assert listed == sorted(listed, key=listed.index) and len(set(listed)) == len(listed)
    assert set(listed) == {name for name in published_names() if not name.startswith("code-llama")}
    for member in members:
        files = member.tests.split(", ") if member.tests else []
        assert all((DOCS.parents[1] / file).is_file() for file in files)
        assert bool(files) == member.runs.startswith("runs")
    (scout,) = [line for line in script.page().splitlines() if line.startswith("| Llama 4 Scout")]
    assert "108,641,793,536 (17,172,894,720 a token)" in scout
