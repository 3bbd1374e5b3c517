"""Llama 4 by name, counted and not run: its arithmetic is exact. A folder with its text is planned as any model's.

Shapes as the published checkpoints' config.json have them; totals agree with the numbers of the tensors there.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from halter.contract.method import Method
from halter.model.config import ModelConfig
from halter.model.layout import LINEAR
from halter.numerics.nf4 import BLOCK, BLOCK2
from halter.planning.dry import dry_adapter

EXPERTS_RANK = 8
NOTE = (
    "Llama 4 is counted here, not run; a folder with its text is planned as any model's. Methods are counted on "
    "attention, the shared expert and, in Maverick, the dense layers; the router, which all-linear adapts as well, and "
    "the images' tower are left alone. NF4 is counted with attention, every expert and the dense layers in 4 bits, the "
    "rest in 16; what is loaded today keeps routed experts in 16."
)


@dataclass(frozen=True)
class Shape:
    """The text model: every ``step``-th layer has ``experts`` routed experts, one of which a token takes, and a shared
    one, all of width ``ffn_dim``; the other layers are dense, ``dense_dim`` wide."""

    experts: int
    step: int
    layers: int = 48
    dim: int = 5120
    heads: int = 40
    kv_heads: int = 8
    head_dim: int = 128
    ffn_dim: int = 8192
    dense_dim: int = 16384
    vocab_size: int = 202_048

    @property
    def sparse(self) -> int:
        """Layers with experts."""
        return self.layers // self.step

    def as_dense(self, ffn_dim: int) -> ModelConfig:
        """All layers dense and so wide: what a method sees of a layer without its routed experts."""
        return ModelConfig(
            self.layers, self.dim, self.heads, self.kv_heads, self.head_dim, ffn_dim, self.vocab_size, context=8192
        )

    def matrices(self, active: bool = False) -> dict[int, int]:
        """{numbers of a linear layer's weight: how many such there are}; ``active``: those that one token passes."""
        dense, found = self.as_dense(self.ffn_dim), dict[int, int]()
        routed = 1 if active else self.experts
        attention = [place for place in dense.layout.of(LINEAR) if ".self_attn." in place.path]
        counts = [(place.shape, 1) for place in attention]
        counts.append(((self.dim, self.ffn_dim), 3 * self.sparse * (routed + 1)))
        counts.append(((self.dim, self.dense_dim), 3 * (self.layers - self.sparse)))
        for (out, width), count in counts:
            found[out * width] = found.get(out * width, 0) + count
        return found

    def parameters(self, active: bool = False) -> int:
        """Of the text model; ``active``: those that one token passes."""
        linear = sum(numbers * count for numbers, count in self.matrices(active).items())
        router, norms = self.sparse * self.dim * self.experts, (2 * self.layers + 1) * self.dim
        return linear + router + norms + 2 * self.vocab_size * self.dim

    def nf4_bytes(self) -> int:
        """Text and images, linear layers of the text in 4 bits with scales in 8."""
        four = 0
        for numbers, count in self.matrices().items():
            blocks = ceil(numbers / BLOCK)
            four += count * (ceil(numbers / 2) + blocks + 4 * ceil(blocks / BLOCK2) + 4)
        rest = self.parameters() - sum(numbers * count for numbers, count in self.matrices().items())
        return four + 2 * (rest + TOWER)

    def trained(self, method: Method) -> int:
        """Of a method on everything but router and routed experts, counted by building it on dense layers."""
        sparse, dense = (dry_adapter(self.as_dense(w), [method]).num_trainable for w in (self.ffn_dim, self.dense_dim))
        found, rest = divmod(sparse * self.sparse + dense * (self.layers - self.sparse), self.layers)
        assert rest == 0
        return found

    def expert_lora(self, r: int = EXPERTS_RANK) -> int:
        """LoRA's on gate, up and down of every routed expert."""
        return self.sparse * self.experts * 3 * r * (self.dim + self.ffn_dim)


def _tower(dim: int = 1408, layers: int = 34, ffn: int = 5632, patch: int = 14, image: int = 336) -> int:
    """Numbers of the images' tower, with biases, class token, places, both norms, and of what leads into the text."""
    tokens = (image // patch) ** 2 + 1
    layer = 4 * (dim * dim + dim) + 2 * dim * ffn + ffn + dim + 4 * dim
    joined = (4 * dim) * 4096 + 4096 * 4096
    projector = 4096 * 5120
    return 3 * patch * patch * dim + dim + tokens * dim + 4 * dim + layers * layer + joined + projector


TOWER = _tower()
SHAPES = {"llama-4-scout": Shape(experts=16, step=1), "llama-4-maverick": Shape(experts=128, step=2)}


def counts(name: str, settings: dict[str, Method]) -> dict[str, int]:
    """Exact counts of one model: parameters, bytes of the base, and what every setting trains."""
    shape = SHAPES[name]
    total = shape.parameters() + TOWER
    return {
        "parameters": total,
        "text": shape.parameters(),
        "active": shape.parameters(active=True),
        "bf16_bytes": 2 * total,
        "nf4_bytes": shape.nf4_bytes(),
        "full": total,
        **{setting: shape.trained(method) for setting, method in settings.items()},
        f"LoRA, every routed expert, r {EXPERTS_RANK}": shape.expert_lora(),
    }
