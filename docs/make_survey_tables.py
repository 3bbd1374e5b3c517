"""Write docs/measured/survey-tables.md from the code's own counts and from what was measured here: `make pages`.

A test holds the page to this script. Table 2's figures stand in halter/planning/survey.py, the others here, each once;
every true figure is counted by the methods themselves on torch's meta device, and every measured one is read from the
record of a comparison or from docs/measured/learning-curves.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from halter.comparison.report.facts import ReportFacts
from halter.comparison.report.tables import ReportTable, tables
from halter.comparison.report.writing import table_lines
from halter.model.config import preset
from halter.model.families import published
from halter.planning import dry
from halter.planning.survey import (
    EXCITOR,
    LARGE,
    MODELS,
    QV,
    RECIPE,
    SETTINGS,
    SEVEN,
    V1,
    V2,
    V2_PROMPTS,
    Q,
    counted,
    share,
    survey,
    told,
)

DOCS = Path(__file__).resolve().parent / "measured"
PAGE, RECORD, CURVES = DOCS / "survey-tables.md", DOCS / "example-report" / "record.json", DOCS / "learning-curves.md"
NO_NOTE = "not in our notes"
STATES = 16
"""Bytes a trained number takes: float32 weight, gradient and AdamW's two moments."""


def merges(setting: str) -> bool:
    """Whether every piece folds into a weight, as the pieces themselves say."""
    return not dry.dry_adapter(preset("llama-3.2-1b"), [SETTINGS[setting]]).unfoldable()


def base_bytes(model: str, nf4: bool) -> int:
    """Bytes of the weights in 16 bits, or with the seven linear layers in NF4 with double quantisation."""
    return dry.base_bytes(dry.dry_base(preset(model), torch.bfloat16, "nf4" if nf4 else None)).total


def gb(size: float) -> str:
    """Bytes as gigabytes of 10^9."""
    return f"{size / 1e9:.2f} GB"


@dataclass(frozen=True)
class Claim:
    """One thing that the survey says of a method, what is so, and how that is known."""

    method: str
    survey: str
    true: str
    judged: str


ARITHMETIC, SOURCES, UNTESTED = "counted by the code", "the authors' own code or page", "not measured here"


def claims() -> list[Claim]:
    """Table 4 and the claims around it."""
    yes = {True: "yes", False: "no"}
    return [
        Claim(
            "LoRA",
            "0.03 %, where Table 2 has 0.036 %",
            f"q and v: {share(counted(QV))}; q alone: {share(counted(Q))}",
            ARITHMETIC,
        ),
        Claim("LoRA", NO_NOTE, f"mergeable: {yes[merges(QV)]}", ARITHMETIC),
        Claim("LoRA", "two linear layers in the feed-forward part", "three, as in every LLaMA", ARITHMETIC),
        Claim(
            "LLaMA-Adapter",
            NO_NOTE,
            f"mergeable: {yes[merges(V1)]}; the attention to the prompts depends on the query",
            ARITHMETIC,
        ),
        Claim(
            "LLaMA-Adapter V2",
            "not mergeable",
            "partly: bias, scale and norms "
            f"{'merge' if merges(V2) else 'do not merge'}, prompts {'merge' if merges(V2_PROMPTS) else 'do not'}",
            ARITHMETIC,
        ),
        Claim(
            "LLaMA-Excitor",
            "mergeable",
            f"{yes[merges(EXCITOR)]}: the extra key is a softmax over the input",
            ARITHMETIC,
        ),
        Claim(
            "LLaMA-Excitor",
            "88.4 % on ScienceQA",
            "85.41 % for the method alone; 88.39 % is together with LoRA and pictures of 336 pixels",
            f"{SOURCES}; {UNTESTED}: it needs pictures and the 7B model",
        ),
        Claim(
            "LLaMA-Excitor",
            "MMLU graded by GPT-4, 6 % above LLaMA-Adapter",
            "MMLU is accuracy, and the comparison "
            "is with LLaMA-7B: 3.12 % relative in the paper's text, 6 % in its listed abstract",
            f"{SOURCES}; {UNTESTED}: it needs the 7B model",
        ),
        Claim(
            "LLaMA-Adapter V2",
            "surpasses GPT-4 on some questions about pictures",
            "no such result: GPT-4 was the judge, the comparison was with ChatGPT on text",
            f"{SOURCES}; {UNTESTED}",
        ),
        Claim(
            "QLoRA",
            "no gradient flows through the 4-bit weights",
            "it flows through them to the adapters below; the weights themselves get none",
            "tests/model/test_nf4_linear.py",
        ),
        Claim("QLoRA", "paged optimizers manage gradient accumulators", "they page the optimizer's states", SOURCES),
        Claim("QLoRA", "65B in 48 GB of RAM", f"it is the memory of one GPU. {_large()}", f"{ARITHMETIC}; {UNTESTED}"),
    ]


