"""Write docs/measured/survey-tables.md from the code's own counts and from what was measured here: `make pages`.

A test holds the page to this script. Table 2's figures stand in halter/planning/survey.py, what else the survey says in
docs/survey_claims.py, the other figures here, each once; every true figure is counted by the methods themselves on
torch's meta device, and every measured one is read from the record of a comparison or from
docs/measured/learning-curves.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from survey_claims import NO_NOTE, STATES, base_bytes, claims, gb, lineage

from halter.comparison.report.facts import ReportFacts
from halter.comparison.report.tables import ReportTable, tables
from halter.comparison.report.writing import table_lines
from halter.model.config import preset
from halter.model.families import published
from halter.planning.survey import (
    EXCITOR,
    MODELS,
    QV,
    RECIPE,
    SETTINGS,
    SEVEN,
    V1,
    V2,
    counted,
    share,
    survey,
    told,
)

DOCS = Path(__file__).resolve().parent / "measured"
PAGE, RECORD, CURVES = DOCS / "survey-tables.md", DOCS / "example-report" / "record.json", DOCS / "learning-curves.md"
PICTURES, BLIND = DOCS / "pictures-report" / "record.json", "blind-lora"
"""The comparison of benchmarks/compare_pictures.yaml, and its method that sees nothing."""


def page() -> str:
    """docs/measured/survey-tables.md."""
    parts = [_head(), _table1(), _table2(), _table3(), _measured(), _vision(), _table4(), _formulas()]
    return "\n".join(line for part in parts for line in part)


def _head() -> Iterator[str]:
    yield "# The survey's tables, counted and measured again"
    yield ""
    yield (
        "The survey is *Evolution of Meta's LLaMA Models and Parameter-Efficient Fine-Tuning of Large Language Models* "
        "(arXiv 2510.12178). Its tables compare five methods on LLaMA-7B with figures from different papers, without "
        "full fine-tuning as a baseline."
    )
    yield ""
    yield (
        "Written by `make pages` (docs/make_survey_tables.py). True counts are those of Halter's own methods, built "
        "without weights; measured figures come from a run of `halter compare` or from [learning curves]"
        "(learning-curves.md), and what was not measured is said not to be. Of the survey's tables only those cells "
        "stand here that the project has notes of. Table 2 has the counts and shares, Table 3 repeats LoRA's count, "
        "and Table 4 has LoRA's share once more; of memory, merging and results the notes do not tell in which "
        "table, or where else in the text, they stand."
    )
    yield ""


def _table1() -> Iterator[str]:
    yield from ("## Table 1: the models", "")
    yield (
        "What our notes have of it and of the text around it; every model that exists stands here. Parameters are "
        "counted from the layout that runs; where a token of text passes fewer, those too. *Runs* "
        "means: logits equal to transformers' on random weights, in the tests named; no published checkpoint of these "
        "was at hand."
    )
    yield ""
    rows = []
    for member in lineage():
        sizes = "; ".join(f"{name}: {_parameters(name)}" for name in member.sizes) or "none here"
        rows.append([member.name, member.survey, member.true, sizes, member.runs, member.tests or "none"])
    yield from table_lines(["model", "the survey", "what is so", "parameters", "here", "shown by"], rows)
    yield ""


def _parameters(name: str) -> str:
    shape = published(name)
    active = shape.active_parameters
    return f"{shape.num_parameters:,}" + (f" ({active:,} a token)" if active < shape.num_parameters else "")


def _table2() -> Iterator[str]:
    yield from ("## Tables 2 and 3: what is trained on LLaMA-7B", "")
    rows = [[c.method, c.survey, told(c.setting), c.setting, c.why] for c in survey(preset(SEVEN))]
    yield from table_lines(["method", "the survey", "true", "of what", "why they differ"], rows)
    yield from ("", "The same on other models:", "")
    rows = [[setting, *(f"{counted(setting, model):,}" for model in MODELS)] for setting in SETTINGS]
    yield from table_lines(["trained parameters", *MODELS], rows)
    yield ""
    rows = [[setting, *(share(counted(setting, model), model) for model in MODELS)] for setting in SETTINGS]
    yield from table_lines(["share of the model", *MODELS], rows)
    yield ""


def _table3() -> Iterator[str]:
    yield from ("## Tables 3 and 4: what it costs", "")
    yield (
        "The notes have the survey's memory without length, batch or precision of the states, so its figures cannot be "
        "checked, only held against the least that is needed: the weights, and 16 bytes for every trained number "
        "(float32 weight, gradient, two moments of AdamW). Activations come on top and depend on the rows; "
        "`halter plan --model llama-1-7b --method lora --max-length 512` reckons them."
    )
    yield ""
    rows = []
    for method, setting, nf4, said in (
        ("LoRA", QV, False, NO_NOTE),
        ("QLoRA", RECIPE, True, "12 GB"),
        ("LLaMA-Adapter", V1, False, NO_NOTE),
        ("LLaMA-Adapter V2", V2, False, NO_NOTE),
        ("LLaMA-Excitor", EXCITOR, False, "about 15 GB; no source has it"),
    ):
        base, states = base_bytes(SEVEN, nf4), STATES * counted(setting)
        rows.append([method, said, gb(base) + (" (NF4)" if nf4 else " (16 bits)"), gb(states), gb(base + states)])
    states = STATES * preset(SEVEN).num_parameters
    rows.append(["full fine-tuning", "not in the survey", "none beside the trained", gb(states), gb(states)])
    yield from table_lines(["method", "the survey", "base of 7B", "trained numbers", "at least"], rows)
    yield ""


def _measured() -> Iterator[str]:
    yield from ("### Measured", "")
    if RECORD.is_file():
        found = ReportFacts(json.loads(RECORD.read_text("utf-8")))
        base = found.record["base"]
        yield (
            f"The same comparison at the size of this project's machines: a base of {base['parameters']:,} parameters, "
            f"{found.record['budget']['tokens']:,} tokens and {found.record['budget']['seeds']} seeds for each method, "
            "learning rates searched with equal effort, full fine-tuning as the baseline. From the record of "
            "[the example report](example-report/report.md). What holds at this size need not hold at 7B."
        )
        wanted = ("Results", "Scores by task", "What training costs", "What using it costs", "Claims of the survey")
        for table in tables(found):
            if table.title in wanted:
                yield from _measured_table(table)
    else:
        yield (
            "Memory, speed and quality side by side: not measured yet. `make report` runs the comparison and writes "
            "them here."
        )
        yield ""
    yield from _curves()


def _measured_table(table: ReportTable) -> Iterator[str]:
    yield from ("", f"#### {table.title}", "", table.note, "")
    yield from table_lines(table.head, table.rows)
    yield ""


def _curves() -> Iterator[str]:
    """The survey's methods in docs/measured/learning-curves.md."""
    text = CURVES.read_text("utf-8")
    wanted = ("full", "lora", "llama_adapter", "llama_adapter_v2", "excitor")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if re.match(r"\| (\w+) ", line) and line.split()[1] in wanted
    ]
    rows.sort(key=lambda row: wanted.index(row[0]))
    yield (
        "One seed each with default settings, the playground's base of 3.3M parameters; all methods and the run's "
        "circumstances: [learning curves](learning-curves.md)."
    )
    yield ""
    head = next(line for line in text.splitlines() if line.startswith("| method"))
    yield from table_lines([cell.strip() for cell in head.strip("|").split("|")], rows)
    yield ""


