"""Writes the words of `halter completion` anew, after a change of commands, keys or methods."""

from __future__ import annotations

import json

from halter.cli.completion import WORDS, gathered

if __name__ == "__main__":
    WORDS.write_text(json.dumps(gathered(), indent=1) + "\n", "utf-8")
