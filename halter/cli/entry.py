"""The command `halter`: Ctrl-C first, then everything else."""

from __future__ import annotations

from typing import NoReturn

from halter.cli.interrupts import begin


def entry() -> NoReturn:
    """The command `halter`."""
    begin()
    from halter.cli import main

    main.entry()
