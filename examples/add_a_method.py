"""A method of your own, tried before it has a file: a trained strength for every output channel of the MLPs.

    python examples/add_a_method.py [--model DIR --text "..." --output DIR]

An adapter of it is an nn.Module and an argument of the call, so plain torch trains it: here it learns one sentence by
heart and is merged. As a file in halter/methods/ (docs/guide/add-a-method.md) the same classes are known to recipes,
flags and tests, and saved adapters can be read back, which those of a script cannot. About 5 s of CPU.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import halter
from halter.contract.method import Method, Piece, Site
from halter.model.config import ModelConfig
from halter.model.places import Act
from halter.playground import base_folder


@dataclass(frozen=True)
class ScaleAct(Act):  # what happens at a place in one forward pass
    strength: Tensor

    def act(self, x: Any, y: Tensor) -> Tensor:  # y = W x, which the base has computed
        return y + self.strength * y


class Scale(Piece):  # the parameters at a place
    folds = True  # the effect is a change of the weight, so it can be merged

    def __init__(self, features: int) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(features))  # zero: it starts as the base

    def bind(self, site: Site) -> Act:
        return ScaleAct(self.strength.to(site.dtype))

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        gain = 1 + self.strength.to(weight)
        return gain[:, None] * weight, None if bias is None else gain * bias


@dataclass(frozen=True)
class ChannelScale(Method):  # options, had it any, and where its pieces stand
    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        return {} if layer is None else {"up_proj": Scale(shape.ffn_dim), "down_proj": Scale(shape.dim)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(base_folder()), help="a folder or hub id")
    parser.add_argument("--text", default="The brewer hides a green raven in the old boat.")
    parser.add_argument("--max-steps", type=int, default=30)
    parser.add_argument("--output", type=Path, help="a new folder")
    args = parser.parse_args()
    output = args.output or Path(tempfile.mkdtemp(prefix="halter-"))

    model, tokenizer = halter.load(args.model, "float32")
    tokens = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(args.text)]], device=model.device)
    adapter = halter.adapt(model, ChannelScale())
    print(f"{sum(p.numel() for p in adapter.parameters()):,} trained numbers")
    print("starts as the base:", torch.equal(model(tokens, adapter), model(tokens)))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.05)
    for step in range(args.max_steps):
        loss = nn.functional.cross_entropy(model(tokens, adapter)[0, :-1], tokens[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.4f}")
    print(halter.merge(model, adapter, output / "merged", source=args.model, dtype="float32"))
    print(f"merged model: {output / 'merged'}")


if __name__ == "__main__":
    main()
