"""A record of a comparison that never took place: every name and number in it is made up."""

from __future__ import annotations

from typing import Any

GAINS = {"alpha": 1.20, "beta": 1.21, "gamma_v2": 1.55, "delta": 2.10, "alpha-nf4": 1.27}
PEAKS = {"alpha": 400e6, "beta": 900e6, "gamma_v2": 380e6, "delta": 350e6, "alpha-nf4": 250e6}
TRAINED = {"alpha": 286_720, "beta": 3_279_104, "gamma_v2": 20_736, "delta": 5_120, "alpha-nf4": 286_720}


def row(name: str, n: int) -> dict[str, Any]:
    """A finished row, 3 seeds."""
    gain, peak = GAINS[name], PEAKS[name]
    nf4 = name.endswith("nf4")
    losses = [gain - 0.02, gain, gain + 0.02]
    curve = [
        [
            {"step": s, "tokens": 20_000 * s, "seconds": (4.0 + n) * s, "validation_loss": loss + 4.0 / (1 + s)}
            for s in range(6)
        ]
        for loss in losses
    ]
    search = [
        {
            "learning_rate": rate,
            "tokens": tokens,
            "validation_loss": gain + 40_000 / tokens + abs(i - 1) * 0.1 * (1 + n),
        }
        for tokens, rates in ((20_000, (1e-4, 1e-3, 1e-2)), (60_000, (1e-4, 1e-3)))
        for i, rate in enumerate(rates)
    ]
    return {
        "name": name,
        "method": {"name": name.removesuffix("-nf4"), "r": 8},
        "precision": "nf4" if nf4 else "float32",
        "status": "done",
        "why": None,
        "trainable": TRAINED[name],
        "share": TRAINED[name] / 3_279_104,
        "mergeable": name != "gamma_v2",
        "merge_gap": 1e-6 * n or None,
        "adapter_bytes": 4 * TRAINED[name],
        "compressed_bytes": TRAINED[name],
        "compressed_loss": gain + 0.01,
        "memory": {
            "planned": {"base": peak * (0.2 if nf4 else 0.4), "adapter": peak * 0.05, "activations": peak * 0.3},
            "measured_peak_bytes": peak,
            "runtime_bytes": 120e6,
        },
        "tokens_per_second": 4000.0 - 300 * n,
        "seconds": 20.0 + 5 * n,
        "decode_tokens_per_second": 60.0 - n,
        "learning_rate": 1e-3,
        "search": search,
        "stability": 0.1 * (1 + n),
        "seeds": [
            {
                "seed": s,
                "test_loss": losses[s],
                "scores": {"exact_match": 0.5},
                "curve": curve[s],
                "forgetting": 0.01 * n + 0.002 * s,
                "seconds": 20.0 + 5 * n,
                "recipe": f"recipes/{name}-{s}.yaml",
            }
            for s in range(3)
        ],
        "mean": {"test_loss": gain, "exact_match": 0.9 - gain / 4, "chrf": 80 - 10 * gain},
        "spread": {"test_loss": 0.02, "exact_match": 0.03},
        "interval": {"test_loss": [gain - 0.03, gain + 0.03]},
        "recipe": f"recipes/{name}.yaml",
    }


def record() -> dict[str, Any]:
    """Six finished rows, one failed, one left out; alpha and beta tie."""
    rows = [row(name, n) for n, name in enumerate(GAINS)]
    base = {
        "name": "base",
        "status": "done",
        "precision": "float32",
        "seeds": [],
        "mean": {"test_loss": 3.0, "exact_match": 0.05},
    }
    failed = {
        "name": "epsilon",
        "method": {"name": "epsilon"},
        "precision": "float32",
        "status": "failed",
        "why": "the loss left the numbers",
    }
    left = {
        "name": "zeta",
        "method": {"name": "zeta"},
        "precision": "float32",
        "status": "left out",
        "why": "does not fit in 1 GB",
    }
    return {
        "halter": "0.0.0-made-up",
        "date": "2001-02-03",
        "machine": {
            "cores": 2,
            "memory_bytes": 8_000_000_000,
            "processor": "abacus",
            "torch": "0.0",
            "python": "3.x",
            "device": "cpu",
        },
        "base": {"name": "made-up-base", "parameters": 3_279_104, "digest": "00ff"},
        "data": {
            "train": "made-up/train.jsonl",
            "validation": "v.jsonl",
            "test": "t.jsonl",
            "rows": {"train": 800},
            "digests": {"train": "ab"},
        },
        "budget": {"tokens": 120_000, "seeds": 3, "search_trials": 5},
        "settings": {"max_length": 128},
        "rows": [base, *rows, failed, left],
        "ties": [["alpha", "beta"]],
        "verdicts": [
            {"claim": "alpha is cheap", "verdict": "measured", "holds": True, "size": "3M", "figures": {"alpha": 1.2}},
            {"claim": "beta counts 5", "verdict": "arithmetic", "holds": False, "size": "7B", "figures": "6, not 5"},
            {"claim": "delta beats all", "verdict": "not testable here", "holds": None, "size": None, "figures": None},
        ],
    }
