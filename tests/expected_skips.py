"""Which tests may be skipped, why, and the line that tells it.

With CI set (to anything but 0 or false) a skip for another reason is a failure that names the test: nothing that
should be tested can go missing unseen. A machine without a GPU, a package without a wheel: those are told below.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable

NO_SHARED = "no shared data (HALTER_SHARED)"
EXPECTED = (
    r"no tokenizer\.model of Llama 4 \(HALTER_SHARED\)",
    # What this machine is not.
    r"needs a GPU",
    r"needs Linux's /proc to know the file of a descriptor",
    r"reads Linux's /proc",
    r"memory is read from /proc",
    r"processes are forked",
    r"forks",
    r"this C library is not glibc",
    r"no packed product on this machine.*",
    r"torch has no product of bf16 with 8-bit codes on this machine",
    r"torch lays no bf16 weight out on this machine",
    r"no x86 processor with AVX2",
    r"torch's OpenMP library is not GNU's",
    r"one core: no team",
    r"a CUDA device is there",
    r"/proc/stat",
    r"no bash",
    r"no openssl",
    r"no tesseract",
    r"no /dev/full",
    r"no right to mount a small disk",
    # A pair of parameters that means nothing.
    r"of the CPU",
    r"this kernel has no float32 on CUDA",
    r"torch makes all states before it moves anything",
    # Extras that make test does not install, and packages that have no wheel everywhere.
    r"lm-eval is not installed \(extra eval\)",
    r"pycocoevalcap or java is not there \(extra captions\)",
    r"could not import '(bitsandbytes|matplotlib|playwright|axe_playwright_python|langchain_openai|litellm).*",
    r"no (headless )?Chromium.*",
    # An sdist, or a tree that was copied.
    r"no git checkout to take the package's files from",
)
"""Whole reasons, as patterns. Keep it short."""
NEVER_IN_CI = (
    r"there is no docs/measured/example-report yet: make report",
    r"there is no verb demo yet",
    # make test installs them
    r"could not import '(peft|transformers|datasets|sentencepiece|lm_eval|mypy|starlette|uvicorn|openai|llguidance"
    r"|tenacity)'.*",
)
"""Reasons that stand in the suite and are failures in CI."""


def reason_of(longrepr: object) -> str:
    """pytest's (file, line, "Skipped: why") as why."""
    told = str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)
    return told.removeprefix("Skipped: ")


def strict() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def may(reason: str, shared_is_there: bool) -> bool:
    """Whether a test may be skipped for this reason here."""
    if reason == NO_SHARED:
        return not shared_is_there
    return any(re.fullmatch(pattern, reason) for pattern in EXPECTED)


def line(reasons: Iterable[str]) -> str:
    """All skips in one line, grouped by reason, the commonest first."""
    counted = Counter(" ".join(reason.split()) for reason in reasons)
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(counted.items(), key=lambda x: (-x[1], x[0])))
    return f"skipped: {counted.total()}" + (f" ({told})" if counted else "")
