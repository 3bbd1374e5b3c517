"""From a folder to an encoder of pictures: strict, no tensor twice in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch

from halter.encoders.config import WHOLE, EncoderConfig, Preparing
from halter.encoders.encoder import PictureEncoder
from halter.errors import Refusal
from halter.files.checkpoint import read_config, shards
from halter.files.reading import read_json
from halter.files.tensors import TensorFile

OTHERS = ("text_model.", "text_projection.", "logit_scale", "logit_bias")
"""How the names of the text's half begin, which is left unread."""
COUNTED = ".position_ids"
"""Numbers from 0 up that older checkpoints keep, and nobody needs."""
LEAD = "vision_model."


def load_encoder(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> PictureEncoder:
    """The encoder of a Hugging Face folder of CLIP or SigLIP, or of its half for pictures.

    Refusals: ``encoder-unsupported``; ``checkpoint-mismatch``, which names every missing, unexpected and misshapen
    tensor at once; those of files.checkpoint and files.tensors.
    """
    folder = Path(folder).expanduser()
    told = read_config(folder)
    config = EncoderConfig.from_hf(told, str(folder))
    given = folder / "preprocessor_config.json"
    preparing = Preparing.from_hf(read_json(given) if given.is_file() else None, config, str(given))
    files = [TensorFile(path) for path in shards(folder)]
    held = {name: file for file in files for name in file.specs}
    ours = {name.removeprefix(LEAD): name for name in held if not name.startswith(OTHERS) and COUNTED not in name}
    if told.get("model_type") not in WHOLE and "visual_projection.weight" not in ours:
        config = replace(config, projection=0)  # its half for pictures is saved with it or without
    with torch.device("meta"):
        encoder = PictureEncoder(config, preparing)
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    wrong = [f"{name} is missing" for name in shapes if name not in ours]
    wrong += [f"{name} is not expected" for name in ours if name not in shapes]
    for name, shape in shapes.items():
        if name in ours and (found := held[ours[name]].specs[ours[name]].shape) != shape:
            wrong.append(f"{name} is {list(found)}, not {list(shape)}")
    if wrong:
        what = "the files do not hold what config.json says"
        fix = "fetch the checkpoint's files again"
        raise Refusal("checkpoint-mismatch", what, where=str(folder), found=wrong, fix=fix)
    encoder.load_state_dict({name: held[ours[name]].read(ours[name], dtype).to(device) for name in shapes}, assign=True)
    encoder.digest = _digest(encoder, {name: held[ours[name]].sha256(ours[name]) for name in shapes})
    for file in files:
        file.close()
    return encoder.requires_grad_(False).eval()


def _digest(encoder: PictureEncoder, weights: Mapping[str, str]) -> str:
    told = (encoder.config, encoder.preparing, sorted(weights.items()))
    return sha256(repr(told).encode()).hexdigest()
