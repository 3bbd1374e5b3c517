"""What transformers' conversion script makes of tests/meta_llama4_shards.py: ``python make_meta.py SCRIPT``.

SCRIPT is src/transformers/models/llama4/convert_llama4_weights_to_hf.py of transformers' repository, which no wheel
holds; what stands in meta_llama4.json is of commit 07497505. It has the published sizes as plain numbers, or leaves
them to defaults; those are exchanged for the tiny model's, and nothing else. Written are the SHA-256 of every tensor as
the script saved it, and the logits of the model that transformers makes of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import meta_llama4_shards as tiny  # noqa: E402


def resized(source: str, ranks: int) -> str:
    """The script for the tiny model."""
    width = tiny.EXPERT_WIDTH // ranks
    for old, new in (
        ("vocab_size = 202048", f"vocab_size = {tiny.VOCABULARY}"),
        ("intermediate_size=8192", f"intermediate_size={tiny.EXPERT_WIDTH}"),
        ("pad_token_id = 200018", "pad_token_id = 18"),
        ("-1, 8, 1024)", f"-1, {ranks}, {width})"),
        ("-1, 1024)", f"-1, {width})"),
        ("range(8)", f"range({ranks})"),
        ("reshape(8, -1, 5120)", f"reshape({ranks}, -1, {tiny.DIM})"),
        ("-1, 5120)", f"-1, {tiny.DIM})"),
    ):
        assert old in source, old
        source = source.replace(old, new)
    return source


def converted(script: Path, ranks: int) -> dict[str, object]:
    vision = partial(
        transformers.Llama4VisionConfig,
        intermediate_size=tiny.VISION_WIDTH,
        projector_input_dim=tiny.PROJECTED,
        projector_output_dim=tiny.PROJECTED,
    )
    transformers.Llama4ImageProcessorFast = getattr(transformers, "Llama4ImageProcessorFast", None)
    names: dict[str, object] = {"__name__": "script"}
    exec(compile(resized(script.read_text("utf-8"), ranks), str(script), "exec"), names)
    names["Llama4VisionConfig"] = vision
    names["Llama4TextConfig"] = partial(transformers.Llama4TextConfig, head_dim=tiny.DIM // tiny.HEADS)
    with tempfile.TemporaryDirectory() as inside:
        tiny.write_folder(Path(inside) / "meta", ranks, seeing=True)
        out = Path(inside) / "hf"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(OSError, ValueError):
            # It asks for a tokenizer at last, when the weights are written.
            names["write_model"](str(out), str(Path(inside) / "meta"), ranks, True, True)  # type: ignore[operator]
        tensors = load_file(out / "model.safetensors")
        digests = {
            n: hashlib.sha256(t.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
            for n, t in sorted(tensors.items())
        }
        model = transformers.Llama4ForConditionalGeneration.from_pretrained(
            out, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            logits = model.eval()(tiny.TOKENS).logits[0, -1]
        text = model.config.text_config.to_dict()
        keys = (
            "moe_layers",
            "no_rope_layers",
            "layer_types",
            "intermediate_size_mlp",
            "use_qk_norm",
            "attn_temperature_tuning",
        )
        return {
            "tensors": digests,
            "logits": [round(x, 6) for x in logits.tolist()],
            "config": {k: text[k] for k in keys},
        }


if __name__ == "__main__":
    found = {str(ranks): converted(Path(sys.argv[1]), ranks) for ranks in tiny.RANKS}
    (HERE / "meta_llama4.json").write_text(
        json.dumps({"transformers": transformers.__version__, **found}, indent=1) + "\n"
    )
