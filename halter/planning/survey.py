"""Table 2 of the survey (arXiv 2510.12178): its counts for LLaMA-7B beside the true ones, and those of every preset."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from halter.contract.method import Method
from halter.methods.excitor import Excitor
from halter.methods.llama_adapter import LlamaAdapter
from halter.methods.llama_adapter_v2 import LlamaAdapterV2
from halter.methods.lora import Lora
from halter.model.config import ModelConfig, preset, preset_names
from halter.planning import llama4
from halter.planning.dry import dry_adapter

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
Q, QV, QKVO, ALL, RECIPE, V1, V2, V2_PAPER, V2_PROMPTS, EXCITOR = SETTINGS


@cache
def counted(setting: str, model: str = SEVEN) -> int:
    """Trained parameters, counted by building the adapter where tensors have shapes and no numbers."""
    return dry_adapter(preset(model), [SETTINGS[setting]]).num_trainable


def share(count: float, model: str = SEVEN) -> str:
    """A count as a share of the model's parameters, three digits."""
    percent = 100 * count / preset(model).num_parameters
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
        "presets": {
            name: {
                "parameters": preset(name).num_parameters,
                "full": preset(name).num_parameters,
                **{setting: counted(setting, name) for setting in SETTINGS},
            }
            for name in preset_names()
        },
        "counted_not_run": {name: llama4.counts(name, SETTINGS) for name in llama4.SHAPES},
        "note": llama4.NOTE,
    }


def table_text() -> str:
    """The table for people."""
    found = table()
    lines = [f"Table 2 of a survey (arXiv 2510.12178), LLaMA-7B ({found['parameters']:,} parameters)", ""]
    for row in found["rows"]:
        lines.append(f"{row['method']}: the survey has {row['survey']}; true is {row['true']:,} ({row['share']:.4%})")
        lines += [f"  of: {row['of']}", f"  {row['why']}"]
    lines += ["", "Trained parameters on every preset:"]
    for name, counts in found["presets"].items():
        lines.append(f"{name} ({counts['parameters']:,} parameters)")
        lines += [f"  {counts[setting]:>15,}  {setting}" for setting in SETTINGS]
    for name, counts in found["counted_not_run"].items():
        rest = dict(counts)
        total, active, text = rest.pop("parameters"), rest.pop("active"), rest.pop("text")
        base = f"base {rest.pop('bf16_bytes') / 1e9:,.0f} GB in bfloat16, {rest.pop('nf4_bytes') / 1e9:,.1f} GB in NF4"
        lines.append(f"{name}, counted, not run ({total:,} parameters, {text:,} of text, {active:,} active; {base})")
        lines += [f"  {count:>15,}  {setting}" for setting, count in rest.items() if setting != "full"]
    lines += ["", found["note"]]
    return "\n".join(lines)