def _large() -> str:
    base, states = base_bytes(LARGE, True), STATES * counted(RECIPE, LARGE)
    return (
        f"The 4-bit base takes {gb(base)}, the recipe's adapter with gradients and optimizer states in float32 "
        f"{gb(states)}, together {gb(base + states)} before activations"
    )


@dataclass(frozen=True)
class Member:
    """One row of Table 1: what the survey says, as far as our notes have it, what is so, and whether it runs."""

    name: str
    survey: str
    true: str
    sizes: tuple[str, ...]
    """Names of published models, whose parameters are counted."""
    runs: str
    tests: str = ""
    """The tests that show it."""


def lineage() -> list[Member]:
    """Table 1 and what else the survey says of these models; docs/guide/models.md has all of it."""
    dense, counts = "tests/model/test_decoder.py", "tests/model/test_config.py"
    meta, json_file = "tests/files/test_meta.py", "tests/pretrained/test_load.py"
    text, words = "tests/model/test_llama4_text.py", "tests/text/test_llama4_texts.py"
    whole = "pictures of rows and prompts too; adapters on no routed expert"
    seen, stored = "tests/generation/test_llama4_pictured.py", "tests/files/test_meta_llama4.py"
    announced = "16 experts, 288B active, about 2T: announced on 5 April 2025, never released"
    return [
        Member(
            "LLaMA 1",
            NO_NOTE,
            "24 February 2023; 2K; no key heads are shared in any size",
            ("llama-1-7b", "llama-1-13b", "llama-1-33b", "llama-1-65b"),
            "runs",
            f"{dense}, {meta}, {counts}",
        ),
        Member(
            "Llama 2",
            "context about 2K",
            "18 July 2023; 4K in all sizes; shared key heads in 70B",
            ("llama-2-7b", "llama-2-13b", "llama-2-70b"),
            "runs",
            f"{dense}, {meta}, {counts}",
        ),
        Member(
            "Llama 3",
            '"later in 2023"; 128K; missing in Table 1',
            "18 April 2024; 8K",
            ("llama-3-8b", "llama-3-70b"),
            "runs",
            f"{dense}, {meta}, tests/text/test_tokenizer.py",
        ),
        Member(
            "Llama 3.1",
            "2023; some with 128K",
            "23 July 2024; 128K in all sizes",
            ("llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"),
            "runs",
            f"{dense}, tests/model/test_rotation.py, {meta}",
        ),
        Member(
            "Llama 3.2, text",
            "November 2023; vision variants with 1B to 90B",
            "25 September 2024; 128K; text alone; head tied to the embeddings",
            ("llama-3.2-1b", "llama-3.2-3b"),
            "runs",
            f"{dense}, tests/model/test_rotation.py, {json_file}",
        ),
        Member(
            "Llama 3.2 Vision",
            "early fusion, no encoder of its own",
            "25 September 2024; 11B and 90B; a tower of its own and cross-attention",
            (
                *("llama-3.2-11b-vision", "llama-3.2-11b-vision-instruct"),
                *("llama-3.2-90b-vision", "llama-3.2-90b-vision-instruct"),
            ),
            "runs: pictures in the model, of rows and prompts seen on a small family alone",
            "tests/model/test_mllama.py, tests/model/test_mllama_folders.py, tests/files/test_meta_mllama.py",
        ),
        Member(
            "Llama 3.3",
            NO_NOTE,
            "6 December 2024; 128K",
            ("llama-3.3-70b",),
            "runs",
            f"{dense}, tests/model/test_rotation.py",
        ),
        Member(
            "Llama 4 Scout",
            '10M; "effectively trillions"; runs on one H100',
            "5 April 2025; 10M (Instruct; base 256K); 16 experts and a shared one in every layer; on one "
            "H100 in int4 alone",
            ("llama-4-scout",),
            f"runs: {whole}",
            f"{text}, {seen}, {words}, {stored}",
        ),
        Member(
            "Llama 4 Maverick",
            "10M; a shared expert and one of 128 in each layer",
            "5 April 2025; 1M (Instruct; base 256K); so in its odd layers, the even ones are dense",
            ("llama-4-maverick",),
            f"runs: {whole}",
            f"{text}, {seen}, {words}, {stored}",
        ),
        Member("Llama 4 Behemoth", "320 experts expected; about 10M; a 288B base", announced, (), "does not exist"),
    ]


def page() -> str:
    """docs/measured/survey-tables.md."""
    parts = [_head(), _table1(), _table2(), _table3(), _measured(), _table4(), _formulas()]
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
