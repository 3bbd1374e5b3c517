"""Halter: adapt LLaMA models with small adapters beside a frozen base. Names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
import_module("halter.waiting")  # before torch is loaded
_HOME = {
    **dict.fromkeys(("HalterError", "Refusal"), "halter.errors"),
    "adapt": "halter.methods.adapter",
    "generate": "halter.generation.engine",
    "load": "halter.pretrained.load",
    "load_adapter": "halter.methods.storage",
    "merge": "halter.export.merge",
    "ready": "halter.methods.ready",
    "stack": "halter.methods.stacked",
    "train": "halter.run",
}
__all__ = [*_HOME, "__version__"]  # noqa: PLE0604 (the names are the table's)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'halter' has no attribute {name!r}; it has: {', '.join(sorted(__all__))}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
