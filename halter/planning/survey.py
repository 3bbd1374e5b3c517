"""Table 2 of the survey (arXiv 2510.12178): its counts for LLaMA-7B beside the true ones, and those of every preset."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from halter.contract.method import Method
from halter.errors import Refusal
from halter.methods.excitor import Excitor
from halter.methods.llama_adapter import LlamaAdapter
from halter.methods.llama_adapter_v2 import LlamaAdapterV2
from halter.methods.lora import Lora
from halter.model.config import ModelConfig, preset
from halter.model.families import ANNOUNCED, published, published_names
from halter.planning.dry import base_bytes, dry_adapter, dry_base
from halter.planning.fit import HELD

SEVEN, LARGE = "llama-1-7b", "llama-1-65b"
MODELS = (
    "llama-1-7b",
    "llama-1-13b",
    "llama-1-33b",
    "llama-1-65b",
    "llama-2-70b",
    "llama-3-8b",
    "llama-3.1-405b",
    "llama-3.2-1b",
    "llama-3.2-3b",
)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SETTINGS: dict[str, Method] = {
    "LoRA, q, r 8": Lora(r=8, target_modules=["q_proj"]),
    "LoRA, q and v, r 8": Lora(r=8, target_modules=["q_proj", "v_proj"]),
    "LoRA, q k v o, r 8": Lora(r=8, target_modules=ATTENTION),
    "LoRA, all seven, r 8": Lora(r=8),
    "QLoRA's recipe: all seven, r 64": Lora(r=64),
    "LLaMA-Adapter": LlamaAdapter(),
    "LLaMA-Adapter V2, released: bias, input scale, norms": LlamaAdapterV2(scale_side="in"),
    "LLaMA-Adapter V2, paper without prompts: bias, output scale, norms": LlamaAdapterV2(),
    "LLaMA-Adapter V2, paper: the same and 10 prompts": LlamaAdapterV2(adapter_len=10),
    "LLaMA-Excitor": Excitor(),
}
"""What the counts are of. The authors' settings, as far as they are known; docs/methods says where each comes from."""
NOTE = (
    "Of a Llama 4 'all seven' are attention's four and the MLP's three, in a layer with experts those of the shared "
    "one and the router besides, and every linear layer of the tower; q, k, v and o are the tower's too. Routed "
    "experts are left alone by every setting."
)
Q, QV, QKVO, ALL, RECIPE, V1, V2, V2_PAPER, V2_PROMPTS, EXCITOR = SETTINGS


@cache
def counted(setting: str, model: str = SEVEN) -> int:
    """Trained parameters, counted by building the adapter where tensors have shapes and no numbers."""
    return dry_adapter(published(model), [SETTINGS[setting]]).num_trainable


def share(count: float, model: str = SEVEN) -> str:
    """A count as a share of the model's parameters, three digits."""
    percent = 100 * count / published(model).num_parameters
    return f"{percent:.3g} %"


def told(setting: str, model: str = SEVEN) -> str:
    """A count and its share."""
    return f"{counted(setting, model):,} ({share(counted(setting, model), model)})"


@dataclass(frozen=True)
class Count:
    """One line of the survey's counts for LLaMA-7B, and ours."""

    method: str
    survey: str
    setting: str
    why: str


