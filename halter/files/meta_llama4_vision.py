"""A whole Llama 4 in Meta's layout: the rows of its tower of pictures beside those of its text (meta_llama4.py).

Source: transformers' convert_llama4_weights_to_hf.py, and the shared facts on the lineage, section 4.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from halter.files import meta_llama4
from halter.files.meta_table import MetaFamily, MetaName, Params, Ranks, Specs, Table
from halter.files.names import EMBEDDING, HEAD

LEAD = "language_model."
"""What the text's names begin with where it lies beside a tower."""
CONV = "vision_embeddings.vision_encoder.conv1._linear.weight"
FC1 = "vision_model.vision_adapter.mlp.fc1.weight"
IDS = {"boi_token_index": 200_080, "eoi_token_index": 200_081, "image_token_index": 200_092}
_ENCODER, _BLOCK = "vision_embeddings.vision_encoder.", "vision_embeddings.vision_encoder.transformer.resblocks.*."
_LAYER = "vision_model.model.layers.*."
_SAID_TWICE = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype")
_MOST = 1 << 20


def tells(params: Params) -> bool:
    return meta_llama4.tells(params) and bool(params.get("vision_args"))


def table(params: Params, ranks: Ranks) -> Table:
    text = meta_llama4.table(params, ranks)
    named = {name: tuple(replace(row, hf=f"{LEAD}{row.hf}") for row in rows) for name, rows in text.items()}
    return {**named, **_tower()}


def _tower() -> Table:
    """Of the tower and of what leads from there into the text."""
    rows: dict[str, tuple[MetaName, ...]] = {
        CONV: (MetaName("vision_model.patch_embedding.linear.weight"),),
        _ENCODER + "class_embedding": (MetaName("vision_model.class_embedding", None),),
        _ENCODER + "positional_embedding_vlm": (MetaName("vision_model.positional_embedding_vlm", None),),
        "vision_embeddings.vision_adapter.mlp.c_fc.weight": (MetaName(FC1),),
        "vision_embeddings.vision_adapter.mlp.c_proj.weight": (
            MetaName("vision_model.vision_adapter.mlp.fc2.weight", 1),
        ),
        "vision_projection.weight": (MetaName("multi_modal_projector.linear_1.weight"),),
    }
    norms = {
        _ENCODER + "ln_pre": "vision_model.layernorm_pre",
        _ENCODER + "ln_post": "vision_model.layernorm_post",
        _BLOCK + "ln_1": _LAYER + "input_layernorm",
        _BLOCK + "ln_2": _LAYER + "post_attention_layernorm",
    }
    cut = {f"{_BLOCK}attn.w{one}": f"{_LAYER}self_attn.{one}_proj" for one in "qkv"}
    cut[_BLOCK + "mlp.c_fc"] = _LAYER + "mlp.fc1"
    joined = {_BLOCK + "attn.wo": _LAYER + "self_attn.o_proj", _BLOCK + "mlp.c_proj": _LAYER + "mlp.fc2"}
    for names, weight, bias in ((norms, None, None), (cut, 0, 0), (joined, 1, None)):
        for meta, own in names.items():
            rows[f"{meta}.weight"] = (MetaName(f"{own}.weight", weight),)
            rows[f"{meta}.bias"] = (MetaName(f"{own}.bias", bias),)
    return rows


def faults(params: Params) -> list[str]:
    """What no Llama 4's params.json says."""
    seen = params["vision_args"]
    if not isinstance(seen, dict):
        return [*meta_llama4.faults(params), "vision_args is no object"]
    sizes = {key: seen.get(key) for key in ("dim", "n_layers", "n_heads")}
    sizes |= {f"{key}.height": _height(seen.get(key)) for key in ("image_size", "patch_size")}
    wrong = [
        f"vision_args.{key} is {str(value)[:40]!r}, not a whole number from 1 to {_MOST}"
        for key, value in sizes.items()
        if type(value) is not int or not 1 <= value <= _MOST
    ]
    return [*meta_llama4.faults(params), *wrong]


def _height(size: Any) -> Any:
    return size.get("height") if isinstance(size, dict) else size


def misfits(params: Params, ranks: Ranks, specs: Specs) -> list[str]:
    wrong = [LEAD + one for one in meta_llama4.misfits(params, ranks, _of_text(specs))]
    dim = int(params["vision_args"]["dim"])
    square = [f"vision_model.model.layers.{layer}.self_attn.{{}}_proj.weight" for layer in range(_layers(params))]
    names = [name.format(one) for name in square for one in "qo"]
    return wrong + [f"{n} {list(specs[n].shape)}" for n in names if n in specs and specs[n].shape != (dim, dim)]


def _layers(params: Params) -> int:
    return int(params["vision_args"]["n_layers"])


def _of_text(specs: Specs) -> Specs:
    return {name.removeprefix(LEAD): spec for name, spec in specs.items()}


def config(params: Params, specs: Specs, tied: bool) -> dict[str, Any]:
    """A config.json of ``llama4``; sizes that params.json leaves out are those of the tensors."""
    text: Mapping[str, Any] = meta_llama4.config(params, _of_text(specs), tied)
    seen = params["vision_args"]
    width, inner = specs[FC1].shape
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "text_config": {key: value for key, value in text.items() if key != "architectures"},
        "vision_config": {
            "model_type": "llama4_vision_model",
            "hidden_act": "gelu",
            "num_hidden_layers": _layers(params),
            "hidden_size": seen["dim"],
            "num_attention_heads": seen["n_heads"],
            "intermediate_size": inner,
            "image_size": _height(seen["image_size"]),
            "patch_size": _height(seen["patch_size"]),
            "pixel_shuffle_ratio": seen.get("pixel_shuffle_ratio") or 0.5,
            "vision_output_dim": width,
            "projector_input_dim": width,
            "projector_output_dim": width,
        },
        **IDS,
        **{key: text[key] for key in _SAID_TWICE if key in text},
    }


LLAMA4_SEEING = MetaFamily(
    "Llama 4",
    tells,
    table,
    config,
    meta_llama4.generation,
    misfits,
    faults=faults,
    refused=meta_llama4.REFUSED,
    needed=("tok_embeddings.weight", CONV),
    embedding=LEAD + EMBEDDING,
    head=LEAD + HEAD,
)
