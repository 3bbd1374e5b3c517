"""The list of planted faults can still be planted; `make mutants` plants them."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def test_each_fault_can_be_planted() -> None:
    path = Path(__file__).parent / "mutants" / "run.py"
    spec = importlib.util.spec_from_file_location("mutants_run", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    assert len(module.faults()) > 3
    reasons = [why for fault in module.faults() if (why := module.stale(fault))]
    assert not reasons, reasons