def survey(shape: ModelConfig) -> list[Count]:
    """Table 2, with the reason for every difference; every figure in a reason is worked out here."""
    one = 2 * 8 * shape.dim
    prompts = shape.layers * (10 * shape.dim + 1)
    fourteen = 14e6
    return [
        Count(
            "LoRA, r 8",
            "about 2.5M, 0.036 %",
            QV,
            f"No set of places gives 2.5M at r 8: q alone has {counted(Q):,} ({share(counted(Q))}), q and v "
            f"{counted(QV):,}, q k v o {counted(QKVO):,}, all seven linear layers {counted(ALL):,}. The survey's "
            f"equation 11 adds 8 x {shape.dim} + {shape.dim} x 8 = {one:,} up to 98,304, which counts one half of it "
            f"twice, and calls one matrix 0.01 % of the model; it is {share(one)}. The scale alpha / r and the "
            "dropout of equation 10 are missing, but have no parameters.",
        ),
        Count(
            "QLoRA",
            "as LoRA: about 2.5M, 0.036 %",
            RECIPE,
            "The authors' recipe has r 64 on all seven linear layers: they found that adapters on all of them are "
            "needed to match full fine-tuning. A 4-bit base does not change what LoRA trains.",
        ),
        Count(
            "LLaMA-Adapter",
            "0.017 %",
            V1,
            f"The survey's formula has prompts in all {shape.layers} layers and one gate a layer, {prompts:,}. The "
            "authors' code has 10 prompts and one gate a head in the last 30 layers.",
        ),
        Count(
            "LLaMA-Adapter V2",
            "14M, 0.20 %",
            V2,
            f"14M is the 65B model: its released code trains {told(V2, LARGE)}. On 7B 14M would be "
            f"{share(fourteen)}, but nobody trained that. The method as the paper has it, without prompts: "
            f"{told(V2_PAPER)}; with them: {told(V2_PROMPTS)}. The survey's list of what is trained leaves out the "
            "scale of every channel and the optional LoRA, and names a bias of norms, which RMSNorm has not.",
        ),
        Count(
            "LLaMA-Excitor",
            "about 0.5M, 0.007 % and elsewhere 0.01 %",
            EXCITOR,
            "The survey counts a 1x1 convolution and a number a head, which the method has not. Its prompts and "
            "low-rank query in the top 30 layers make 7.6M, which agrees with what others quote of the paper. The "
            "authors' code was never published: rank 16 and 30 prompts are the likely values, not certain ones.",
        ),
    ]


def table() -> dict[str, Any]:
    """Plain data: the survey's Table 2 beside the true counts, and the counts on every preset."""
    rows = survey(preset(SEVEN))
    return {
        "model": SEVEN,
        "parameters": preset(SEVEN).num_parameters,
        "rows": [
            {
                "method": row.method,
                "survey": row.survey,
                "true": counted(row.setting),
                "share": counted(row.setting) / preset(SEVEN).num_parameters,
                "of": row.setting,
                "why": row.why,
            }
            for row in rows
        ],
        "presets": {name: counts(name) for name in published_names()},
        "announced": ANNOUNCED,
        "note": NOTE,
    }


def counts(name: str) -> dict[str, int | None]:
    """Exact counts of one published model: its parameters, bytes of its base where a token does not pass all of it, and
    what every setting trains; None where it acts at a place that not every layer has."""
    shape = published(name)
    found: dict[str, int | None] = {"parameters": shape.num_parameters}
    if shape.active_parameters < shape.num_parameters:
        found["active"] = shape.active_parameters
        for quantize in HELD:
            held = base_bytes(dry_base(shape, torch.bfloat16, quantize)).total
            found[f"{quantize or 'bf16'}_bytes"] = held
    return found | {"full": shape.num_parameters, **{setting: _counted_or_none(setting, name) for setting in SETTINGS}}


def _counted_or_none(setting: str, model: str) -> int | None:
    try:
        return counted(setting, model)
    except Refusal as refusal:
        if refusal.id != "no-such-place":
            raise
        return None


def table_text() -> str:
    """The table for people."""
    found = table()
    lines = [f"Table 2 of a survey (arXiv 2510.12178), LLaMA-7B ({found['parameters']:,} parameters)", ""]
    for row in found["rows"]:
        lines.append(f"{row['method']}: the survey has {row['survey']}; true is {row['true']:,} ({row['share']:.4%})")
        lines += [f"  of: {row['of']}", f"  {row['why']}"]
    lines += ["", "Trained parameters on every preset:"]
    for name, own in found["presets"].items():
        lines.append(f"{name} ({_told_parameters(own)})")
        told = {setting: "not on it" if own[setting] is None else f"{own[setting]:,}" for setting in SETTINGS}
        lines += [f"  {count:>15}  {setting}" for setting, count in told.items()]
    lines += [f"{name}: {said}" for name, said in found["announced"].items()]
    lines += ["", found["note"]]
    return "\n".join(lines)


def _told_parameters(own: dict[str, int | None]) -> str:
    """A model's parameters, and where a token does not pass all of them how many, and the bytes of the base."""
    if "active" not in own:
        return f"{own['parameters']:,} parameters"
    held = ", ".join(f"{(own[f'{how}_bytes'] or 0) / 1e9:,.1f} GB in {how}" for how in ("bf16", "int8", "nf4"))
    return f"{own['parameters']:,} parameters, {own['active']:,} of them for a token of text; {held}"
