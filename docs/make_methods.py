"""Write docs/methods/*.md from the methods' own files: `make pages`. A test holds them to it.

What cannot be read off the code (when to use a method, what it costs) stands in the method's ``note``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from halter.adapters.adapter import Adapter
from halter.contract.method import Method
from halter.contract.registry import find, names
from halter.model.config import ModelConfig, preset
from halter.recipe.fields import keys_of
from halter.recipe.write import plain
from halter.training.defaults import sourced

FOLDER = Path(__file__).parent / "methods"
MODELS = ("llama-1-7b", "llama-1-65b", "llama-2-70b", "llama-3-8b", "llama-3.2-1b")
SMALL = ModelConfig(
    layers=1,
    dim=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn_dim=48,
    vocab_size=96,
    context=128,
    bos_token_id=1,
    eos_token_ids=(2,),
)

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
    lines = [f"# {name}", "", title.strip(), "", *_docstring(rest), "", kind.note, "", "## Options", ""]
    lines += ["| option | default | meaning | where the default comes from |", "|---|---|---|---|", *_options(kind)]
    lines += ["", "## Training defaults", "", *_training(name), "", "## Trained parameters", ""]
    lines += ["| model | with the defaults |", "|---|---|", *_counts(kind), "", "## Properties", "", *_properties(kind)]
    lines += ["", "## Where it acts", "", "```text", *_figure(kind), "```"]
    lines += ["", "## Agreement and certainty", "", kind.agreement]
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
    table = sourced(kind)
    for key in keys_of(kind).values():
        source = table[key.name].source if key.name in table else ""
        value = str(plain(key.default)).replace("|", "\\|")
        yield f"| `{key.name}` | `{value}` | {key.doc.replace('|', chr(92) + '|')} | {source} |"


def _training(name: str) -> Iterator[str]:
    if not (row := find(name).training):
        yield "LoRA's, for want of published ones that fit AdamW."
        return
    yield from (f"- `{key}`: {default.value} ({default.source})" for key, default in row.items())


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
