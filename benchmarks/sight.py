"""The playground's base that sees: made anew, and what an adapter on it learns seeing and blind.

    python benchmarks/sight.py make FOLDER
    python benchmarks/sight.py check FOLDER [--base FOLDER]

``make`` runs the committed recipe (halter/pretraining/sight.py); ``check`` trains the two adapters of
halter/pretraining/sighted.py on the base in the package, or on another, and prints the shares of right answers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from halter.playground import base_folder
from halter.pretraining.sight import pretrain_sight
from halter.pretraining.sighted import check_sight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--base", type=Path, default=base_folder("seeing"))
    parser.add_argument("--threads", type=int, default=1, help="of make; other numbers add up in another order")
    args = parser.parse_args()
    if args.what == "check":
        print(json.dumps(check_sight(args.base, args.folder), indent=2))
        return
    torch.set_num_threads(args.threads)

    def log(record: dict) -> None:
        if record["step"] % 25 == 1:
            print(f"step {record['step']}/{record['steps']}  loss {record['loss']:.4f}", flush=True)

    print(json.dumps(pretrain_sight(args.folder, log=log), indent=2))


if __name__ == "__main__":
    main()
