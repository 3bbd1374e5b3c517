"""What the survey (arXiv 2510.12178) says of LLaMA's members and of the methods, and what is so: each claim once.

Every true figure is counted by the methods themselves on torch's meta device. docs/make_survey_tables.py makes the page
of it; the figures of Table 2 stand in halter/planning/survey.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from halter.model.config import preset
from halter.planning import dry
from halter.planning.survey import EXCITOR, LARGE, QV, RECIPE, SETTINGS, V1, V2, V2_PROMPTS, Q, counted, share

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
