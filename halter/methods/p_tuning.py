"""P-tuning (Liu et al., arXiv 2103.10385): virtual tokens ahead of every row, made by a small network while they train.

    y = LLaMA([P; E x]) without the outputs of P,   P = W3 relu(W2 relu(W1 e + b1) + b2) + b3       encoder: mlp
                                                     P = W2 relu(W1 [fwd(e); bwd(e)] + b1) + b2      encoder: lstm

e [K, dim] and the network are trained; fwd and bwd are the two directions of an LSTM over the K vectors. What is saved
is P alone, as PEFT saves it, so that nothing of the network is needed for answering: the saved adapter has ``encoder:
none``. Networks and starts are those of PEFT's PromptEncoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.contract.method import LORA_TRAINING, Default, Method, Piece, Site
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.layout import VIRTUAL
from halter.model.places import Extra
from halter.numerics.dropout import dropout
from halter.parts.prompts import check_virtual

Network = Literal["mlp", "lstm", "none"]


class VirtualTokens(Piece):
    """The virtual tokens themselves, [K, dim]."""

    saved_names = {"words": "embeddings"}

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.length = length
        self.words = nn.Parameter(torch.zeros(length, dim))

    def reset(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.words, generator=generator)

    def bind(self, site: Site) -> Extra:
        return Extra((self.words.to(site.dtype),))


class Reparameterised(Piece):
    """``table`` [K, dim] and the network through which it becomes virtual tokens, in float32.

    Linear n of the head is ``head_n`` [out, in] with ``head_n_bias``; an LSTM's layer n in direction d (0 forth, 1
    back) is ``lstm_n_d_x`` [4 h, in], ``lstm_n_d_h`` [4 h, h] and two biases [4 h], gates in torch's order i, f, g, o.
    """

    def __init__(self, method: PTuning, dim: int) -> None:
        super().__init__()
        self.length, self.dropout = method.num_virtual_tokens, method.encoder_dropout
        width = method.encoder_size or dim
        self.layers = method.encoder_layers if method.encoder == "lstm" else 0
        self.saved_names: dict[str, str] = {}
        self._hold("table", self.length, dim)
        for layer in range(self.layers):
            for name in (f"lstm_{layer}_0", f"lstm_{layer}_1"):
                self._hold(f"{name}_x", 4 * width, 2 * width if layer else dim)
                self._hold(f"{name}_h", 4 * width, width)
                self._hold(f"{name}_x_bias", 4 * width)
                self._hold(f"{name}_h_bias", 4 * width)
        sizes = [2 * width, 2 * width, dim] if self.layers else [dim, width, width, dim]
        self.depth = len(sizes) - 1
        for number, (inner, out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            self._hold(f"head_{number}", out, inner)
            self._hold(f"head_{number}_bias", out)

    def _hold(self, name: str, *size: int) -> None:
        self.register_parameter(name, nn.Parameter(torch.zeros(size)))
        self.saved_names[name] = name

    def reset(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.get_parameter("table"), generator=generator)
        for name, tensor in self.named_parameters():
            if name != "table":  # as torch starts a Linear and an LSTM: by what goes in, and by the width
                size = name.removesuffix("_bias") if name.startswith("head") else name[: len("lstm_0_0")] + "_h"
                bound = self.get_parameter(size).shape[1] ** -0.5
                nn.init.uniform_(tensor, -bound, bound, generator=generator)

    def made(self, key: int | None = None) -> Tensor:
        """The virtual tokens [K, dim]; ``key`` seeds the dropout between an LSTM's layers, None means none."""
        h: Tensor = self.get_parameter("table")
        for layer in range(self.layers):
            if layer and key is not None:
                h = dropout(h, self.dropout, (key + layer) % 2**63)
            forth, back = (torch.cat(list(self._run(f"lstm_{layer}_{d}", h.flip(0) if d else h))) for d in (0, 1))
            h = torch.cat((forth, back.flip(0)), 1)
        for number in range(self.depth):
            h = F.linear(h, self.get_parameter(f"head_{number}"), self.get_parameter(f"head_{number}_bias"))
            h = h if number == self.depth - 1 else h.relu()
        return h

    def _run(self, name: str, x: Tensor) -> Iterator[Tensor]:
        """What one direction of an LSTM puts out, [1, h] a step."""
        weight, bias = self.get_parameter(f"{name}_h"), self.get_parameter(f"{name}_h_bias")
        entered = F.linear(x, self.get_parameter(f"{name}_x"), self.get_parameter(f"{name}_x_bias"))
        hidden = cell = entered.new_zeros(1, weight.shape[1])
        for step in entered.split(1):
            taken, kept, new, shown = (step + F.linear(hidden, weight, bias)).chunk(4, 1)
            cell = kept.sigmoid() * cell + taken.sigmoid() * new.tanh()
            hidden = shown.sigmoid() * cell.tanh()
            yield hidden

    def plain(self) -> dict[str, Tensor]:
        return {"words": self.made()}

    def bind(self, site: Site) -> Extra:
        key = None if site.key is None or not self.dropout else site.mask_key()
        return Extra((self.made(key).to(site.dtype),))


