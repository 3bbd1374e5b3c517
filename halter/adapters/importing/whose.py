"""Whose adapter a file of another program holds, by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from halter.contract.method import PEFT_PREFIX
from halter.errors import Refusal
from halter.files.meta_archive import open_pth
from halter.files.names import EMBEDDING
from halter.files.nearby import of_mlx
from halter.files.tensors import TensorFile, read_tensors

_V2 = re.compile(r"layers\.\d+\.(attention|feed_forward)\.w[qkvo123]_(bias|scale)")


def _names_in(path: Path) -> list[str]:
    """The names of a file's tensors, of which safetensors' are read without them: it may be a model's."""
    if path.suffix != ".safetensors":
        return list(open_pth(path))
    with TensorFile(path) as file:
        return list(file.specs)


def opened(paths: Sequence[Path]) -> tuple[Literal["litgpt", "authors-v1", "authors-v2"], list[dict[str, Tensor]]]:
    """Whose format files are of, by the names in them, and their tensors. Refusals ``import-unknown`` and those of
    reading."""
    read = {path: read_tensors if path.suffix == ".safetensors" else open_pth for path in paths}
    names, where = {name for path in paths for name in _names_in(path)}, ", ".join(map(str, paths))
    if any(name.startswith("transformer.h.") for name in names) and len(paths) == 1:
        return "litgpt", [read[paths[0]](paths[0])]
    if any(_V2.fullmatch(name) for name in names):
        return "authors-v2", [read[path](path) for path in paths]
    if "adapter_query.weight" in names and len(paths) == 1:
        return "authors-v1", [read[paths[0]](paths[0])]
    what = "these names are of no adapter format that Halter imports"
    expected = "the LLaMA-Adapter authors' (adapter_query.weight, layers.N.attention.wq_bias) or litgpt's "
    expected += "(transformer.h.N.attn.adapter_wte.weight, lora_A)"
    fix = ""
    if EMBEDDING in names:
        what, fix = (
            "these are a model's weights, not an adapter's",
            "give an adapter's file; the model goes behind --model",
        )
    elif any(name.endswith(".lora_a") for name in names):
        raise of_mlx(paths[0].parent, "MODEL")
    elif any(name.startswith(PEFT_PREFIX) for name in names):
        what = (
            "these are tensors as PEFT names them, and adapter_config.json, which says how they act, is not beside them"
        )
        expected, fix = "", "put both into one folder, as adapter_model" + (paths[0].suffix or ".safetensors")
        fix += " and adapter_config.json, and give the folder"
    raise Refusal(
        "import-unknown", what, where=where, found=sorted(names) or ["no tensors"], expected=expected, fix=fix
    )
