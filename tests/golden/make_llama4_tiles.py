"""Makes llama4_tiles.json of transformers' image processor for Llama 4, which needs torchvision: ``python
make_llama4_tiles.py``. A torchvision whose compiled half does not load will do: nothing here calls it."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "model")]

from picture_pixels import SAMPLED, pixels  # noqa: E402

SIZES = [(1, 1), (336, 336), (337, 336), (100, 900), (700, 200), (672, 672), (41, 1000), (1500, 1100), (9, 700)]
SEEN = {"height": 336, "width": 336}


def _torchvision() -> None:
    registered = torch.library.register_fake
    schema = torch.library.Library("torchvision", "DEF")
    schema.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.library.register_fake = lambda *_, **__: lambda function: function  # type: ignore[assignment]
    import torchvision  # type: ignore  # noqa: F401

    torch.library.register_fake = registered
    globals()["_kept"] = schema


def made() -> dict[str, Any]:
    from transformers.image_utils import SizeDict
    from transformers.models.llama4 import image_processing_llama4 as theirs

    processor = theirs.Llama4ImageProcessor()
    pictures = []
    for height, width in SIZES:
        out = processor(images=[pixels(height, width)], return_tensors="pt", input_data_format="channels_first")
        tiles = out["pixel_values"].float().flatten()
        places = torch.linspace(0, len(tiles) - 1, SAMPLED, dtype=torch.float64).long()
        grid = [int(n) for n in out["aspect_ratios"][0]]
        pictures.append({"size": [height, width], "grid": grid, "count": len(tiles), "values": tiles[places].tolist()})
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    levels = processor.rescale_and_normalize(levels, True, 1 / 255, True, [0.5] * 3, [0.5] * 3)[0, 0].float()
    return {"pictures": pictures, "levels": levels.tolist(), "fits": _fits(theirs, SizeDict)}


def _fits(theirs: Any, size_dict: Any) -> list[list[int]]:
    """(height, width, tiles high, tiles wide, height and width on the canvas), half of them where float64 would give
    another size than the float32 in which transformers reckons."""
    canvases = torch.tensor(theirs.find_supported_resolutions(16, size_dict(**SEEN)))
    drawn, plain, other = random.Random(3), [], []
    while len(other) < 40 or len(plain) < 40:
        height = drawn.randint(1, 4000) if drawn.random() < 0.7 else 336 * drawn.randint(1, 12)
        width = drawn.choice([height, 2 * height, 3 * height, drawn.randint(1, 4000)])
        best = theirs.get_best_fit((height, width), canvases)
        edges = [min(max(own, 336), limit) for own, limit in zip((height, width), best, strict=True)]
        fits = [
            [max(1, int(n)) for n in theirs.get_max_res_without_distortion((height, width), e)]
            for e in (edges, [*map(int, edges)])
        ]
        (plain if fits[0] == fits[1] else other).append([height, width, *(int(n) // 336 for n in best), *fits[0]])
    return [*plain[:40], *other[:40]]


if __name__ == "__main__":
    _torchvision()
    text = json.dumps(made(), separators=(",", ":"))
    (HERE / "llama4_tiles.json").write_text(text.replace('{"size"', '\n{"size"').replace('],"', '],\n"') + "\n")
