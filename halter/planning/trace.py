"""One pass of training or of reading a prompt, run by the real code on tensors without memory, every byte counted.

A tensor on meta has a shape and a lifetime, so what lives at the worst moment follows from the code that will run, for
every method alike; nothing here knows what a method does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from halter.adapters.adapter import Adapter
from halter.model.cache import Cache
from halter.model.decoder import Decoder
from halter.model.passes import Pass
from halter.model.pictures import Grid
from halter.model.segments import Segments
from halter.numerics import attention_cpu as attention
from halter.numerics import int8_product, losses, nf4, nf4_product
from halter.planning.seen import with_pictures
from halter.planning.shapes import Shapes
from halter.training.one_pass import Learnt, one_pass

COPIES, ACTIVATIONS, LOGITS, GRADIENTS, TEMPORARY = "copies", "activations", "logits", "gradients", "temporary"
WIDENS = (torch.ops.aten._to_copy, torch.ops.aten.clone)
KINDS = (COPIES, ACTIVATIONS, LOGITS, GRADIENTS, TEMPORARY)


@dataclass
class ByteCounter(TorchDispatchMode):
    """Bytes alive by kind, ``worst`` when their sum was largest, and floating-point operations of products.

    ``vocabulary``: a matrix of that width is logits.
    """

    vocabulary: int
    standing: frozenset[int]
    """Storages of base and adapter, which are counted elsewhere."""
    alive: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    worst: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    operations: int = 0
    binding: bool = False
    """Whether the adapter is being bound: what is made then are copies of its tensors."""
    _held: dict[int, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's wrapper against its compiler is left off: no plan is compiled, and each call would pay for it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = SHAPES.run(func, _on_meta(args), kwargs)
        packet, operations, inside = _about(func)
        if operations is not None:
            self.operations += int(operations(*args, **kwargs, out_val=made))
        for tensor in made if isinstance(made, (list, tuple)) else (made,):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._hold(tensor, packet)
        if inside is not None:
            taken, operations = inside(*args)
            self.operations += operations
            self._note(TEMPORARY, taken)
            self._note(TEMPORARY, -taken)
        return made

    def gradient(self, parameter: Tensor) -> None:
        """A parameter's gradient has come to stay."""
        assert parameter.grad is not None
        entry = self._held.get(parameter.grad.untyped_storage()._cdata)
        if entry is not None and entry[0] != GRADIENTS:
            self.alive[entry[0]] -= entry[1]
            entry[0] = GRADIENTS
            self.alive[GRADIENTS] += entry[1]

    def _hold(self, tensor: Tensor, operation: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held or key in self.standing:
            return
        kind, size = self._kind(tensor), storage.nbytes()
        if kind == LOGITS and operation in WIDENS:  # on a CPU the loss works on a few rows at a time
            size = min(size, losses.BLOCK_BYTES)
        entry: list[Any] = [kind, size, None]
        entry[2] = weakref.ref(storage, lambda _: self._forget(key))
        self._held[key] = entry
        self._note(entry[0], entry[1])

    def _kind(self, tensor: Tensor) -> str:
        if self.binding:
            return COPIES
        if tensor.ndim == 2 and tensor.shape[1] == self.vocabulary:
            return LOGITS
        return TEMPORARY if torch._C._current_graph_task_id() != -1 else ACTIVATIONS

    def _forget(self, key: int) -> None:
        kind, size, _ = self._held.pop(key)
        self.alive[kind] -= size

    def _note(self, kind: str, size: int) -> None:
        self.alive[kind] += size
        if size > 0 and sum(self.alive.values()) > sum(self.worst.values()):
            self.worst = dict(self.alive)


def _on_meta(args: Any) -> Any:
    """The arguments on one device: what says where rows lie stays on the CPU, because the code reads it."""
    devices = _devices(args, set())
    return _moved(args) if devices == {"cpu", "meta"} else args


def _devices(value: Any, found: set[str]) -> set[str]:
    for one in value:
        if isinstance(one, Tensor):
            found.add("meta" if one.is_meta else one.device.type)
        elif isinstance(one, (list, tuple)):
            _devices(one, found)
    return found


def _moved(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    return type(value)([_moved(one) for one in value]) if isinstance(value, (list, tuple)) else value


def _about(func: Any) -> tuple[Any, Any, Any]:
    """(what it is called, what counts its operations, what it takes inside) of one operation of torch's."""
    if func not in _ABOUT:
        packet = func.overloadpacket
        _ABOUT[func] = packet, flop_registry.get(packet), INSIDE.get(str(packet))
    return _ABOUT[func]


def _pairs(spans: Tensor, causal: bool) -> int:
    """Query and key pairs that are scored."""
    pairs = 0
    for _, queries, _, keys, *before in spans.tolist():
        pairs += queries * keys - (queries * (queries - 1) // 2 if causal else 0)
        pairs += queries * before[1] if before else 0
    return pairs


def _longest(spans: Tensor) -> int:
    return max((row[1] for row in spans.tolist()), default=0)


def _attend(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, causal: bool) -> tuple[int, int]:
    """(bytes inside numerics.attention_cpu's forward at its worst moment, operations): one row's output."""
    wide = 8 if q.dtype == torch.float64 else 4
    row = _longest(spans) * q.shape[1]
    return row * (q.shape[2] * q.itemsize + wide), 4 * q.shape[1] * q.shape[2] * _pairs(spans, causal)


def _attend_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[int, int]:
    """The same of its backward: keys and values repeated for every head, their wide gradients, one row's gradients."""
    spans, causal = rest[-2:]
    heads, width = q.shape[1], q.shape[2]
    repeated = 2 * k.shape[0] * heads * width * k.itemsize if heads != k.shape[1] else 0
    wide = 2 * k.shape[0] * heads * width * (8 if q.dtype == torch.float64 else 4)
    longest = _longest(spans)
    short = longest <= attention.SHORT and q.itemsize < 4
    row = longest * heads * width * (4 * 8 if short else 3 * q.itemsize)
    return repeated + wide + row, 10 * heads * width * _pairs(spans, causal)


def _nf4_product(
    x: Tensor, codes: Tensor, scales: Any, shape: Any, bias: Any, transposed: bool, table: str
) -> tuple[int, int]:
    """The same of a product with a 4-bit weight: its scales in 32 bits, one dequantised piece, what the piece gives."""
    numbers, rows = shape[0] * shape[1], x.numel() // x.shape[-1]
    piece = min(nf4_product.PIECE_BYTES, numbers * x.itemsize)
    share = piece / (numbers * x.itemsize)
    part = int(rows * (shape[1] if transposed else shape[0]) * x.itemsize * share) if share < 1 else 0
    return 4 * numbers // nf4.BLOCK + piece + part, 2 * rows * numbers


def _int8_product(x: Tensor, codes: Tensor, absmax: Tensor, bias: Any, transposed: bool) -> tuple[int, int]:
    """The same with an 8-bit weight: one piece of cast codes and what it gives; backward also the gradient times the
    scales."""
    numbers, rows = codes.numel(), x.numel() // x.shape[-1]
    wide = numbers * x.itemsize
    piece = min(int8_product.piece_bytes(rows), wide)
    columns = codes.shape[1] if transposed else codes.shape[0]
    part = rows * columns * piece // wide * x.itemsize
    return piece + part + (x.nbytes if transposed else 0), 2 * rows * numbers


INSIDE: dict[str, Callable[..., tuple[int, int]]] = {
    "halter.attend": _attend,
    "halter.attend_backward": _attend_backward,
    "halter.nf4_product": _nf4_product,
    "halter.int8_product": _int8_product,
}
"""What our own operations take that torch does not see: {operation: (bytes, operations) of its arguments}."""


SHAPES = Shapes()
"""What is known of operations, for every pass of this process."""
_ABOUT: dict[Any, tuple[Any, Any, Any]] = {}


def _standing(*modules: nn.Module | None) -> frozenset[int]:
    held = [t for m in modules if m is not None for t in (*dict(m.named_parameters()).values(), *m.buffers())]
    return frozenset(tensor.untyped_storage()._cdata for tensor in held)


@dataclass(frozen=True)
class Traced:
    """Bytes by kind at the worst moment, beside weights and optimizer states; ``operations`` of the whole pass."""

    worst: dict[str, int]
    operations: int

    @property
    def total(self) -> int:
        return sum(self.worst.values())


def training_pass(
    base: Decoder,
    adapter: Adapter,
    rows: int,
    length: int,
    checkpointing: bool,
    again: bool = False,
    pictures: Sequence[Grid] = (),
) -> Traced:
    """Forward and backward of ``rows`` rows of ``length`` tokens, all of them learnt; base and adapter on meta.

    ``again``: gradients of an earlier pass of the same step are there already. ``pictures``: of what grids every row
    brings some; their tokens are not learnt, and their tiles are counted as they lie in a CPU's memory. Refusal
    ``plan-pictures`` (planning.seen).
    """
    count = rows * length
    tokens = torch.empty(count, dtype=torch.int64, device="meta")
    found = Traced(dict.fromkeys(KINDS, 0), 0)
    for _ in range(2 if again else 1):
        counter = ByteCounter(base.config.vocab_size, _standing(base, adapter))
        earlier = sum(p.grad.nbytes for p in adapter.parameters() if p.grad is not None)
        counter.alive[GRADIENTS] = counter.worst[GRADIENTS] = earlier
        hooks = [
            p.register_post_accumulate_grad_hook(counter.gradient) for p in adapter.parameters() if p.requires_grad
        ]
        with counter:
            segments, text = with_pictures(base.config, adapter, Segments.packed([length] * rows), pictures)
            learnt = Learnt(torch.tensor(text), tokens[: len(text)], torch.empty(len(text), device="meta"))
            counter.binding = True
            acts = adapter.bind(base, segments, key=0)
            counter.binding = False
            one_pass(base, tokens, segments, acts, learnt, checkpointing)
        for hook in hooks:
            hook.remove()
        found = Traced(counter.worst, counter.operations)
    adapter.zero_grad(set_to_none=True)
    return found


def reading_pass(
    base: Decoder, adapter: Adapter | None, rows: int, length: int, capacity: int, pictures: Sequence[Grid] = ()
) -> tuple[Traced, int]:
    """A prompt of ``length`` tokens a row read into a cache of ``capacity``, and its bytes; what the cache keeps of
    ``pictures`` besides counts with the pass."""
    cache = Cache(base.config, rows, capacity, base.dtype, "meta")
    cache.device = torch.device("cpu")  # where the rows' spans lie
    given = cache.segments([length] * rows)
    tokens = torch.empty(rows * length, dtype=torch.int64, device="meta")
    counter = ByteCounter(base.config.vocab_size, _standing(base, adapter))
    with torch.no_grad(), counter:
        segments, _ = with_pictures(base.config, adapter, given, pictures)
        counter.binding = True
        acts = None if adapter is None else adapter.bind(base, segments)
        counter.binding = False
        hidden = base.hidden(Pass(tokens, segments, acts, cache, wanted=segments.last_tokens))
        base.head(hidden, acts)
    held = sum(t.nbytes for t in (*cache.keys, *cache.values))
    return Traced(counter.worst, counter.operations), held
