"""Which methods there are: the names of the files in ``halter/methods`` are the registry."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from halter.contract.method import Method
from halter.contract.otherwise import in_python, spelt
from halter.errors import Refusal

HELD_ELSEWHERE = {
    "qlora": 'it is lora on a base in 4 bits: halter.load(PATH, quantize="nf4"), then halter.adapt(model, "lora"); a '
    "recipe and --method know it by this name"
}
"""{what a recipe calls a method: how it is had in Python}."""


@cache
def names() -> tuple[str, ...]:
    """Every method there is, by the names of the files in ``halter/methods``."""
    package = importlib.import_module("halter.methods")
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


@cache
def find(name: str) -> type[Method]:
    """The Method in the file of that name. Refusal ``unknown-method`` names those there are."""
    name = spelt(name, names())
    if name not in names():
        fix = HELD_ELSEWHERE.get(name) or in_python(name, names())
        raise Refusal("unknown-method", f"no method is called {name!r}", expected=", ".join(names()), fix=fix)
    module = importlib.import_module(f"halter.methods.{name}")
    return next(
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Method) and item.__module__ == module.__name__
    )
