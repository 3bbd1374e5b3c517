"""What the survey says of these methods, and what counting or this comparison says to it.

The survey is arXiv 2510.12178. Its figures are those in the project's notes of it; docs/measured/survey-tables.md has
them with the reasons. MEASURED are the questions that its tables are about, in our words. Each is judged by counting,
by this comparison, or not at all, and then that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import torch

from halter.adapters.adapter import Adapter
from halter.contract.method import Method
from halter.methods.excitor import Excitor
from halter.methods.llama_adapter import LlamaAdapter
from halter.methods.llama_adapter_v2 import LlamaAdapterV2
from halter.methods.lora import Lora
from halter.model.config import preset
from halter.model.storages import STORAGES

ClaimKind = Literal["arithmetic", "measured", "not testable here"]
Verdict = dict[str, Any]
FinishedRow = Mapping[str, Any]
Judged = tuple[bool | None, str] | None
"""(whether it holds, figures); (None, why it cannot be told); None where rows are missing."""
SEVEN = "llama-1-7b"
WITHIN = 0.05
"""A count holds within 5 % of itself: the survey's figures are rounded."""
LARGE = 1e9
"""Bytes of a process below which its own weight hides the model's."""
PROVEN, SLOWER, APART = 1e-3, 0.02, 0.1
"""Nats of a merge that count as equal; share of a speed that is noise; difference of stability that counts."""

SHARES: tuple[tuple[str, float, Method], ...] = (
    ("LoRA of rank 8 trains about 2.5M parameters, 0.036 %", 0.00036, Lora(r=8, target_modules=("q_proj", "v_proj"))),
    ("LLaMA-Adapter trains 0.017 %", 0.00017, LlamaAdapter()),
    ("LLaMA-Adapter V2 trains 14M parameters, 0.20 %", 0.0020, LlamaAdapterV2(scale_side="in")),
    ("LLaMA-Excitor trains about 0.5M parameters, 0.007 %", 0.00007, Excitor()),
)
"""(claim about LLaMA-7B, its share, the setting that it is counted on)."""
MERGES: tuple[tuple[str, bool, Method], ...] = (
    ("LLaMA-Excitor can be merged into the base", True, Excitor()),
    ("LLaMA-Adapter V2 cannot be merged into the base", False, LlamaAdapterV2()),
)
ELSEWHERE = (
    ("LLaMA-Excitor reaches 88.4 % on ScienceQA", "needs pictures and the 7B model; its page gives 85.41 % alone"),
    ("LLaMA-Excitor gains 6 % on MMLU", "needs the 7B model"),
    (
        "LLaMA-Adapter V2 surpasses GPT-4 on questions about pictures",
        "needs pictures; its authors report no such result",
    ),
    ("QLoRA tunes a 65B model within 48 GB", "needs one GPU with 48 GB and the 65B model"),
)


def verdict(claim: str, kind: ClaimKind, holds: bool | None, size: str, figures: str) -> Verdict:
    return {"claim": claim, "verdict": kind, "holds": holds, "size": size, "figures": figures}


def _built(method: Method) -> Adapter:
    with torch.device("meta"):
        return Adapter(preset(SEVEN), [method])


@cache
def arithmetic() -> tuple[Verdict, ...]:
    """What is settled by building the method on LLaMA-7B's shape, without weights."""
    whole = preset(SEVEN).num_parameters
    size, found = f"LLaMA-7B, {whole:,} parameters", []
    for claim, told, method in SHARES:
        count = _built(method).num_trainable
        holds = abs(told - count / whole) <= WITHIN * count / whole
        found.append(verdict(claim, "arithmetic", holds, size, f"{count:,}, {count / whole:.3%}"))
    for claim, merges, method in MERGES:
        stuck = _built(method).unfoldable()
        what = f"{len(stuck)} places are no change of weights" if stuck else "every place folds into a weight"
        found.append(verdict(claim, "arithmetic", merges == (not stuck), size, what))
    return tuple(found)


