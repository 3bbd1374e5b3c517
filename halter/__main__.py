"""`python -m halter` is the command `halter`."""

from __future__ import annotations

from halter.cli.entry import entry

if __name__ == "__main__":
    entry()
