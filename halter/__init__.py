"""Halter: adapt LLaMA models with small adapters beside a frozen base. Names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from halter.version import __version__ as __version__

import_module("halter.waiting")  # before torch is loaded
_HOME = {
    **dict.fromkeys(("HalterError", "Refusal"), "halter.errors"),
    **dict.fromkeys(("Callback", "StopTraining"), "halter.training.callbacks"),
    "adapt": "halter.adapters.adapter",
    "compare": "halter.comparison.whole",
    "inspect": "halter.inspection.asked",
    **dict.fromkeys(("doctor", "plan"), "halter.run.asked"),
    "evaluate": "halter.run.scoring",
    "generate": "halter.generation.engine",
    "load": "halter.pretrained.load",
    "load_adapter": "halter.adapters.loading",
    "merge": "halter.run.merging",
    "ready": "halter.adapters.ready",
    "stack": "halter.adapters.stacked",
    "train": "halter.run",
}
__all__ = [*_HOME, "__version__"]  # noqa: PLE0604 (the names are the table's)

if TYPE_CHECKING:  # what editors and checkers read; a test holds it to the table
    from halter.adapters.adapter import adapt as adapt
    from halter.adapters.loading import load_adapter as load_adapter
    from halter.adapters.ready import ready as ready
    from halter.adapters.stacked import stack as stack
    from halter.comparison.whole import compare as compare
    from halter.errors import HalterError as HalterError
    from halter.errors import Refusal as Refusal
    from halter.generation.engine import generate as generate
    from halter.inspection.asked import inspect as inspect
    from halter.pretrained.load import load as load
    from halter.run import train as train
    from halter.run.asked import doctor as doctor
    from halter.run.asked import plan as plan
    from halter.run.merging import merge as merge
    from halter.run.scoring import evaluate as evaluate
    from halter.training.callbacks import Callback as Callback
    from halter.training.callbacks import StopTraining as StopTraining


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        told = import_module("halter.elsewhere").missing_name(name) or f"; it has: {', '.join(sorted(__all__))}"
        raise AttributeError(f"module 'halter' has no attribute {name!r}{told}", name=name)
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