@dataclass(frozen=True)
class PTuning(Method):
    """Virtual tokens that a small network makes while they are trained."""

    num_virtual_tokens: int = 20
    """Vectors, each of which takes a position."""
    encoder: Network = "mlp"
    """The network: mlp of three layers, lstm (both directions) with two, or none, which is how it is saved."""
    encoder_size: int | None = None
    """Width of the network; not given: the model's."""
    encoder_layers: int = 2
    """Layers of the lstm."""
    encoder_dropout: float = 0.0
    """Share of the numbers between the lstm's layers that is dropped in training."""

    peft_type: ClassVar[str] = "P_TUNING"
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft")
    starts_as_base: ClassVar[bool] = False
    note: ClassVar[str] = (
        "Prompt tuning through a network that is thrown away afterwards, with many more numbers while it trains (an "
        "encoder as wide as the model has three of its squares). What is saved, and what answers, is K vectors, as "
        "for prompt_tuning."
    )
    agreement: ClassVar[str] = (
        "peft, on random models: logits within 1e-5, files both ways; vectors and gradients of PEFT's own "
        "PromptEncoder, MLP and LSTM."
    )
    training: ClassVar[Mapping[str, Default]] = LORA_TRAINING | {
        "learning_rate": Default(
            0.0015,
            (
                "ours: of 1, 5 and 20 times LoRA's rate on the playground (docs/measured/learning-curves.md), at most "
                "6e-3"
            ),
        ),
    }
    sources: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "PEFT's examples",
        "encoder": "PEFT's default; the paper has an LSTM, PEFT's authors recommend the MLP",
        "encoder_layers": "the paper's LSTM; PEFT's default",
    }

    def check(self, shape: ModelConfig) -> None:
        check_virtual(self.num_virtual_tokens, shape)
        wrong = [f"encoder_size {self.encoder_size}"] if self.encoder_size is not None and self.encoder_size < 1 else []
        wrong += [f"encoder_layers {self.encoder_layers}"] if self.encoder_layers < 1 else []
        wrong += [] if 0 <= self.encoder_dropout < 1 else [f"encoder_dropout {self.encoder_dropout}: a share below 1"]
        if wrong:
            raise Refusal(
                "prompt-options",
                "there is no such network",
                found=wrong,
                fix="give numbers from 1 up, or leave them out",
            )

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        if layer is not None:
            return {}
        none = self.encoder == "none"
        return {
            VIRTUAL: VirtualTokens(self.num_virtual_tokens, shape.dim) if none else Reparameterised(self, shape.dim)
        }

    def plain(self) -> PTuning:
        return replace(self, encoder="none", encoder_size=None, encoder_layers=2, encoder_dropout=0.0)

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        return {
            "task_type": "CAUSAL_LM",
            "num_virtual_tokens": self.num_virtual_tokens,
            "token_dim": shape.dim,
            "num_transformer_submodules": 1,
            "num_attention_heads": shape.heads,
            "num_layers": shape.layers,
            "encoder_reparameterization_type": "MLP",
            "encoder_hidden_size": shape.dim,
            "encoder_num_layers": 2,
            "encoder_dropout": 0.0,
        }

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> PTuning:
        return cls(int(config["num_virtual_tokens"]), "none")  # PEFT too saves what the network made, not the network

    def to_peft_tensors(self, own: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        return {"prompt_embeddings": own[f"{shape.layout.path(None, VIRTUAL)}.embeddings"]}

    def from_peft_tensors(self, stored: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        key = {"prompt_embeddings": f"{shape.layout.path(None, VIRTUAL)}.embeddings"}
        return {key.get(name, name): tensor for name, tensor in stored.items()}
