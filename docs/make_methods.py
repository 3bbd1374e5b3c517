"""Write docs/methods/*.md from the methods' own files: `make pages`. A test holds them to it.

What cannot be read off the code (when to use a method, what it costs) stands in NOTES.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from halter.methods.adapter import Adapter
from halter.methods.method import Method, find, names
from halter.model.config import ModelConfig, preset
from halter.recipe.fields import keys_of
from halter.recipe.write import plain
from halter.training.defaults import METHOD, TRAIN

FOLDER = Path(__file__).parent / "methods"
MODELS = ("llama-1-7b", "llama-1-65b", "llama-2-70b", "llama-3-8b", "llama-3.2-1b")
SMALL = ModelConfig(
    layers=1, dim=32, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, vocab_size=96, context=64, bos_token_id=1,
    eos_token_ids=(2,),
)  # fmt: skip

NOTES: dict[str, str] = {
    "lora": (
        "The first choice: every server reads it, it merges without a trace, and it costs 2 r (in + out) "
        "operations a token and layer while it is not merged. `init_from` takes a lower rank, another alpha, PiSSA and "
        "OLoRA over as the same function."
    ),
    "dora": (
        "LoRA that also learns how long each row of the weight is; often better at low ranks. Every pass needs the "
        "rows' lengths, a read of the whole weight, so it is slower than LoRA until it is merged; vLLM has it not. "
        "`init_from` may name a LoRA adapter, whose function it starts as; the way back is refused."
    ),
    "pissa": (
        "LoRA that begins with the weight's own largest directions and so moves faster at first. The adapter holds its "
        "start too, and other tools read it as plain LoRA of twice the rank."
    ),
    "olora": ("As PiSSA, with a QR decomposition, which is quicker to make and needs no singular values."),
    "loreft": (
        "Few parameters and next to no cost while answering: it acts on a few positions of the prompt only. It cannot "
        "be merged. In training the prompt ends at the first learned token; in a conversation's later turns everything "
        "before the new answer is prompt, so there the last positions are others than those it was trained at in the "
        "first turn: train on conversations that are cut before each answer, or set last to 0."
    ),
    "token_rows": (
        "The remedy for header and end-of-turn tokens that a base model never learned (`halter doctor` names them): "
        "beside another method, `method: [{name: lora}, {name: token_rows, tokens: ['<|eot_id|>', 128006]}]`. With "
        "LoRA or DoRA it is one PEFT folder (`trainable_token_indices`), unless the pairs act on the same table."
    ),
    "full": ("The baseline of comparisons. Memory for weights, gradients and two optimizer states in float32."),
    "llama_adapter": (
        "Few parameters, and instruction following learned in an hour on the authors' machines. Every query also "
        "attends to K more keys; it cannot be merged, and other servers do not have the form with a gate a head."
    ),
    "llama_adapter_v2": (
        "Tunes how strongly every channel speaks; without prompts it folds into the weights and costs nothing "
        "afterwards (the merged model has biases). The visual half of the paper is not here."
    ),
    "excitor": (
        "Changes attention only, so the layer's outputs stay in the span of the base's values, which the authors "
        "find to preserve knowledge. It cannot be merged: the extra key depends on the input. The authors' code "
        "was never published."
    ),
    "ia3": ("Fewest parameters of those that merge. Slower to learn than LoRA in most comparisons."),
    "bitfit": ("A baseline that costs nothing at all; the merged model has biases."),
    "norm_tuning": ("The cheapest of all; a baseline."),
    "bottleneck": ("The classic adapter. Adds depth, so it costs time in use and cannot be merged."),
    "prefix_tuning": (
        "K more keys and values in every layer. Sensitive to its start and learning rate; cannot be merged."
    ),
    "p_tuning": (
        "Prompt tuning through a network that is thrown away afterwards, with many more numbers while it trains (an "
        "encoder as wide as the model has three of its squares). What is saved, and what answers, is K vectors, as for "
        "prompt_tuning."
    ),
    "loha": (
        "As LoRA, with updates of a far higher rank for as many parameters. Training makes each update as a whole "
        "matrix, so a pass costs more than LoRA's; merged it costs nothing. Common for pictures, rare for text."
    ),
    "lokr": (
        "The fewest parameters of the methods that act on every linear layer, and of any rank. Cheap to compute, since "
        "the product is never made; merged it costs nothing."
    ),
    "prompt_tuning": (
        "Nothing but K vectors at the input. Works best on large models; takes K positions of every row."
    ),
}

_PEFT = "peft, on random models: logits within 1e-5, files both ways"
_FLOAT64 = "an independent float64 reference of the equations, on random models: within 1e-5"
AGREEMENT: dict[str, str] = {
    "lora": f"{_PEFT}; gradients within 1e-5 of transformers + peft; LoRA+ has peft's groups.",
    "dora": f"{_PEFT}; gradients within 1e-4; counts of mechanisms 0.1 exact. Certain: the authors' code is public.",
    "pissa": "peft's init_lora_weights=pissa: function within 2e-4, gradients within 1e-3 (their base is rounded).",
    "olora": "peft's init_lora_weights=olora: function within 2e-4, gradients within 1e-3.",
    "full": "the base itself: what is trained stands in for its weights; laws only.",
    "llama_adapter": f"{_FLOAT64}; peft's adaption_prompt with gate_scope layer and gate_activation identity. Certain.",
    "llama_adapter_v2": f"{_FLOAT64}; the authors' counts exact. The paper and its releases differ; options name both.",
    "excitor": f"{_FLOAT64}. The authors' code was never published: what is inferred is marked at the options.",
    "loreft": f"{_FLOAT64}; rows stay orthonormal within 1e-5.",
    "token_rows": f"{_PEFT} (TRAINABLE_TOKENS, and LoRA and DoRA with trainable_token_indices), tied and untied.",
    "ia3": f"{_PEFT}.",
    "prefix_tuning": f"{_PEFT}, projected ones too.",
    "prompt_tuning": f"{_PEFT}.",
    "p_tuning": f"{_PEFT}; vectors and gradients of PEFT's own PromptEncoder, MLP and LSTM.",
    "loha": f"{_PEFT}, gradients within the rounding of float32; its defaults and every option that it files.",
    "lokr": f"{_PEFT}, gradients within the rounding of float32; its defaults and every option that it files.",
    "bitfit": "counts and laws; there is nothing else to get wrong.",
    "norm_tuning": "logits of peft's LN_TUNING within 1e-5, files both ways, tensors bit for bit; exact counts.",
    "bottleneck": f"{_FLOAT64} (Houlsby, sequential and parallel).",
}
FIGURE = (
    ("", "virtual_tokens", "embed_tokens"),
    ("layer:  ", "input_layernorm", "q_proj", "k_proj", "v_proj", "score_key", "memory"),
    ("        ", "context", "o_proj", "after_attention"),
    ("        ", "post_attention_layernorm", "gate_proj", "up_proj", "down_proj", "after_mlp", "block"),
    ("", "norm", "lm_head"),
)
"""A forward pass, place after place; where a method acts stands in brackets."""


def page(name: str) -> str:
    """One method's page."""
    kind = find(name)
    module = sys.modules[kind.__module__].__doc__ or ""
    title, _, rest = module.strip().partition("\n")
    lines = [f"# {name}", "", title.strip(), "", *_docstring(rest), "", NOTES[name], "", "## Options", ""]
    lines += ["| option | default | meaning | where the default comes from |", "|---|---|---|---|", *_options(kind)]
    lines += ["", "## Training defaults", "", *_training(name), "", "## Trained parameters", ""]
    lines += ["| model | with the defaults |", "|---|---|", *_counts(kind), "", "## Properties", "", *_properties(kind)]
    lines += ["", "## Where it acts", "", "```text", *_figure(kind), "```"]
    lines += ["", "## Agreement and certainty", "", AGREEMENT[name]]
    return "\n".join(lines) + "\n"


