"""The report says what the record holds: worked out by hand from a record that is made up, and seen by a browser."""

from __future__ import annotations

import copy
import csv
import html
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser import MISSING, Browser, browser
from made_record import record

from halter.comparison.report.__main__ import main
from halter.comparison.report.facts import ReportFacts, ReportRow
from halter.comparison.report.plots import plots
from halter.comparison.report.summary import headline, reasons, size
from halter.comparison.report.tables import comma_separated, tables
from halter.comparison.report.writing import markdown, write
from halter.files.reading import visible

HOSTILE = (
    "</script><script>alert(1)</script>\"'<img src=https://example.com/x.png onerror=alert(2)>$x_1$ | `c` *b* "
    "\u202e\x1b[31m\x00"
)


def without(path: str, made: dict[str, Any]) -> dict[str, Any]:
    """The record without a key of its rows."""
    for row in made["rows"]:
        row.pop(path, None)
    return made


def test_ties_are_told_as_ties_and_the_cheapest_of_them_is_advised():
    found = ReportFacts(record())
    assert headline(found) == "Use alpha: it ties for the best loss with beta and needs less memory."
    said = [text for _, text in reasons(found)]
    assert said[0] == (
        "alpha has the least loss on the test rows, 1.2000 nats a token, the mean of 3 seeds; "
        "inside the noise, so a tie: beta; the base without an adapter has 3.0000."
    )
    assert "alpha-nf4 needs the least to train: 250 MB, at a loss of 1.2700." in said
    assert "Beside the same method on the wider base: alpha: loss +0.0700 (more than the noise), memory -38%." in said
    assert "The best for the memory that you have: from 250 MB alpha-nf4 (1.2700), from 400 MB alpha (1.2000)." in said
    assert ("Failed", "epsilon: the loss left the numbers.") in reasons(found)
    assert ("Left out", "zeta: does not fit in 1 GB.") in reasons(found)
    # alpha ends first, after 20 s; beta had then taken 20 of its 25 s: 4 of 5 steps, 1.21 + 4 / 5
    assert "After 20.0 s, when the quickest had finished, alpha had the least validation loss, 1.8667." in said
    assert found.trained[1].loss_after(20.0) == pytest.approx(1.21 + 4 / 5)


@pytest.mark.parametrize("ties", [True, False])
def test_the_headline_is_no_firmer_than_the_search(ties):
    made = record() if ties else record() | {"ties": []}
    assert "may change" not in headline(ReportFacts(made)) and not any(
        row.unsettled for row in ReportFacts(made).trained
    )
    made["rows"][2]["edge"] = True
    found = ReportFacts(made)
    assert headline(found).startswith("Use alpha") and "by more than the noise" not in headline(found)
    name = found.rows[2].name
    assert f"did not settle the learning rate of {name}, so the order may change." in headline(found)
    made["rows"][2]["edge"], made["rows"][2]["search"] = False, []
    assert f"learning rate of {name}, so" in headline(ReportFacts(made))
    assert any(lead == "No search" and name in text for lead, text in reasons(ReportFacts(made)))


def test_a_rate_at_the_edge_of_the_search_and_a_4_bit_base_are_told():
    made = record()
    made["rows"][2]["edge"] = True
    made["rows"].append({"name": "base-nf4", "method": None, "status": "done", "mean": {"test_loss": 0.5}})
    found = ReportFacts(made)
    assert any(lead == "Search" and "beyond: beta." in text for lead, text in reasons(found))
    assert headline(found).startswith("Use alpha")  # the base in 4 bits is no method


def test_zeros_of_rows_that_never_ran_are_shown_as_unknown():
    made = record()
    blank = {"trainable": 0, "share": 0.0, "adapter_bytes": 0, "seconds": 0.0, "memory": {"measured_peak_bytes": 0}}
    made["rows"][-1] |= blank
    row = ReportFacts(made).rows[-1]
    assert (row.trainable, row.peak, row.seconds) == (None, None, None)
    results = next(table for table in tables(ReportFacts(made)) if table.title == "Results")
    line = next(line for line in results.rows if line[0] == "zeta")
    assert line == ["zeta", "float32", "left out: does not fit in 1 GB", "", "", "", "", "", ""]
    assert "planned memory" not in tables(ReportFacts(without("memory", record())))[2].head  # nothing to show


