"""What fits into an amount of memory: the largest pass of one setting, and a ranking of many."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from halter.errors import Refusal
from halter.methods.method import Method, find, names
from halter.plan.dry import adapter_bytes, base_bytes, dry_adapter, dry_base
from halter.plan.forecast import STATE_BYTES
from halter.plan.setting import Setting
from halter.plan.trace import training_pass

UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
UNITS["tib"] = 2**40
FEW, MANY = 2, 4
"""Depths at which a pass is run to know what a layer adds."""
SHORT, LONG = 512, 1024
"""Tokens of a pass at which it is run to know what a token adds."""
ORDER = (
    "16 bits before 4, no activation checkpointing before it, then more trained numbers; how well each learns is not "
)
ORDER += "known before training, halter compare measures it"


def bytes_of(words: str) -> int:
    """``8GB``, ``7.5 GiB``, ``800MB`` as bytes. Refusal ``memory-amount``."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", words.lower())
    if not found or found[2] not in UNITS or float(found[1]) <= 0:
        raise Refusal("memory-amount", f"{words!r} is no amount of memory", expected="such as 8GB, 7.5GiB or 800MB")
    return int(float(found[1]) * UNITS[found[2]])


@dataclass(frozen=True)
class Largest:
    """What fits beside the base: ``rows`` of the wanted length in one pass, and the ``length`` of a single row; 0 where
    not even one fits, or one token."""

    rows: int
    length: int


def largest(setting: Setting, budget: int) -> Largest:
    """The largest passes of a setting within ``budget`` bytes."""
    need = needs(setting)
    rows = _most(lambda count: need(count, setting.length) <= budget, 4096)
    return Largest(rows, _most(lambda count: need(1, count) <= budget, setting.shape.context))


def needs(setting: Setting) -> Callable[[int, int], int]:
    """Bytes of training by (rows, length): what stands exactly, a pass from four small ones, linear in depth and
    tokens. A method that depends on the depth is run at its own."""
    shape = setting.shape
    base, adapter = dry_base(shape, setting.dtype, setting.nf4), dry_adapter(shape, setting.methods)
    trained = adapter.num_trainable
    standing = base_bytes(base).total + adapter_bytes(adapter) + trained * STATE_BYTES[setting.optimizer]
    moving = 4 * trained

    def run(depth: int, tokens: int) -> int:
        small = replace(shape, layers=depth)
        own = dry_base(small, setting.dtype, setting.nf4), dry_adapter(small, setting.methods)
        return training_pass(*own, 1, tokens, setting.checkpointing, setting.passes > 1).total

    few, many = (FEW, MANY) if shape.layers > MANY else (shape.layers, shape.layers)
    try:
        corners = {(depth, tokens): run(depth, tokens) for depth in (few, many) for tokens in (SHORT, LONG)}
    except Refusal:
        few = many = shape.layers
        corners = {(few, tokens): run(few, tokens) for tokens in (SHORT, LONG)}

    def at(tokens: int) -> float:
        low, high = (_line(SHORT, corners[d, SHORT], LONG, corners[d, LONG], tokens) for d in (few, many))
        return low if few == many else _line(few, low, many, high, shape.layers)

    return lambda rows, length: standing + max(moving, int(at(rows * length)))


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
class Choice:
    """One way to train within a budget; ``operations`` for one token."""

    method: str
    nf4: bool
    checkpointing: bool
    trainable: int
    need: int
    """Bytes with one row of the wanted length."""
    operations: int
    fits: bool
    largest: Largest

    @property
    def rank(self) -> tuple[bool, bool, bool, int]:
        """ORDER as a key to sort by; what does not fit comes last."""
        return (not self.fits, self.nf4, self.checkpointing, -self.trainable)


def ranked(setting: Setting, budget: int, methods: Sequence[Method] | None = None) -> list[Choice]:
    """Every method (its defaults, for the setting's own its options) x 16 bits or NF4 x activation checkpointing."""
    own = {method.name(): method for method in setting.methods} if len(setting.methods) == 1 else {}
    chosen = methods or [own.get(name) or find(name)() for name in names()]
    return sorted(_choices(setting, budget, chosen), key=lambda choice: choice.rank)


def _choices(setting: Setting, budget: int, methods: Sequence[Method]) -> Iterator[Choice]:
    for method in methods:
        try:
            method.check(setting.shape)
        except Refusal:  # its defaults make no sense on this model
            continue
        for nf4 in (False, True):
            if nf4 and method.name() == "full":  # it replaces the weights that would be in 4 bits
                continue
            for on in (False, True):
                one = replace(setting, methods=(method,), nf4=nf4, checkpointing=on, rows=1, passes=1)
                yield _choice(one, budget)


def _choice(one: Setting, budget: int) -> Choice:
    need = needs(one)
    total = need(1, one.length)
    rows = _most(lambda count: need(count, one.length) <= budget, 4096)
    length = _most(lambda count: need(1, count) <= budget, one.shape.context)
    return Choice(
        one.methods[0].name(), one.nf4, one.checkpointing, dry_adapter(one.shape, one.methods).num_trainable, total,
        operations_per_token(one), total <= budget, Largest(rows, length),
    )  # fmt: skip


def operations_per_token(one: Setting) -> int:
    """Of training, from two small depths."""

    def run(depth: int) -> int:
        small, length = replace(one.shape, layers=depth), min(one.length, LONG)
        base, adapter = dry_base(small, one.dtype, one.nf4), dry_adapter(small, one.methods)
        return training_pass(base, adapter, 1, length, one.checkpointing).operations // length

    if one.shape.layers <= MANY:
        return run(one.shape.layers)
    return int(_line(FEW, run(FEW), MANY, run(MANY), one.shape.layers))
