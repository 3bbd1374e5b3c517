"""Encoders by the name that an adapter has for them: a folder, a hub id, or the one that comes with the package."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from threading import Lock

import torch

from halter.encoders.encoder import PictureEncoder
from halter.encoders.load import load_encoder
from halter.errors import Refusal
from halter.files.hub import resolve

EMBEDDED = {"playground": Path(__file__).parents[1] / "playground" / "encoder"}
"""{name: folder} of those in the package."""
MOST = 2
"""Encoders held at once; of more the one that was asked for longest ago goes."""

_held: OrderedDict[tuple[str, str], PictureEncoder] = OrderedDict()
_lock = Lock()


def folder_of(name: str) -> Path:
    """The folder of an encoder. Refusals of files.hub.resolve."""
    return EMBEDDED[name] if name in EMBEDDED else resolve(name)


def opened(name: str, device: torch.device | str = "cpu") -> PictureEncoder:
    """The encoder of that name in float32, loaded once for each device. Refusals of ``folder_of`` and load_encoder."""
    folder = folder_of(name)
    key = str(folder.resolve()), str(device)
    with _lock:
        if key in _held:
            _held.move_to_end(key)
        else:
            with torch.device("cpu"):  # whoever asks may be planning on meta
                _held[key] = load_encoder(folder, device=device)
            if len(_held) > MOST:
                _held.popitem(last=False)
        return _held[key]


def as_trained(name: str, digest: str, device: torch.device | str = "cpu") -> PictureEncoder:
    """``opened``, whose digest is ``digest``. Refusal ``encoder-differs``."""
    encoder = opened(name, device)
    if encoder.digest != digest:
        raise Refusal(
            "encoder-differs",
            "this encoder of pictures is not the one that the adapter was trained with",
            where=name,
            found=[f"its SHA-256 is {encoder.digest[:16]}..., the adapter's had {digest[:16]}..."],
            fix="put the encoder that it was trained with into this place",
        )
    return encoder
