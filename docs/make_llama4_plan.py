"""Write docs/measured/llama-4-plan.md, what adapts Scout within some amounts of memory: `make pages`.

Every figure is computed by `halter plan`'s own code on tensors without memory; nothing of it was measured. A nightly
test holds the page to this script.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from halter.comparison.report.writing import table_lines
from halter.contract.method import Method
from halter.contract.registry import find
from halter.methods.lora import Lora
from halter.model.families import published
from halter.model.layout import EXPERTS
from halter.planning import dry, fit
from halter.planning.setting import Setting

PAGE = Path(__file__).resolve().parent / "measured" / "llama-4-plan.md"
MODEL = "llama-4-scout"
AMOUNTS = (48, 80, 141)
"""Gigabytes of 10^9: an L40S or A6000, an A100 or H100, an H200."""
LENGTH = 2048
METHODS: dict[str, Method] = {
    "LoRA, q and v, r 8": Lora(r=8, target_modules=["q_proj", "v_proj"]),
    "LoRA, every linear layer, r 16": Lora(r=16, alpha=32),
    "LLaMA-Adapter": find("llama_adapter")(),
    "(IA)3": find("ia3")(),
}
HELD = {None: "bfloat16", "int8": "8 bits", "nf4": "NF4"}


@dataclass(frozen=True)
class Way:
    """One way to adapt the model, and what it takes with one row in a micro-batch."""

    name: str
    held: str
    streamed: bool
    trained: int
    need: int
    host: int
    rows: tuple[int, ...]
    """The most rows of LENGTH tokens in a micro-batch within each of AMOUNTS."""


def ways() -> Iterator[Way]:
    """Every method held in every way, with its layers on the device or in CPU memory; activations recomputed."""
    shape = published(MODEL)
    for name, method in METHODS.items():
        for quantize, held in HELD.items():
            for streamed in (False, True):
                one = Setting(MODEL, shape, (method,), torch.bfloat16, quantize, length=LENGTH, offload=streamed)
                one = replace(one, checkpointing=True)
                need = fit.needs(one)
                base = dry.base_bytes(dry.dry_base(shape, torch.bfloat16, quantize), streamed)
                rows = tuple(fit.most_rows(need, LENGTH, amount * 10**9) for amount in AMOUNTS)
                trained = fit.standing(one).trained
                yield Way(name, held, streamed, trained, need.bytes(1, LENGTH), base.host, rows)


def page() -> str:
    """docs/measured/llama-4-plan.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    shape = published(MODEL)
    few = any(place.kind == EXPERTS for place in shape.layout.in_few_bits())
    experts = "routed experts are in the same few bits" if few else "routed experts stay in bfloat16"
    yield from ("# What adapts Llama 4 Scout within 48, 80 and 141 GB", "")
    yield (
        f"**Computed, not measured.** `halter plan`'s own reckoning for Scout ({shape.num_parameters:,} parameters, "
        f"{shape.active_parameters:,} of them for a token of text): one row of {LENGTH:,} tokens in a micro-batch, "
        "activations recomputed, AdamW in 32 bits. No published Llama 4 was ever loaded here, and none of these runs "
        "was made. How near such a reckoning is for dense models: [plan accuracy](plan-accuracy.md)."
    )
    yield ""
    yield (
        f"Where linear layers are in few bits, {experts}, and routers, norms, embeddings and head stay in bfloat16. "
        "*In CPU memory* means `offload: layers`: two layers at a time lie on the GPU. The tower of pictures is in "
        "these figures; what it makes of pictures is not. LoRA on every linear layer adapts routers and the tower too, "
        "and leaves routed experts alone."
    )
    yield ""
    rows = []
    for way in ways():
        where = f"in CPU memory ({way.host / 1e9:,.1f} GB there)" if way.streamed else "on the GPU"
        told = [f"{count} row{'' if count == 1 else 's'}" if count else "does not fit" for count in way.rows]
        rows.append([way.name, f"{way.trained:,}", way.held, where, f"{way.need / 1e9:,.1f} GB", *told])
    heads = [f"within {amount} GB" for amount in AMOUNTS]
    yield from table_lines(["method", "trained", "held in", "layers lie", "one row takes", *heads], rows)
    yield ""
    yield (
        f"A count of rows is the most of {LENGTH:,} tokens each that fit in one micro-batch; the CUDA context (about "
        "half a gigabyte), other programs and fragmentation are not in it. `halter plan --model llama-4-scout --memory "
        "80GB` ranks every method. The page is written by `make pages`."
    )
    yield ""
    yield (
        "A row and a further row are reckoned from passes of four and of eight layers and of up to 4,096 tokens. "
        "Against the same reckoning with all 48 layers, of 1 and 16 rows, LoRA and (IA)3 in bfloat16 and NF4 were "
        "within 1 % (30 November). Until that day the passes had two and four layers and up to 1,024 tokens: of so "
        "few another moment is the worst, and two layers leave out the kind that every fourth is. With LoRA on q and "
        "v that gave 30 to 62 % of what all layers give, and for a further row in NF4 twice what it gave in bfloat16; "
        "it takes the same in both."
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
