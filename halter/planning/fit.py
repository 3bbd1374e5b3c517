"""What fits into an amount of memory: the largest pass of one setting, and a ranking of many."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from halter.adapters.adapter import trained_matrices
from halter.arguments import with_unit
from halter.contract.method import Method
from halter.contract.registry import find, names
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.storages import Quantize, StorageName
from halter.planning.dry import adapter_bytes, base_bytes, dry_adapter, dry_base
from halter.planning.forecast import STATE_BYTES
from halter.planning.seen import encoder_bytes
from halter.planning.setting import Setting
from halter.planning.trace import Traced, training_pass

UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
UNITS["tib"] = 2**40
LEAST_BYTES = 10**6
"""An amount without a unit is bytes from here on; nobody has fewer, and who writes 24 means gigabytes."""
FEW, MANY = 2, 4
"""Depths at which a pass is run to know what a layer adds, where all layers are of one kind (``depths``)."""
TOP = "adapter_layers"
"""The option of methods that act in so many topmost layers."""
COUNTS = 256, 1024, 4096
"""Tokens of a pass at which it is run to know what a token adds. With many tokens another moment is the worst than with
few, and the last two say what a further token adds to a large pass."""
ROWS = 1, 2, 8
"""Rows of a pass at which it is run instead where rows bring pictures, which come to as many tokens as they have."""
HELD: tuple[Quantize | None, ...] = (None, "int8", "nf4")
"""How the linear layers can be held, from many bits to few."""
ORDER = (
    "16 bits before 8 before 4, no activation checkpointing before it, then more trained numbers; how well each learns "
)
ORDER += "is not known before training, halter compare measures it"


def bytes_of(words: str) -> int:
    """``8GB``, ``7.5 GiB``, ``800MB``, ``8000000000`` as bytes. Refusal ``memory-amount``."""
    found = re.fullmatch(r"\s*(\d+(?:[.,]\d+)?)\s*([a-z]*)\s*", words.lower())
    unit = found[2] if found else ""
    if not found or unit not in UNITS or "," in found[1] or float(found[1]) <= 0:
        meant = f"{found[1].replace(',', '.')}{found[2][:1].upper()}B" if found and unit[:1] in ("m", "g", "t") else ""
        fix = f"--memory {meant}" if meant and float(meant[:-2]) > 0 else ""
        what = f"{words!r} is not read as memory"
        raise Refusal("memory-amount", what, expected="such as 8GB, 7.5GiB or 800MB", fix=fix).by_keyword()
    if not unit and float(found[1]) < LEAST_BYTES:
        what, fix = f"{found[1]} what? An amount of memory has a unit", f"--memory {with_unit(found[1])}"
        raise Refusal("memory-amount", what, expected="such as 8GB, 7.5GiB or 800MB", fix=fix).by_keyword()
    return int(float(found[1]) * UNITS[unit])


@dataclass(frozen=True)
class Largest:
    """What fits beside the base: ``rows`` of the wanted length in one pass, and the ``length`` of a single row; 0 where
    not even one fits, or one token."""

    rows: int
    length: int


@dataclass(frozen=True)
class Needs:
    """What training takes at any size of a pass: what stands exactly, a pass from six small ones, linear in depth and,
    between two of them, in tokens. ``corners``: {(layers, tokens): pass}; a method that cannot be so shallow is run at
    the model's depth. With more tokens come as many more pictures as the setting's rows have."""

    layers: int
    standing: int
    moving: int
    """Bytes of all gradients, when the optimizer moves."""
    corners: dict[tuple[int, int], Traced]

    def bytes(self, rows: int, length: int) -> int:
        """Of a pass of ``rows`` rows of ``length`` tokens, with all that stands."""
        return self.standing + max(self.moving, int(self._at(rows * length, lambda passed, _: passed.total)))

    def operations(self, length: int) -> int:
        """Floating-point operations for one token of a row so long."""
        return int(self._at(length, lambda passed, tokens: passed.operations / tokens))

    def _at(self, tokens: int, figure: Callable[[Traced, int], float]) -> float:
        known: dict[int, list[tuple[int, float]]] = {}
        for (depth, count), passed in sorted(self.corners.items()):
            known.setdefault(depth, []).append((count, figure(passed, count)))
        at = [(depth, _bent(points, tokens)) for depth, points in known.items()]
        return at[0][1] if len(at) == 1 else _line(*at[0], *at[1], self.layers)


def largest(setting: Setting, budget: int, need: Needs | None = None) -> Largest:
    """The largest passes of a setting within ``budget`` bytes."""
    found = need or needs(setting)
    return Largest(
        most_rows(found, setting.length, budget),
        _most(lambda count: found.bytes(1, count) <= budget, setting.shape.context),
    )


def most_rows(need: Needs, length: int, budget: int) -> int:
    """Rows of ``length`` tokens in one pass that fit."""
    return _most(lambda count: need.bytes(count, length) <= budget, 4096)


def needs(setting: Setting, stands: Standing | None = None) -> Needs:
    """Run the six small passes, or with pictures three of the model's depth. Refusals as the methods' own."""
    shape = setting.shape
    found = stands or standing(setting)
    sizes = [(rows, setting.length) for rows in ROWS] if setting.pictures else [(1, count) for count in COUNTS]

    def run(shallow: Sequence[int]) -> dict[tuple[int, int], Traced]:
        made = {}
        for depth in shallow:
            small = replace(shape, layers=depth)
            methods = [_shallow(method, shape.layers - depth) for method in setting.methods]
            base = _base(small, setting.dtype, setting.quantize, setting.experts_too)
            own = base, dry_adapter(small, methods)
            for rows, length in sizes:
                made[depth, rows * length] = training_pass(
                    *own, rows, length, setting.checkpointing, setting.passes > 1, setting.pictures
                )
        return made

    try:
        free = max(shape.layers - getattr(method, TOP, shape.layers) for method in setting.methods)
        # A tower takes the same beside few layers and many, so that beside few its moment is the worst.
        corners = run((shape.layers,) if setting.pictures else depths(shape, free))
    except Refusal:
        corners = run((shape.layers,))
    return Needs(shape.layers, found.base + found.adapter, 4 * found.trained, corners)


def depths(shape: ModelConfig, free: int = 0) -> tuple[int, ...]:
    """Two depths at which to run a shape whose lowest ``free`` layers are left alone, or its own where it is no deeper.

    Both end as the shape does, and the one has of each kind of layer as many turns more than the other: the pass is at
    its worst in the last layers, and what a layer adds is the mean over a turn.
    """
    kinds = shape.layer_kinds
    turn = next(count for count in range(1, len(kinds) + 1) if kinds[count:] == kinds[:-count])
    few = FEW + max(0, free)
    few += (shape.layers - few) % turn
    many = few + turn * -(-(MANY - FEW) // turn)
    return (few, many) if shape.layers > many else (shape.layers,)


@dataclass(frozen=True)
class Standing:
    """Bytes that stand whatever the pass: of ``base``, of ``adapter`` and optimizer states; ``trained`` numbers, and
    whether they are the layers' matrices themselves."""

    base: int
    adapter: int
    trained: int
    matrices: bool