@pytest.mark.parametrize("right", [0.0, 0.004, 1.0])
def test_the_axis_of_right_answers_shows_shares_alone(right: float):
    """Never less than nothing, also where no row was right."""
    made = record()
    for row in made["rows"]:
        row.setdefault("mean", {})["exact_match"] = right
        row.setdefault("interval", {})["exact_match"] = [right, right]
    found = ReportFacts(made)
    (shares,) = [plot for plot in plots(found) if "right answers" in plot.note]
    ticks = [float(text.replace("\N{MINUS SIGN}", "-")) for text in re.findall(r">([^<>]*)%<", shares.svg)]
    assert len(ticks) > 2 and min(ticks) >= 0 and max(ticks) - min(ticks) >= 5


def test_the_cheaper_of_two_ties_wins_even_with_the_larger_loss():
    made = record()
    next(row for row in made["rows"] if row["name"] == "beta")["memory"]["measured_peak_bytes"] = 1e8
    assert headline(ReportFacts(made)).startswith("Use beta: it ties for the best loss with alpha")


def test_memory_that_hardly_differs_does_not_decide():
    made = record()
    alpha, beta = made["rows"][1], made["rows"][2]
    beta["memory"]["measured_peak_bytes"] = 390e6  # 2.5 % below alpha's, which trains fewer parameters
    assert headline(ReportFacts(made)).endswith("with beta and trains the fewest parameters.")
    alpha["mergeable"] = False
    assert headline(ReportFacts(made)) == (
        "Use beta: it ties for the best loss with alpha and is the one that merges into the weights."
    )
    made["ties"].append(["alpha", "delta"])
    made["rows"][4]["memory"]["measured_peak_bytes"] = 800e6
    assert headline(ReportFacts(made)).endswith(
        "with alpha and delta; of those that need least memory it is the one that merges into the weights."
    )


def test_where_full_training_wins_the_best_adapter_is_named_too():
    made = record()
    beta = made["rows"][2]
    beta["mean"]["test_loss"] = 0.9
    made["ties"] = [["alpha", "alpha-nf4"]]
    assert headline(ReportFacts(made)) == (
        "Use beta: the best loss, by more than the noise. Of the adapters: alpha-nf4."
    )
    assert dict(reasons(ReportFacts(made)))["Adapters"] == (
        "alpha and alpha-nf4 tie among those that leave the base as it is; alpha-nf4: 1.2700; beta: 0.9000."
    )
    beta["share"] = 0.99
    assert headline(ReportFacts(made)) == "Use beta: the best loss, by more than the noise."
    assert "Adapters" not in dict(reasons(ReportFacts(made)))


def test_warm_ups_that_differ_are_told():
    made = record()
    assert "Warm-up" not in dict(reasons(ReportFacts(made)))
    shares = {"alpha": 0.03, "beta": 0.03, "gamma_v2": 0.4, "delta": 12}
    for row in made["rows"]:
        row["warmup"] = shares.get(row["name"])
    text = dict(reasons(ReportFacts(made)))["Warm-up"]
    assert "12 steps delta; 3% of the steps alpha and beta; 40% of the steps gamma_v2." in text
    for row in made["rows"]:
        row["warmup"] = 0.1
    assert "Warm-up" not in dict(reasons(ReportFacts(made)))


def test_a_single_seed_is_said_to_be_one():
    made = record()
    assert not any(lead == "Noise" for lead, _ in reasons(ReportFacts(made)))
    made["rows"][1]["seeds"] = made["rows"][1]["seeds"][:1]
    said = dict(reasons(ReportFacts(made)))
    assert "for want of a second seed" in said["Noise"] and "from a single seed" in said["Quality"]


def test_a_winner_without_ties_is_told_so():
    assert headline(ReportFacts(record() | {"ties": []})) == "Use alpha: the best loss, by more than the noise."


def test_where_nothing_beats_the_base_the_base_is_advised():
    made = record()
    made["rows"][0]["mean"]["test_loss"] = 1.19
    assert "use the base as it is" in headline(ReportFacts(made))
    tied = record()
    tied["rows"][0]["mean"]["test_loss"] = 1.3
    tied["ties"] += [["base", "alpha"], ["beta", "base"]]
    assert "use the base as it is" in headline(ReportFacts(tied))


def test_the_pareto_front_is_what_no_other_row_beats():
    found = ReportFacts(record())
    # (parameters, loss): delta 5,120 2.10; gamma 20,736 1.55; alpha 286,720 1.20; alpha-nf4 286,720 1.27;
    # beta 3,279,104 1.21
    assert [row.name for row in found.front(lambda row: row.trainable)] == ["delta", "gamma_v2", "alpha"]
    assert [row.name for row in found.front(lambda row: row.peak)] == ["alpha-nf4", "alpha"]


