"""What has to be said before anything imports torch: imported first, by conftest.py."""

from __future__ import annotations

import os

import halter.waiting  # noqa: F401  LLVM's threads sleep soon

os.environ.setdefault("OMP_NUM_THREADS", "1")  # equal bits need an equal number of threads, whatever the machine
