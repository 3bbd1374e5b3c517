"""What the machine allows: operations and bytes that the work needs, and the rates at which this machine does them.

The floor counts, with the shortcuts that are exact: every frozen weight twice a token forward and twice backward (the
gradient of its input); q, o and the MLP of the last layer, and the head, on supervised tokens only; no backward through
q, k and v of the first layer, under which nothing is trained; causal attention over the pairs that exist; the adapter's
own products three times. A trained weight costs twice more for its own gradient. Element-wise work counts nothing.
``plain`` is the same without the shortcuts, attention and adapter: 4 a weight and token, the head on supervised tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from prepare import shape
from workloads import Setting, Work, data, model_folder

from halter.model.config import ModelConfig
from halter.model.layout import LINEAR
from halter.numerics import denormals

QKV, KV = ("q_proj", "k_proj", "v_proj"), ("k_proj", "v_proj")
NF4_BYTES = 0.5 + 1 / 64  # a weight: its code, and its share of a scale of 8 bits
REPEATS = 3


@dataclass(frozen=True)
class Product:
    """Rows that one matrix [out, in] is multiplied with: forward, for its input's gradient, for its own."""

    place: str
    size: tuple[int, int]
    forward: int
    backward: int
    own: int = 0
    times: int = 1

    @property
    def operations(self) -> int:
        return 2 * self.size[0] * self.size[1] * (self.forward + self.backward + self.own) * self.times


@dataclass(frozen=True)
class Floor:
    """What a piece of work needs at least."""

    products: list[Product]
    attention: int
    adapter: int
    plain: int
    pieces: dict[str, int] = field(default_factory=dict)

    @property
    def operations(self) -> int:
        return sum(product.operations for product in self.products) + self.attention + self.adapter


def adapter_sizes(work: Work, config: ModelConfig) -> dict[str, int]:
    """{place: numbers of the low-rank pair} of one layer; other methods' own products are too small to count."""
    method = work.method or {}
    if method.get("name") != "lora":
        return {}
    all_linear = method["target_modules"] == "all-linear"
    places = config.layout.names(LINEAR) if all_linear else method["target_modules"]
    shapes = {place.name: place.shape for place in config.layout}
    return {place: method["r"] * sum(shapes[place]) for place in places}


def floor(work: Work, config: ModelConfig, lengths: Sequence[int], targets: Sequence[int]) -> Floor:
    """Of a step, or an evaluation, over rows of ``lengths`` whose last ``targets`` tokens are supervised."""
    tokens, wanted = sum(lengths), sum(targets)
    train = work.trains
    full = train and (work.method or {}).get("name") == "full"
    pairs = adapter_sizes(work, config)
    products, adapter = [], 0
    for layer in range(config.layers):
        first, last = layer == 0, layer == config.layers - 1
        for place in config.layout.here(layer, LINEAR):
            n = wanted if last and place.name not in KV else tokens
            backward = 0 if not train or (first and place.name in QKV) else n
            products.append(Product(place.name, place.shape, n, backward, n if full else 0))
            adapter += pairs.get(place.name, 0) * n * (6 if train else 2)
    head = config.layout.at(None, "lm_head").shape
    products.append(Product("lm_head", head, wanted, wanted if train else 0, wanted if full else 0))
    weights = sum(prod(place.shape) for place in config.layout.of(LINEAR))
    each = 6 if full else 4 if train else 2
    plain = each * (weights * tokens + head[0] * head[1] * wanted)
    return Floor(_merged(products), _attention(work, config, lengths, targets), adapter, plain)


def _attention(work: Work, config: ModelConfig, lengths: Sequence[int], targets: Sequence[int]) -> int:
    """Causal products of queries, keys and values: 2 forward, 4 backward, a pair and number of a head."""
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    # The token before a supervised one is where it is predicted.
    asked = sum(sum(range(n - t, n)) for n, t in zip(lengths, targets, strict=True))
    train = work.trains
    after = (work.method or {}).get(
        "name"
    ) == "llama_adapter"  # acts after attention: the first layer needs no backward
    total = 0
    for layer in range(config.layers):
        products = 2 + (4 if train and not (after and layer == 0) else 0)
        total += products * 2 * (asked if layer == config.layers - 1 else pairs)
    return total * config.heads * config.head_dim


def _merged(products: Sequence[Product]) -> list[Product]:
    """Equal products once, with how often they occur."""
    seen: dict[Product, int] = {}
    for product in products:
        seen[product] = seen.get(product, 0) + 1
    return [Product(p.place, p.size, p.forward, p.backward, p.own, n) for p, n in seen.items()]