def test_curves_are_means_and_bands_of_the_steps_that_all_seeds_share():
    def seed(*points: tuple[int, float]) -> dict[str, Any]:
        return {"curve": [{"step": s, "tokens": 10 * s, "seconds": 1.0, "validation_loss": loss} for s, loss in points]}

    row = ReportRow({"name": "x", "seeds": [seed((0, 4.0), (1, 2.0), (2, 1.0)), seed((0, 5.0), (2, 2.0), (3, 9.0))]})
    assert row.curve("tokens") == [(0, 4.5, 4.0, 5.0), (20, 1.5, 1.0, 2.0)]


def test_the_csv_has_the_numbers_of_the_record():
    made = record()
    made["rows"][1]["name"] = "=1+1"
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(comma_separated(ReportFacts(made))))}
    assert list(rows) == ["base", "'=1+1", "beta", "gamma_v2", "delta", "alpha-nf4", "epsilon", "zeta"]
    beta = rows["beta"]
    assert (beta["trainable"], beta["mean_test_loss"], beta["low_test_loss"]) == ("3279104", "1.21", "1.18")
    assert (beta["measured_peak_bytes"], float(beta["planned_bytes"])) == ("900000000.0", pytest.approx(0.75 * 900e6))
    assert json.loads(beta["method"]) == {"name": "beta", "r": 8}
    assert rows["epsilon"]["status"] == "failed" and rows["epsilon"]["mean_test_loss"] == ""


def test_markdown_has_every_row_and_no_markup_of_strangers():
    made = record()
    made["rows"][1]["name"] = HOSTILE
    made["ties"] = [[HOSTILE, "beta"]]
    text = markdown(ReportFacts(made))
    assert "<" not in text and "\u202e" not in text
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if "1.1700 to 1.2300" in line} == {10}
    for words in (
        "failed: the loss left the numbers",
        "left out: does not fit in 1 GB",
        "halter train recipes/beta.yaml",
        "recipes/beta-1.yaml and recipes/beta-2.yaml",
    ):
        assert words in text.replace("\\", "")


OPTIONAL = (
    "memory",
    "seeds",
    "search",
    "mean",
    "spread",
    "interval",
    "method",
    "trainable",
    "share",
    "seconds",
    "recipe",
    "precision",
    "learning_rate",
    "adapter_bytes",
    "mergeable",
    "stability",
    "tokens_per_second",
    "status",
)


def test_every_optional_part_of_a_row_may_be_missing(tmp_path: Path):
    for key in OPTIONAL:
        found = ReportFacts(without(key, record()))
        assert markdown(found) and comma_separated(found)
    write(without("memory", without("search", record())), tmp_path)
    write(without("seeds", without("spread", record())), tmp_path)
    bare = record()
    bare["rows"] = [{"name": row["name"]} for row in bare["rows"]]
    write(bare, tmp_path)
    write({"rows": []}, tmp_path)
    assert "nothing to recommend" in (tmp_path / "report.html").read_text("utf-8")


def test_numbers_that_are_none_stay_out(tmp_path: Path):
    made = record()
    made["rows"][2]["mean"]["test_loss"] = float("nan")
    made["rows"][3]["memory"]["measured_peak_bytes"] = None
    made["rows"][3]["memory"]["planned"] = None
    found = ReportFacts(made)
    assert [row.name for row in found.trained] == ["alpha", "alpha-nf4", "gamma_v2", "delta"]
    write(made, tmp_path)
    assert not re.search(r"\bnan\b", (tmp_path / "report.html").read_text("utf-8"), re.IGNORECASE)


def test_recipes_beside_the_report_are_shown_and_others_are_not_read(tmp_path: Path):
    (tmp_path / "secret.yaml").write_text("password: hunter2")
    folder = tmp_path / "report"
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "alpha.yaml").write_text("method:\n  name: alpha # <of the file>\n")
    made = record()
    made["rows"][2]["recipe"] = "../secret.yaml"
    made["rows"][3]["recipe"] = str(tmp_path / "secret.yaml")
    write(made, folder)
    text = (folder / "report.html").read_text("utf-8")
    assert "method:\n  name: alpha # &lt;of the file&gt;\n" in text and "hunter2" not in text


