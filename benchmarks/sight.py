"""What an adapter on the playground's base that sees learns of a type of question that was left out, seeing and blind.

    python benchmarks/sight.py FOLDER [--base FOLDER]

It trains the two adapters of halter/pretraining/sighted.py on the base in the package, or on another, and prints the
shares of right answers. The base itself is made anew by `halter playground pretrain FOLDER --base seeing`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from halter.playground import base_folder
from halter.pretraining.sighted import check_sight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--base", type=Path, default=base_folder("seeing"))
    args = parser.parse_args()
    print(json.dumps(check_sight(args.base, args.folder), indent=2))


if __name__ == "__main__":
    main()