def standing(setting: Setting) -> Standing:
    """What stands of a setting."""
    adapter = dry_adapter(setting.shape, setting.methods)
    trained = adapter.num_trainable
    states = trained * STATE_BYTES[setting.optimizer]
    return Standing(bytes_of_base(setting), adapter_bytes(adapter) + states, trained, bool(trained_matrices(adapter)))


_base = lru_cache(maxsize=16)(dry_base)
"""Frozen, on meta, and the same for every method: laid out once."""


def bytes_of_base(setting: Setting) -> int:
    """What the base of a setting takes on its device, and the encoder of pictures where an adapter sees by one."""
    held = _bytes_held(setting.shape, setting.dtype, setting.quantize, setting.experts_too, setting.offload)
    return held + encoder_bytes(setting.methods)


@lru_cache(maxsize=16)
def _bytes_held(shape: ModelConfig, dtype: torch.dtype, quantize: str | None, experts_too: bool, offload: bool) -> int:
    return base_bytes(dry_base(shape, dtype, quantize, experts_too), offload).total


def _shallow(method: Method, less: int) -> Method:
    """The method on a model with ``less`` layers less; those below its topmost ones stay."""
    top = getattr(method, TOP, None)
    return method if top is None else replace(method, **{TOP: max(1, top - less)})


def _bent(points: Sequence[tuple[int, float]], x: float) -> float:
    """At ``x`` of the bent line through points in ascending order, which goes on at both ends as it is there."""
    last = len(points) - 1
    right = next((n for n in range(1, last) if x <= points[n][0]), last)
    return _line(*points[right - 1], *points[right], x)


def _line(x0: float, y0: float, x1: float, y1: float, x: float) -> float:
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _most(fits: Callable[[int], bool], most: int) -> int:
    """The largest count from 0 to ``most`` that fits, where more never fits better."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


@dataclass(frozen=True)
class Fit:
    """One way to train within a budget; ``operations`` for one token, None where what stands is too much by itself."""

    method: str
    quantize: StorageName | None
    checkpointing: bool
    trainable: int
    need: int
    """Bytes with one row of the wanted length; of what stands alone, where that is too much by itself."""
    operations: int | None
    fits: bool
    largest: Largest

    @property
    def rank(self) -> tuple[bool, int, bool, int]:
        """ORDER as a key to sort by; what does not fit comes last."""
        return (not self.fits, HELD.index(self.quantize), self.checkpointing, -self.trainable)


def ranked(
    setting: Setting,
    budget: int,
    methods: Sequence[Method] | None = None,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> list[Fit]:
    """Every method (its defaults, for the setting's own its options) x 16, 8 or 4 bits x activation checkpointing.

    ``tell(done, of)`` hears how many methods have been tried.
    """
    own = {method.name(): method for method in setting.methods} if len(setting.methods) == 1 else {}
    chosen = methods or [own.get(name) or find(name)() for name in names()]
    found: list[Fit] = []
    for done, method in enumerate(chosen):
        tell(done, len(chosen))
        found += _choices(setting, budget, [method])
    return sorted(found, key=lambda choice: choice.rank)


def _choices(setting: Setting, budget: int, methods: Sequence[Method]) -> Iterator[Fit]:
    for method in methods:
        try:
            method.check(setting.shape)
        except Refusal:  # its defaults make no sense on this model
            continue
        stands: Standing | None = None
        for held in HELD:
            one = replace(setting, methods=(method,), quantize=held, rows=1, passes=1)
            stands = standing(one) if stands is None else replace(stands, base=bytes_of_base(one))
            if (held or setting.offload) and stands.matrices:  # frozen there
                continue
            for on in (False, True):
                yield _choice(replace(one, checkpointing=on), budget, stands)


def _choice(one: Setting, budget: int, stands: Standing) -> Fit:
    way = one.methods[0].name(), one.quantize, one.checkpointing, stands.trained
    least = stands.base + stands.adapter
    if least > budget:  # why run its passes
        return Fit(*way, need=least, operations=None, fits=False, largest=Largest(0, 0))
    need = needs(one, stands)
    total = need.bytes(1, one.length)
    return Fit(
        *way,
        need=total,
        operations=need.operations(one.length),
        fits=total <= budget,
        largest=largest(one, budget, need),
    )