def decode_bytes(work: Work, config: ModelConfig, setting: Setting) -> int:
    """Bytes that one step of decoding reads: every weight once, and the cache of keys and values."""
    weights = sum(prod(place.shape) for place in config.layout.of(LINEAR))
    width = torch.empty((), dtype=getattr(torch, config.dtype)).element_size()
    read = weights * (NF4_BYTES if work.quantize else width) + width * config.vocab_size * config.dim
    held = setting.prompt_tokens + setting.new_tokens / 2
    return int(read + work.batch * held * config.layers * 2 * config.kv_heads * config.head_dim * width)


def best(work: Callable[[], Any], times: int = REPEATS) -> float:
    """The shortest of some wall times in seconds, after one that does not count."""
    work()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def product_seconds(products: Sequence[Product], dtype: torch.dtype) -> float:
    """Seconds of all of them, each of its directions measured at its own size."""
    known: dict[tuple[str, int, tuple[int, int]], float] = {}

    def one(way: str, rows: int, size: tuple[int, int]) -> float:
        if rows and (way, rows, size) not in known:
            weight = torch.randn(size, dtype=dtype)
            x, g = torch.randn(rows, size[1], dtype=dtype), torch.randn(rows, size[0], dtype=dtype)
            works = {"forward": lambda: F.linear(x, weight), "backward": lambda: g @ weight, "own": lambda: g.T @ x}
            known[way, rows, size] = best(works[way])
        return known.get((way, rows, size), 0.0)

    return sum(
        p.times * (one("forward", p.forward, p.size) + one("backward", p.backward, p.size) + one("own", p.own, p.size))
        for p in products
    )


def bandwidth(size: int) -> float:
    """Bytes a second of reading a buffer of ``size`` bytes over and over, by the faster of a sum and a product.

    The size is that of what the step reads: a part of it may stay in a large cache, and does for the model too.
    """
    buffer = torch.ones(size // 8192 * 2048, dtype=torch.float32)
    matrix, row = buffer.view(torch.bfloat16).view(-1, 2048), torch.ones(1, 2048, dtype=torch.bfloat16)
    return size / min(best(buffer.sum, 2 * REPEATS), best(lambda: F.linear(row, matrix), 2 * REPEATS))


@torch.inference_mode()
def measure(work: Work, setting: Setting) -> dict[str, Any]:
    """The limit of one row, as the other sides report theirs."""
    denormals.flush()
    config = shape(setting)
    if work.kind == "decode":
        return _decode(work, config, setting)
    if work.kind == "load":
        return _read(setting)
    rows = data(work, setting, config.vocab_size)
    need = floor(work, config, [len(row.tokens) for row in rows], [row.targets for row in rows])
    seconds = product_seconds(need.products, getattr(torch, setting.dtype))
    products = need.operations - need.attention - need.adapter
    rate = products / seconds
    return {
        "tokens": sum(len(row.tokens) for row in rows),
        "seconds": [need.operations / rate],
        "plain_seconds": need.plain / rate,
        "operations": need.operations,
        "attention": need.attention,
        "adapter": need.adapter,
        "plain_operations": need.plain,
        "operations_per_second": rate,
    }


def _decode(work: Work, config: ModelConfig, setting: Setting) -> dict[str, Any]:
    """The slower of reading the weights and multiplying with them at the rate of large products."""
    read = decode_bytes(work, config, setting)
    speed = bandwidth(read)
    weights = sum(prod(place.shape) for place in config.layout.of(LINEAR))
    operations = 2 * work.batch * (weights + config.vocab_size * config.dim)
    square = Product("square", (2048, 8192), 1024, 0)
    rate = square.operations / product_seconds([square], getattr(torch, setting.dtype))
    step = max(read / speed, operations / rate)
    return {
        "tokens": work.batch * setting.new_tokens,
        "seconds": [step * setting.new_tokens],
        "bytes": read,
        "bytes_per_second": speed,
        "operations": operations,
        "operations_per_second": rate,
    }


def _read(setting: Setting) -> dict[str, Any]:
    """Reading the files into memory, as they are."""
    files = sorted(model_folder(setting).glob("*.safetensors"))
    size = max(file.stat().st_size for file in files)
    buffer = bytearray(size)

    def read() -> None:
        for file in files:
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    pass

    began = time.perf_counter()
    read()
    return {"tokens": 1, "seconds": [time.perf_counter() - began], "bytes": sum(f.stat().st_size for f in files)}