def _figure(kind: type[Method]) -> Iterator[str]:
    here = {slot.place for slot in Adapter(SMALL, [kind()]).slots}
    for lead, *places in FIGURE:
        yield lead + " -> ".join(f"[{place}]" if place in here else place for place in places)


def _docstring(text: str) -> Iterator[str]:
    """Paragraphs as they stand; indented ones, which are formulas, as code."""
    for block in text.strip("\n").split("\n\n"):
        formula = block.startswith("    ")
        yield from (["```text", *(line[4:] for line in block.splitlines()), "```"] if formula else block.splitlines())
        yield ""


def _options(kind: type[Method]) -> Iterator[str]:
    table = METHOD.get(kind.name(), {})
    for key in keys_of(kind).values():
        source = table[key.name].source if key.name in table else ""
        value = str(plain(key.default)).replace("|", "\\|")
        yield f"| `{key.name}` | `{value}` | {key.doc.replace('|', chr(92) + '|')} | {source} |"


def _training(name: str) -> Iterator[str]:
    if name not in TRAIN:
        yield "LoRA's, for want of published ones that fit AdamW."
        return
    yield from (f"- `{key}`: {default.value} ({default.source})" for key, default in TRAIN[name].items())


def _counts(kind: type[Method]) -> Iterator[str]:
    for model in MODELS:
        shape = preset(model)
        with torch.device("meta"):
            count = Adapter(shape, [kind()]).num_trainable
        yield f"| {model} | {count:,} ({100 * count / shape.num_parameters:.4f} %) |"


def _properties(kind: type[Method]) -> Iterator[str]:
    adapter = Adapter(SMALL, [kind()])
    stuck = sorted({slot.place for slot in adapter.slots if not slot.piece.folds})
    yield f"- acts at: {', '.join(dict.fromkeys(slot.place for slot in adapter.slots))}"
    yield f"- an untrained adapter {'is the base, bit for bit' if kind.starts_as_base else 'is not the base'}"
    yield (
        "- merges into the weights"
        if not stuck
        else f"- cannot be merged, because of what it does at: {', '.join(stuck)}"
    )
    yield f"- read by: {', '.join(kind.servable_by)}; `peft_type` {kind.peft_type}"
    alike = "computes a beginning that rows share once" if kind().tokenwise else "computes every row whole"
    yield f"- training {alike}"


def pages() -> dict[str, str]:
    """{file name: text} of every page and their list."""
    found = {f"{name}.md": page(name) for name in names()}
    rows = [
        f"| [{name}]({name}.md) | {(sys.modules[find(name).__module__].__doc__ or '').splitlines()[0]} |"
        for name in names()
    ]
    head = [
        "# Methods",
        "",
        "Written by `make pages` from the methods' own files.",
        "",
        "| method | what it is |",
        "|---|---|",
    ]
    return found | {"README.md": "\n".join(head + rows) + "\n"}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
