"""Several adapters on one base in memory: a batch in which every prompt has its own adapter, or none.

    python examples/several_adapters_one_base.py [--model DIR --data FILE FILE ... --ask "..." --output DIR]

Trains an adapter for each file, then puts every question to the base and to each adapter, all in one call. Without
arguments: the embedded playground, an adapter that learns polite answers and one that learns rude ones. About 25 s of
CPU.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import halter
from halter.playground import base_folder, write_tasks

ASK = ["Waimel: Could you lend me your blue jar until Saturday?", "Gizzan: Hand over the orange box until Saturday."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(base_folder()), help="a folder or hub id")
    parser.add_argument("--data", nargs="+", help="files of rows, one for each adapter")
    parser.add_argument("--template", help="alpaca, ...: for a base model without a chat template of its own")
    parser.add_argument("--ask", nargs="+", default=ASK)
    parser.add_argument("--dtype", default="auto", help="what weights are held and computed in")
    parser.add_argument("--max-steps", type=int, default=40)
    parser.add_argument("--output", type=Path, help="a new folder")
    args = parser.parse_args()
    output = args.output or Path(tempfile.mkdtemp(prefix="halter-"))

    sections: list[dict[str, Any]] = [{"train": file, "template": args.template} for file in args.data or ()]
    if not sections:  # rows with two answers each: which column is the answer makes the difference
        write_tasks(output / "tasks", train=600, test=20)
        pairs = str(output / "tasks" / "manners" / "pairs.jsonl")
        columns = [{"instruction": "prompt", "output": answer} for answer in ("chosen", "rejected")]
        sections = [{"train": pairs, "columns": one} for one in columns]

    for number, section in enumerate(sections):
        recipe = {
            "model": {"path": args.model, "dtype": args.dtype},
            "data": section,
            "method": {"name": "lora", "r": 8},
            "train": {"max_steps": args.max_steps, "per_device_train_batch_size": 16, "logging_steps": 10},
            "output_dir": str(output / f"adapter-{number}"),
        }
        halter.train(recipe)

    model, tokenizer = halter.load(args.model, args.dtype)  # once; the adapters lie beside it
    adapters = [None, *(halter.load_adapter(output / f"adapter-{n}", model) for n in range(len(sections)))]
    asked = [(question, adapter) for question in args.ask for adapter in adapters]
    prompts = [[{"role": "user", "content": question}] for question, _ in asked]
    own = [adapter for _, adapter in asked]
    how = {"template": args.template, "max_new_tokens": 40}
    mixed = halter.generate(model, tokenizer, prompts, own, **how)
    for (question, adapter), answer in zip(asked, mixed, strict=True):
        number = adapters.index(adapter)
        print(f"{f'adapter {number - 1}' if number else 'base'}: {question} -> {answer.text.strip()}")

    # A mixed batch is defined as every row by itself; in 16 bits rounding may decide a close choice otherwise.
    alone = [halter.generate(model, tokenizer, [p], a, **how)[0] for p, a in zip(prompts, own, strict=True)]
    same = sum(one.tokens == other.tokens for one, other in zip(mixed, alone, strict=True))
    print(f"asked one by one: the same tokens in {same} of {len(mixed)} answers")


if __name__ == "__main__":
    main()
