"""Everything that a GPU is needed for, in one command of at most eight minutes: `make gpu`.

    python benchmarks/gpu.py [--json FILE] [--page]

Needs torch (2.11 or newer), for the peer transformers and peft; no network, no bitsandbytes, no other package. Every
part runs by itself: one that fails is told in the record with its error, and the others go on. Exit code 1 then.
DEVICE=cpu TINY=1 rehearses the same script on tiny shapes, which the tests do. ``--page`` writes docs/measured/gpu.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

from gpu_quick import decoding, peer, rates, training  # noqa: E402 the folders are on the path now
from gpu_right import compiled, laws, resume, storages, streaming  # noqa: E402
from gpu_stage import TINY, Facts, Part, machine  # noqa: E402

PAGE = ROOT / "docs" / "measured" / "gpu.md"
BUDGET_SECONDS = 480.0
PARTS: dict[str, Part] = {
    "laws": laws,
    "storages": storages,
    "streaming": streaming,
    "compiled": compiled,
    "resume": resume,
    "rates": rates,
    "lora": training(None),
    "qlora": training("nf4"),
    "decoding": decoding,
    "peer": peer,
}
"""In this order: what is right comes before what is quick, ours before the peer."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "gpu.json")
    parser.add_argument("--page", action="store_true")
    chosen = parser.parse_args()
    record: Facts = {"machine": machine(), "parts": {}}
    began = time.monotonic()
    for name, part in PARTS.items():
        if time.monotonic() - began > BUDGET_SECONDS:
            record["parts"][name] = {"skipped": "the eight minutes are over"}
            continue
        start = time.monotonic()
        try:
            record["parts"][name] = part()
        except Exception as error:  # the other parts go on
            record["parts"][name] = {"failed": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        record["parts"][name]["wall_seconds"] = round(time.monotonic() - start, 1)
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(record, indent=1) + "\n")
        print(name, {k: v for k, v in record["parts"][name].items() if k != "trace"}, flush=True)
    if chosen.page and TINY:
        print(f"{PAGE.name} is not written: tiny shapes are a rehearsal")
    elif chosen.page:
        PAGE.write_text(page(record))
    return int(any("failed" in part for part in record["parts"].values()))


def page(record: Facts) -> str:
    """docs/measured/gpu.md."""
    where, parts = record["machine"], record["parts"]
    lines = [
        "# On a GPU",
        "",
        f"Written by `make gpu` on {where['date']}: {where.get('name', where['device'])}, torch {where['torch']}.",
        "",
        "| part | what was found |",
        "|---|---|",
    ]
    for name, facts in parts.items():
        shown = "; ".join(f"{key} {_short(value)}" for key, value in facts.items() if key != "trace")
        lines.append(f"| {name} | {shown} |")
    ours, theirs = parts.get("lora", {}), parts.get("peer", {})
    if "tokens_per_second" in ours and "tokens_per_second" in theirs:
        lines += ["", f"LoRA beside peft: {ours['tokens_per_second'] / theirs['tokens_per_second']:.2f}x."]
    rates, lora = parts.get("rates", {}), ours.get("operations_per_second")
    if lora and "operations_per_second" in rates:
        lines.append(f"Of the rate of a large product: {lora / rates['operations_per_second']:.0%}.")
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