class Measured:
    """The finished rows of a comparison, and whether two of them tie."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.rows = [row for row in record["rows"] if row["status"] == "done" and row["mean"]]
        self.ties = {frozenset(pair) for pair in record["ties"]}
        self.size = f"{record['base']['parameters']:,} parameters, {record['budget']['tokens']:,} tokens a run"
        self.trained = [row for row in self.rows if row["method"] is not None]
        self.dense = [row for row in self.trained if row["precision"] not in STORAGES]

    def one(self, method: str, nf4: bool = False) -> FinishedRow | None:
        """The row of a method by itself."""
        rows = [row for row in self.trained if row["precision"] == "nf4"] if nf4 else self.dense
        return next((r for r in rows if isinstance(r["method"], Mapping) and r["method"].get("name") == method), None)

    def worse(self, one: FinishedRow, other: FinishedRow) -> bool:
        """Whether ``one`` has more loss than ``other`` by more than the noise."""
        tied = frozenset((one["name"], other["name"])) in self.ties
        return not tied and one["mean"]["test_loss"] > other["mean"]["test_loss"]

    def twins(self) -> list[tuple[FinishedRow, FinishedRow]]:
        """(row, the same method over nf4)."""
        fours = [row for row in self.trained if row["precision"] == "nf4"]
        return [(row, four) for row in self.dense for four in fours if row["method"] == four["method"]]


def _losses(rows: Sequence[FinishedRow]) -> str:
    """Their losses, by which they are judged, and their choice accuracies where there are."""
    text = "test loss: " + "; ".join(f"{row['name']} {row['mean']['test_loss']:.4f}" for row in rows)
    if all("choice_accuracy" in row["mean"] for row in rows):
        text += ". Choice accuracy: "
        text += "; ".join(f"{row['name']} {row['mean']['choice_accuracy']:.1%}" for row in rows)
    return text


def _full(m: Measured) -> Judged:
    full, others = m.one("full"), [row for row in m.dense if row is not m.one("full")]
    if full is None or not others:
        return None
    best = min(others, key=lambda row: row["mean"]["test_loss"])
    return not m.worse(best, full), _losses([full, best])


def _four_bits(m: Measured) -> Judged:
    pair = m.one("lora"), m.one("lora", nf4=True)
    if pair[0] is None or pair[1] is None:
        return None
    return not m.worse(pair[1], pair[0]), _losses([pair[0], pair[1]])


def _memory(m: Measured) -> Judged:
    known = [p for p in m.twins() if all(row["memory"]["measured_peak_bytes"] for row in p)]
    if not known:
        return None
    peaks = [[row["memory"]["measured_peak_bytes"] / 1e6 for row in pair] for pair in known]
    told = (f"{pair[0]['name']} {a:,.0f} and {b:,.0f} MB" for pair, (a, b) in zip(known, peaks, strict=True))
    figures = "peak of training: " + "; ".join(told)
    if max(map(max, peaks)) < LARGE / 1e6:
        return None, f"{figures}; below 1 GB most of it is Python and its libraries"
    return all(b < a for a, b in peaks), figures


def _forgetting(m: Measured) -> Judged:
    full, rows = m.one("full"), [row for row in m.dense if row["mean"].get("forgetting") is not None]
    if full not in rows or len(rows) < 2:
        return None
    lost = {row["name"]: row["mean"]["forgetting"] for row in rows}
    least = lost.pop(full["name"])  # type: ignore[index]
    figures = "; ".join(f"{name} {value:+.3f}" for name, value in {full["name"]: least, **lost}.items())  # type: ignore[index]
    return all(value < least for value in lost.values()), "loss on general text: " + figures


def _merging(m: Measured) -> Judged:
    rows = [row for row in m.dense if row["merge_gap"] is not None]
    if not rows:
        return None
    figures = "; ".join(f"{row['name']} {row['merge_gap']:.1e}" for row in rows)
    return all(row["merge_gap"] <= PROVEN for row in rows), "divergence in nats of the merged model: " + figures


def _decoding(m: Measured) -> Judged:
    speeds = {row["name"]: row["decode_share"] for row in m.dense if row["decode_share"]}
    if not speeds:
        return None
    figures = "; ".join(f"{name} {speed:.0%}" for name, speed in speeds.items())
    return all(speed < 1 - SLOWER for speed in speeds.values()), "of the base's tokens a second: " + figures


def _rates(m: Measured) -> Judged:
    known = {row["name"]: row["stability"] for row in m.dense if row["stability"] is not None}
    if len(known) < 2:
        return None
    figures = "; ".join(f"{name} {value:.2f}" for name, value in known.items())
    return max(known.values()) - min(known.values()) > APART, "stability, 1 being the same at every rate: " + figures


MEASURED: tuple[tuple[str, Callable[[Measured], Judged]], ...] = (
    ("An adapter matches full fine-tuning", _full),
    ("QLoRA matches LoRA of the same rank and places", _four_bits),
    ("A 4-bit base takes less memory in training", _memory),
    ("Adapters forget less than full fine-tuning", _forgetting),
    ("A merged adapter is the same model", _merging),
    ("Adapters that are not merged slow decoding down", _decoding),
    ("Methods differ in how much the learning rate matters (section 8.2)", _rates),
)


def verdicts(record: Mapping[str, Any]) -> list[Verdict]:
    """Every claim: counted, measured on these rows, or said to be out of reach here."""
    measured, found = Measured(record), list(arithmetic())
    for claim, judge in MEASURED:
        result = judge(measured) if measured.trained else None
        holds, figures = result or (None, "the rows for it are not there")
        kind: ClaimKind = "not testable here" if holds is None else "measured"
        found.append(verdict(claim, kind, holds, measured.size, figures))
    return found + [verdict(claim, "not testable here", None, "7B and more", why) for claim, why in ELSEWHERE]
