"""The survey's claims: counts that are known from the authors' own code, and measured ones turned this way and that."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from halter.comparison.record import RecordRow
from halter.comparison.survey import verdicts


def row(name: str, loss: float, precision: str = "float32", **known: Any) -> dict[str, Any]:
    method = {"name": name.removesuffix("-nf4")} if not name.startswith("base") else None
    mean = {"test_loss": loss, "forgetting": known.pop("forgetting", 0.0)}
    memory = {"planned": None, "measured_peak_bytes": known.pop("peak", 10)}
    return asdict(RecordRow(name, method, precision, mean=mean, memory=memory, **known))


def judged(rows: list[dict[str, Any]], ties: tuple[tuple[str, str], ...] = ()) -> dict[str, dict[str, Any]]:
    head = {"base": {"parameters": 1000}, "budget": {"tokens": 500}}
    return {v["claim"]: v for v in verdicts({**head, "rows": rows, "ties": [list(pair) for pair in ties]})}


def test_counts_of_7b_are_the_authors() -> None:
    """1,229,760 is the official module's count; 2,764,800 is that of the released V2 (fact sheet, both counted)."""
    found = judged([])
    figures = {claim: (v["holds"], v["figures"]) for claim, v in found.items() if v["verdict"] == "arithmetic"}
    counts = [figure for _, figure in figures.values()][:4]
    assert counts == ["4,194,304, 0.062%", "1,229,760, 0.018%", "2,764,800, 0.041%", "7,618,590, 0.113%"]
    assert [holds for holds, _ in figures.values()][:4] == [False, False, False, False]
    assert figures["LLaMA-Excitor can be merged into the base"][0] is False
    assert figures["LLaMA-Adapter V2 cannot be merged into the base"][0] is False
    assert all(v["holds"] is None for v in found.values() if v["verdict"] == "not testable here")


def test_measured_claims_follow_the_rows_and_the_noise() -> None:
    base = row("base", 5.0)
    full = row("full", 1.0, forgetting=0.5, merge_gap=1e-6, decode_share=0.99)
    lora = row("lora", 1.2, forgetting=0.1, peak=2_000_000_000, merge_gap=1e-5, stability=0.9, decode_share=0.8)
    four = row("lora-nf4", 1.4, "nf4", peak=1_500_000_000)
    found = judged([base, full, lora, four], (("full", "lora"),))
    holds = {claim: v["holds"] for claim, v in found.items() if v["verdict"] == "measured"}
    assert holds["An adapter matches full fine-tuning"] is True
    assert holds["QLoRA matches LoRA of the same rank and places"] is False
    assert holds["A 4-bit base takes less memory in training"] is True
    assert holds["Adapters forget less than full fine-tuning"] is True
    assert holds["A merged adapter is the same model"] is True
    assert holds["Adapters that are not merged slow decoding down"] is False  # full's is noise
    assert found["An adapter matches full fine-tuning"]["figures"] == "test loss: full 1.0000; lora 1.2000"
    assert found["An adapter matches full fine-tuning"]["size"] == "1,000 parameters, 500 tokens a run"
    lora["memory"]["measured_peak_bytes"], four["memory"]["measured_peak_bytes"] = 20_000_000, 15_000_000
    assert judged([lora, four])["A 4-bit base takes less memory in training"]["holds"] is None
    lora["memory"]["measured_peak_bytes"], four["memory"]["measured_peak_bytes"] = 2_000_000_000, 2_500_000_000
    lora["merge_gap"], lora["mean"]["forgetting"] = 1e-2, 0.6
    found = judged([base, full, lora, four])
    assert [found[c]["holds"] for c in holds] == [False, False, False, False, False, False]


def test_what_is_not_there_is_not_judged() -> None:
    found = judged([row("base", 5.0), row("lora", 1.0), {**row("full", 0.0), "status": "left out", "mean": {}}])
    for claim in ("An adapter matches full fine-tuning", "QLoRA matches LoRA of the same rank and places"):
        assert found[claim]["verdict"] == "not testable here" and found[claim]["holds"] is None
