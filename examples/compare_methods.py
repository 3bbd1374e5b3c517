"""Which method? Train some on the same rows with the same number of tokens, and score them on rows that none has seen.

    python examples/compare_methods.py [--model DIR --data FILE --test FILE --methods lora dora --output DIR]

Small on purpose, so it says little: one base, few tokens, two seeds, and a learning rate searched from each method's
default. docs/guide/compare.md has the full form. Without arguments: the embedded playground. About 40 s of CPU.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import halter
from halter.playground import base_folder, write_tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(base_folder()), help="a folder or hub id")
    parser.add_argument("--data", help="rows to train on; learning rates are chosen on a share of them")
    parser.add_argument("--test", help="rows to score on, which training never sees")
    parser.add_argument("--template", help="alpaca, ...: for a base model without a chat template of its own")
    parser.add_argument("--methods", nargs="+", default=["lora", "ia3"])
    parser.add_argument("--tokens", type=int, default=4_000, help="of every run, prompts included")
    parser.add_argument("--output", type=Path, help="a folder; a comparison that is there goes on")
    args = parser.parse_args()
    if (args.data is None) != (args.test is None):
        parser.error("give --data and --test, or neither")
    output = args.output or Path(tempfile.mkdtemp(prefix="halter-"))
    if args.data is None:
        tasks = output / "tasks"
        if not tasks.exists():
            write_tasks(tasks, train=600, test=20)
        args.data, args.test = (str(tasks / "manners" / f"{split}.jsonl") for split in ("train", "test"))

    found = halter.compare(
        overrides=[f"data.template={args.template}"] if args.template else [],
        model=args.model,
        train=args.data,
        test=args.test,
        methods=args.methods,
        precisions=["auto"],
        tokens=args.tokens,
        search_trials=2,
        seeds=2,
        questions=10,
        max_new_tokens=40,
        skip_memory=True,
        output=output / "comparison",
    )
    print(f"{'method':<16}{'trained':<12}{'rate':<10}{'loss':<10}{'spread':<10}exact match")
    for row in found.rows:
        if row.test_loss is None:
            print(f"{row.name:<16}{row.status}: {row.why}")
            continue
        rate = f"{row.learning_rate:.2g}" if row.trainable else ""
        scored = f"{row.test_loss:<10.4f}{row.spread or 0:<10.4f}{row.scores.get('exact_match', 0):.0%}"
        print(f"{row.name:<16}{row.trainable:<12,}{rate:<10}{scored}")
    print("cannot be told apart:", "; ".join(" and ".join(pair) for pair in found.ties) or "none")
    print(f"report: {found.folder}")


if __name__ == "__main__":
    main()
