"""A report written again from a record that was kept.

python -m halter.comparison.report RECORD.json FOLDER             report.html, report.md and report.csv
python -m halter.comparison.report RECORD.json FOLDER --markdown  report.md alone, with its figures as files beside it
"""

from __future__ import annotations

import sys
from pathlib import Path

from halter.comparison.report.writing import write, write_markdown
from halter.errors import HalterError
from halter.files.reading import read_json

MOST_BYTES = 64 << 20
"""Of a record: a thousand rows with the curves of five seeds have a tenth of it."""


def main(arguments: list[str]) -> int:
    made = write_markdown if arguments[2:] == ["--markdown"] else write
    if len(arguments) != 2 + (made is write_markdown):
        print("usage: python -m halter.comparison.report RECORD.json FOLDER [--markdown]", file=sys.stderr)
        return 2
    try:
        for path in made(read_json(arguments[0], MOST_BYTES), Path(arguments[1])):
            print(path)
    except HalterError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