def test_the_same_record_makes_the_same_report(tmp_path: Path):
    made = record()
    kept = copy.deepcopy(made)
    first = [path.read_bytes() for path in write(made, tmp_path / "a")]
    assert first == [path.read_bytes() for path in write(made, tmp_path / "b")] and made == kept


def test_sizes_are_in_powers_of_a_thousand():
    assert [size(n) for n in (0, 999, 1000, 99_900, 250e6, 1.5e9)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "99.9 kB",
        "250 MB",
        "1.50 GB",
    ]


def test_the_module_writes_a_report_from_a_kept_record(tmp_path: Path):
    (tmp_path / "record.json").write_text(json.dumps(record()))
    command = [
        sys.executable,
        "-m",
        "halter.comparison.report",
        str(tmp_path / "record.json"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "out" / "report.html").is_file(), done.stderr
    for text in ("[]", "{}", '{"rows": [{}]}', '{"rows": {"name": "x"}}'):
        (tmp_path / "record.json").write_text(text)
        assert main(command[3:]) == 2
    assert main([]) == 2


def test_markdown_with_figures_beside_it(tmp_path: Path):
    (tmp_path / "record.json").write_text(json.dumps(record()))
    assert main([str(tmp_path / "record.json"), str(tmp_path / "out"), "--markdown"]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    drawn = re.findall(r"!\[.*\]\((.*)\)", text)
    assert {"quality-against-cost.svg", "learning-curves.svg"} <= set(drawn) and "report.html" not in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.md", *drawn}
    for name in drawn:
        root = ElementTree.fromstring((tmp_path / "out" / name).read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and "prefers-color-scheme" in root[0].text
        used = set(re.findall(r"var\((--\w+)\)", (tmp_path / "out" / name).read_text()))
        assert all(f"{variable}:" in root[0].text for variable in used)
    assert main([str(tmp_path / "record.json"), str(tmp_path / "out"), "--else"]) == 2


def test_the_example_report_is_what_its_record_makes():
    folder = Path(__file__).resolve().parents[2] / "docs" / "measured" / "example-report"
    if not folder.is_dir():
        pytest.skip("there is no docs/measured/example-report yet: make report")
    found = ReportFacts(json.loads((folder / "record.json").read_text("utf-8")))
    assert (folder / "report.md").read_text("utf-8") == markdown(found)
    assert (folder / "report.csv").read_text("utf-8") == comma_separated(found)
    page = (folder / "report.html").read_text("utf-8")
    assert all(html.escape(table.title) in page for table in tables(found)) and html.escape(headline(found)) in page
    named = [row["recipe"] for row in found.record["rows"] if row.get("recipe")]
    assert named and all((folder / name).is_file() for name in named)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if MISSING:
        pytest.skip(MISSING)
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def test_the_page_opens_in_a_browser_and_asks_for_nothing_else(chromium: Browser, tmp_path: Path):
    made = record()
    made["rows"][1]["name"] = made["rows"][1]["method"]["name"] = made["base"]["name"] = HOSTILE
    made["rows"][1]["recipe"] = f"recipes/{HOSTILE}.yaml"
    made["verdicts"][0]["claim"] = made["rows"][6]["why"] = HOSTILE
    made["ties"] = [[HOSTILE, "beta"]]
    made["rows"][2]["name"] = "_quiet"
    page = write(made, tmp_path)[0]
    chromium.requests()
    chromium.open(page)
    assert chromium.requests() == [page.resolve().as_uri()]
    assert chromium.console() == []
    assert chromium.run("return document.querySelectorAll('script, img, iframe, link').length") == 0
    texts = chromium.run("return [...document.querySelectorAll('svg')].map(e => e.textContent)")
    assert len(texts) == 5 and all(visible(HOSTILE) in text and "_quiet" in text for text in texts)
    shown = chromium.run("return document.body.textContent")
    assert shown.count("<img src=https://example.com/x.png onerror=alert(2)>$x_1$") >= 8
    ids = chromium.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    links = chromium.run("return [...document.querySelectorAll('use')].map(e => e.getAttribute('href'))")
    assert links and {link.removeprefix("#") for link in links} <= set(ids)


def test_the_page_shows_every_part_and_stays_inside_its_window(chromium: Browser, tmp_path: Path):
    chromium.open(write(record(), tmp_path)[0])
    heads = chromium.run("return [...document.querySelectorAll('h2')].map(e => e.textContent)")
    parts = [table.title for table in tables(ReportFacts(record()))]
    figures = [
        "Quality against cost",
        "Learning curves",
        "Sensitivity to the learning rate",
        "Memory, planned and measured",
    ]
    assert set(heads) == {*parts, *figures, "Forgetting against gain", "The recipes themselves"} and len(parts) == 7
    assert chromium.run("return document.querySelectorAll('figure svg').length") == 5
    for width in (1280, 400):
        chromium.width(width)
        inner, needed = chromium.run("return [innerWidth, document.documentElement.scrollWidth]")
        assert inner == width and needed <= width
    chromium.width(1280)
    first = chromium.run("return document.querySelector('.answer').getBoundingClientRect().bottom")
    assert first < 300  # the answer needs no scrolling


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2) of rgb(r, g, b)."""
    parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_series_stand_out_in_both_schemes(chromium: Browser, tmp_path: Path, scheme: str):
    """Contrast with the card: 4.5 for text and 3 for marks (WCAG 2.1, 1.4.3 and 1.4.11)."""
    chromium.open(write(record(), tmp_path)[0])
    chromium.scheme(scheme)
    script = (
        "const seen = new Set(); for (const e of document.querySelectorAll({})) {{ const s = getComputedStyle(e); {} }}"
    )
    card = chromium.run("return getComputedStyle(document.querySelector('figure')).backgroundColor")
    assert (luminance(card) > 0.5) == (scheme == "light")
    text = chromium.run(script.format("'svg text'", "seen.add(s.fill)") + "return [...seen]")
    marks = chromium.run(
        script.format("'svg g[id*=line2d] path[style*=\"--s\"]'", "seen.add(s.stroke)") + "return [...seen]"
    )

    def contrast(colour: str) -> float:
        bright, dark = sorted((luminance(colour), luminance(card)), reverse=True)
        return (bright + 0.05) / (dark + 0.05)

    assert text and min(map(contrast, text)) >= 4.5
    assert len(marks) >= 4 and min(map(contrast, marks)) >= 3


def test_rows_differ_without_colour(chromium: Browser, tmp_path: Path):
    """In the learning curves every row has a dash of its own."""
    chromium.open(write(record(), tmp_path)[0])
    script = (
        "return [...document.querySelectorAll('[id^=curves-legend] path')].map(e => getComputedStyle(e))"
        ".filter(s => s.fill === 'none').map(s => s.strokeDasharray)"
    )
    dashes = chromium.run(script)
    assert len(dashes) == 5 == len(set(dashes)), unescape(str(dashes))


def chosen(accuracies: dict[str, float], low: float) -> dict[str, Any]:
    """The made record with choice accuracies, the best one's interval from ``low``; gamma_v2 ties with alpha."""
    made = record()
    for row in made["rows"]:
        if row["name"] in accuracies:
            value = accuracies[row["name"]]
            row["mean"]["choice_accuracy"] = value
            row.setdefault("interval", {})["choice_accuracy"] = [min(low, value), value + 0.05]
    choices = {"choices": ["yes", "no"], "questions": 100, "wanted": [45, 55], "chance": 0.5, "majority": 0.55}
    return {**made, "choices": choices, "ties_by": {"choice_accuracy": [["gamma_v2", "alpha"]]}}


@pytest.mark.parametrize(("low", "vain"), [(0.5501, False), (0.55, True)])
def test_choice_accuracy_stands_beside_what_needs_no_model(low: float, vain: bool) -> None:
    found = ReportFacts(chosen({"base": 0.41, "alpha": 0.625, "beta": 0.6, "gamma_v2": 0.61}, low))
    text = dict(reasons(found))["Choices"]
    assert text.startswith(
        "alpha finds the right choice likeliest in 62.5% of the test rows; inside the noise, so a tie: "
    )
    assert "a tie: gamma_v2; the base: 41.0%; always the most frequent choice: 55.0%; a guess: 50.0%" in text
    assert ("none is above the most frequent choice" in text) == vain
    (table,) = (table for table in tables(found) if table.title == "Scores by task")
    column = table.head.index("choice_accuracy")
    cells = {row[0]: row[column] for row in table.rows}
    assert cells["alpha"] == f"0.625 ({low:.3f} to 0.675)" and cells["delta"] == "" and "0.550" in table.note
    assert "Right answers" in [plot.title for plot in plots(found)]
    assert "Choices" not in dict(reasons(ReportFacts(record())))
