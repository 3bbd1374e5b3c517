"""Train a LoRA on a file of rows, then put the same questions to the base and to base + adapter.

    python examples/train_and_ask.py [--model DIR --data FILE --ask "..." --output DIR]

Without arguments: the embedded playground, whose base does not answer requests politely. About 20 s of CPU.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import halter
from halter.playground import base_folder, write_tasks

ASK = ["Waimel: Could you lend me your blue jar until Saturday?", "Gizzan: Hand over the orange box until Saturday."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(base_folder()), help="a folder or hub id")
    parser.add_argument("--data", type=Path, help="rows of any format that Halter reads")
    parser.add_argument("--template", help="alpaca, ...: for a base model without a chat template of its own")
    parser.add_argument("--ask", nargs="+", default=ASK)
    parser.add_argument("--max-steps", type=int, default=40)
    parser.add_argument("--output", type=Path, help="a new folder")
    args = parser.parse_args()
    output = args.output or Path(tempfile.mkdtemp(prefix="halter-"))

    data = args.data
    if data is None:
        write_tasks(output / "tasks", train=600, test=20)
        data = output / "tasks" / "manners" / "train.jsonl"

    # A recipe may be a YAML file or, as here, a dict with the same keys; what is not said has a default that is told.
    recipe = {
        "model": {"path": args.model},
        "data": {"train": str(data), "template": args.template},
        "method": {"name": "lora", "r": 16},
        "train": {"max_steps": args.max_steps, "per_device_train_batch_size": 16, "logging_steps": 10},
        "output_dir": str(output / "run"),
    }
    halter.train(recipe)

    # The base is frozen and the adapter an argument, so one model answers with and without it.
    model, tokenizer = halter.load(args.model)
    adapter = halter.load_adapter(output / "run", model)
    asked = [[{"role": "user", "content": question}] for question in args.ask]
    for who, acting in (("base", None), ("adapter", adapter)):
        answers = halter.generate(model, tokenizer, asked, acting, template=args.template, max_new_tokens=40)
        for question, answer in zip(args.ask, answers, strict=True):
            print(f"{who}: {question} -> {answer.text.strip()}")
    print(f"run folder: {output / 'run'}")


if __name__ == "__main__":
    main()
