"""What an adapter costs beside its quality: bytes, start, decoding, merging, being made smaller."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from halter.adapters.adapter import Adapter
from halter.adapters.loading import load_adapter
from halter.comparison.scores import EvaluationSuite, decode_rates
from halter.errors import HalterError
from halter.evaluation.score import held_out_loss
from halter.export.compress import CompressOptions, compress
from halter.export.merge import merge
from halter.files.folders import discard
from halter.model.decoder import Decoder

BITS: Literal[8] = 8
"""Of the compressed adapter."""
LARGE = 1 << 30
"""Bytes of an adapter's folder from which on it is not compressed as well."""


def size_of(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def costs(
    model: Decoder, adapter: Adapter, kept: Path, suite: EvaluationSuite, base: Path, scratch: Path
) -> dict[str, Any]:
    """Of an adapter that lies in ``kept``; ``base`` is the base's folder, ``scratch`` holds what is thrown away again.

    ``decode_share``: of the base's speed, which is measured in turn with it. ``merge_gap``: mean Kullback-Leibler
    divergence in nats of the merged model from what was trained, None where nothing can be merged.
    """
    began = time.perf_counter()
    load_adapter(kept, model)
    result: dict[str, Any] = {"startup_seconds": time.perf_counter() - began, "adapter_bytes": size_of(kept)}
    rates = decode_rates(model, suite, (adapter, None))
    result["decode_tokens_per_second"] = None if rates is None else rates[0]
    result["decode_share"] = None if rates is None else rates[0] / rates[1]
    result["compressed_bytes"] = result["compressed_loss"] = None
    for name in ("compressed", "merged"):
        with suppress(OSError, HalterError):  # of an attempt that was interrupted
            if (scratch / name).exists():
                discard(scratch / name)
    if result["adapter_bytes"] < LARGE:
        with suppress(HalterError):
            smaller, _ = compress(adapter, scratch / "compressed", CompressOptions(bits=BITS))
            result["compressed_bytes"] = size_of(scratch / "compressed")
            result["compressed_loss"] = held_out_loss(model, suite.test, smaller, suite.pass_tokens)
            discard(scratch / "compressed")
    result["mergeable"] = not adapter.unfoldable()
    result |= _merged(model, adapter, base, scratch / "merged") if result["mergeable"] else {"merge_gap": None}
    return result


def _merged(model: Decoder, adapter: Adapter, base: Path, folder: Path) -> dict[str, Any]:
    if shutil.disk_usage(folder.parent).free < 3 * size_of(base):
        return {"merge_gap": None, "merge_why": "no room on the disk for a merged model"}
    try:
        report = merge(model, adapter, folder, source=base, allow_gap=True)
    except HalterError as error:
        return {"merge_gap": None, "merge_why": str(error)}
    discard(folder)
    gap = report.trained_gap or report.gap
    return {"merge_gap": gap.kl, "merge_largest": gap.largest, "merge_same_token": gap.same_token}
