"""What tensors are called: Hugging Face's names are the canonical ones, and bitsandbytes' lead to them (Meta's:
meta_table.py).

Sources: shared facts on the lineage, section 6.1; the keys of bitsandbytes 0.50's 4- and 8-bit state dictionaries.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Literal

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def is_ignored(name: str) -> bool:
    """Tensors that hold nothing learned: the rotary tables that old files carry, in both layouts."""
    return name.endswith("rotary_emb.inv_freq") or name == "rope.freqs"


_TEXT_HALF = "language_model."
_PICTURES_HALF = ("vision_model.", "multi_modal_projector.")


def of_pictures(name: str) -> bool:
    """Whether a tensor belongs to a tower of pictures, or to what leads from it into the text."""
    return name.startswith(_PICTURES_HALF)


def vocabulary(names: Container[str]) -> tuple[str, str]:
    """What embeddings and head are called among these names: with the text's prefix where it lies beside a tower."""
    lead = _TEXT_HALF if _TEXT_HALF + EMBEDDING in names else ""
    return lead + EMBEDDING, lead + HEAD


_IN_MEMORY = {
    "lm_head.": "language_model.lm_head.",
    "model.language_model.": "language_model.model.",
    "model.vision_model.": "vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
"""{how a name of a Llama 3.2 Vision begins in transformers' memory since 4.52: how it begins in a published file}."""


def _as_published(name: str) -> str:
    for begins, published in _IN_MEMORY.items():
        if name.startswith(begins):
            return published + name.removeprefix(begins)
    return name


def of_text(name: str, family: object, whole: bool) -> str | None:
    """What a tensor of a checkpoint whose model_type is ``family`` is called: in a ``whole`` one, which is read with
    its tower of pictures, as it is stored; else as where the text stands alone, None for one of the tower, which is
    then not read. Llama 4 has both halves in one checkpoint; so has Llama 3.2 Vision, which is always read whole."""
    if family == "mllama":
        return _as_published(name)
    if whole:
        return name
    if family == "llama4" and of_pictures(name):
        return None
    return name.removeprefix(_TEXT_HALF) if family in ("llama4", "llama4_text") else name


BNB_STATES: dict[Literal["nf4", "fp4"], str] = {
    "nf4": "quant_state.bitsandbytes__nf4",
    "fp4": "quant_state.bitsandbytes__fp4",
}
BNB_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
"""Of a 4-bit linear layer, beside its weight and its state."""
BNB_SCALE, BNB_FORMAT = "SCB", "weight_format"
"""Of an 8-bit linear layer, beside its weight: one scale for each row, and how the weight lies (0: in rows)."""
_FOREIGN_PARTS = (".qweight", ".qzeros", ".weight_scale")


def bnb_groups(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """What bitsandbytes saved in 4 or in 8 bits, by weight: {canonical name: {"weight": name, "weight.absmax": name,
    ...}}, in 8 bits {"weight": name, "SCB": name, ...}.

    The inner keys are what ``from_bitsandbytes`` of the storage (``storage_of``) takes.
    """
    known = set(names)
    groups = {}
    for state in BNB_STATES.values():
        for weight in sorted(n.removesuffix(f".{state}") for n in known if n.endswith(f".{state}")):
            named = [part for part in (*BNB_PARTS, state) if f"{weight}.{part}" in known]
            groups[weight] = {"weight": weight, **{f"weight.{part}": f"{weight}.{part}" for part in named}}
    for scale in sorted(n for n in known if n.endswith(f".{BNB_SCALE}")):
        layer = scale.removesuffix(BNB_SCALE)
        parts = {part: layer + part for part in (BNB_SCALE, BNB_FORMAT) if layer + part in known}
        groups[f"{layer}weight"] = {"weight": f"{layer}weight", **parts}
    return groups


def storage_of(group: Mapping[str, str]) -> Literal["nf4", "fp4", "int8"]:
    """How a weight of ``bnb_groups`` is stored."""
    return next((kind for kind, state in BNB_STATES.items() if f"weight.{state}" in group), "int8")


def other_quantisation(names: Iterable[str]) -> list[str]:
    """Names that give away a quantised storage which Halter does not read (GPTQ, AWQ, fp8)."""
    return [name for name in names if name.endswith(_FOREIGN_PARTS)]
