"""Programs in Java that libraries of measures bring: found, run, and heard out."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from halter.errors import Refusal

TOLD = 400
"""Letters of what a program that failed said, from its end."""


def refuse_no_java(needed_for: str) -> None:
    """Refusal ``java-missing``."""
    if shutil.which("java") is None:
        raise Refusal(
            "java-missing",
            f"there is no java on the PATH; it is needed for {needed_for}",
            where="--measures",
            expected="Java 8 or newer",
            fix="install one (Debian, Ubuntu: apt install default-jre-headless; conda install openjdk), or leave the "
            "measure out: exact match, token F1, ROUGE, BLEU and chrF need no Java",
        )


def run(arguments: Sequence[str], given: str = "") -> str:
    """What the program says to what is ``given``, both in UTF-8. Refusal ``java-failed``."""
    done = subprocess.run(["java", *arguments], input=given.encode("utf-8", "replace"), capture_output=True)
    if done.returncode:
        raise failed(done.stderr.decode("utf-8", "replace"))
    return done.stdout.decode("utf-8", "replace")


def failed(said: str) -> Refusal:
    """Refusal ``java-failed``: a program of a measure did not do what it is for."""
    found = " ".join(said.split())[-TOLD:]
    fix = "see whether `java -version` works and memory is free; or leave the measure out"
    return Refusal("java-failed", "a program of this measure failed", where="java", found=[found], fix=fix)
