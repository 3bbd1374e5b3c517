"""Fold a trained adapter into its base: a model folder that needs no Halter, and an adapter folder as PEFT has it.

    python examples/merge_and_export.py [--model DIR --data FILE --ask "..." --output DIR]

Trains a LoRA first, on the embedded playground unless told otherwise. The merged model is loaded again and must choose
the same tokens as base + adapter. In float32, where folding is exact to rounding: a merge into fewer bits is told how
far it moved. About 20 s of CPU.
"""

from __future__ import annotations

import argparse
import json
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
    recipe = {
        "model": {"path": args.model, "dtype": "float32"},
        "data": {"train": str(data), "template": args.template},
        "method": {"name": "lora", "r": 16},
        "train": {"max_steps": args.max_steps, "per_device_train_batch_size": 16, "logging_steps": 10},
        "output_dir": str(output / "run"),
    }
    halter.train(recipe)

    report = halter.merge(output / "run", output=output / "merged", dtype="float32")
    print(report)

    asked = [[{"role": "user", "content": question}] for question in args.ask]
    how = {"template": args.template, "max_new_tokens": 40}
    base, tokenizer = halter.load(args.model, "float32")
    adapter = halter.load_adapter(output / "run", base)
    beside = halter.generate(base, tokenizer, asked, adapter, **how)
    merged, tokenizer = halter.load(output / "merged")
    inside = halter.generate(merged, tokenizer, asked, **how)
    same = sum(one.tokens == other.tokens for one, other in zip(beside, inside, strict=True))
    print(f"merged model: the same tokens in {same} of {len(asked)} answers, such as: {inside[0].text.strip()}")

    # The run's adapter needs no export: this folder is what peft.PeftModel.from_pretrained reads.
    config = json.loads((output / "run" / "adapter" / "adapter_config.json").read_text())
    print(f"adapter in PEFT's layout: {output / 'run' / 'adapter'}, {config['peft_type']} of rank {config['r']}")


if __name__ == "__main__":
    main()