def _vision() -> Iterator[str]:
    """Table 3's column: a method sees where its loss on questions about pictures is below that of LoRA without any, and
    the interval of the paired difference does not hold 0."""
    yield from ("### Application to vision", "")
    if not PICTURES.is_file():
        yield from ("Not measured yet: `halter compare benchmarks/compare_pictures.yaml`.", "")
        return
    record = json.loads(PICTURES.read_text("utf-8"))
    done = {row["name"]: row for row in record["rows"] if row["status"] == "done"}
    blind, ties = done[BLIND]["mean"], [set(pair) for pair in record["ties"]]
    yield (
        "What Table 3 says in this column is not in our notes. Here each method lets the playground's base, which has "
        "read no picture, answer questions about unseen drawings, through the playground's encoder: "
        f"{record['budget']['tokens']:,} tokens and {record['budget']['seeds']} seed for each, learning rates searched "
        f"with equal effort ({record['budget']['search_trials']} a method). LoRA alone is blind and knows what "
        "is usually answered. *Sees*: its loss is lower than that of the blind one, and they are no tie. The tokens "
        "are few: with fifteen times as many projector and LoRA answer 68 %, and 19 % without the picture "
        "([pictures](../applications/pictures.md)). From the [record](pictures-report/report.md) of "
        "`halter compare benchmarks/compare_pictures.yaml`."
    )
    yield ""
    rows = []
    for name, row in done.items():
        mean = row["mean"]
        sees = mean["test_loss"] < blind["test_loss"] and {name, BLIND} not in ties
        gain = mean.get("exact_match", 0) - blind.get("exact_match", 0)
        verdict = "" if name in ("base", BLIND) else "sees" if sees else "does not see"
        figures = (f"{mean['test_loss']:.4f}", f"{mean.get('exact_match', 0):.1%}", f"{100 * gain:+.1f}")
        rows.append([name, verdict, f"{row['trainable']:,}", *figures])
    yield from table_lines(["method", "verdict", "trained", "loss", "exact match", "points above blind"], rows)
    yield ""


def _table4() -> Iterator[str]:
    yield from ("## Table 4: properties and results", "")
    rows = [[claim.method, claim.survey, claim.true, claim.judged] for claim in claims()]
    yield from table_lines(["method", "the survey", "what is so", "known from"], rows)
    yield ""


def _formulas() -> Iterator[str]:
    yield from ("## Formulas that differ", "")
    yield from (
        "Halter follows the authors; the page of each method has the formula that is built.",
        "",
        "- [LoRA](../methods/lora.md): equation 10 lacks alpha / r and the dropout; B's rows are the layer's outputs, "
        "fewer for k and v where heads are shared.",
        "- [LLaMA-Adapter](../methods/llama_adapter.md): equations 13 to 15 let prompts ask questions, use one softmax "
        "and add the result to the hidden state; at a gate of zero that leaves no attention at all. The authors have "
        "two softmaxes, prompts without queries, and a gate a head on the prompts' part only.",
        "- [LLaMA-Adapter V2](../methods/llama_adapter_v2.md): equation 22 fuses pictures at any layer (paper: the "
        "first; code: nowhere); equation 24 trains everything on one sum of losses (paper: disjoint groups; code: 2 "
        "stages).",
        "- [LLaMA-Excitor](../methods/excitor.md): a bias that depends on the prompts alone, or a query's bias; it is "
        "an extra key, mixed from the prompts by every token.",
        "- Every method: RMSNorm without bias and SwiGLU with three matrices stand where the survey has LayerNorm, "
        "GELU and two.",
        "",
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
