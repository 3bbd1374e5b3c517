"""A training loop of your own: packed rows into take_step, which is the step that `halter train` takes.

    python examples/own_training_loop.py [--model DIR --data FILE --method lora --output DIR]

For an order of rows, a schedule or a rule that neither a recipe nor a callback can say. What a run does beside its
steps is then yours to do: checkpoints, resuming, held-out loss, a note of which base it was. Without arguments: sums of
the embedded playground. About 12 s of CPU.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

import halter
from halter.data.load import load_examples
from halter.data.options import DataOptions
from halter.data.pack import pack
from halter.playground import base_folder, write_tasks
from halter.text.chat.conversations import ChatTemplate
from halter.training.step import take_step
from halter.training.trainee import Trainee


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(base_folder()), help="a folder or hub id")
    parser.add_argument("--data", help="rows of any format that Halter reads")
    parser.add_argument("--template", type=ChatTemplate.named, help="alpaca, ...: for a base model that has none")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--max-steps", type=int, default=40)
    parser.add_argument("--stop-below", type=float, default=0.1, help="a loss, in nats per learned token")
    parser.add_argument("--output", type=Path, help="a new folder")
    args = parser.parse_args()
    output = args.output or Path(tempfile.mkdtemp(prefix="halter-"))
    if args.data is None:
        write_tasks(output / "tasks", train=600, test=20)
        args.data = str(output / "tasks" / "sums" / "train.jsonl")

    model, tokenizer = halter.load(args.model)
    template = args.template or tokenizer.chat_template
    rows = load_examples(DataOptions(train=args.data), tokenizer, template).train
    adapter = halter.adapt(model, args.method)
    optimizer = torch.optim.AdamW(adapter.groups(args.learning_rate, 0.0), lr=args.learning_rate)
    no_scaling = torch.amp.GradScaler(model.device.type, enabled=False)  # True for float16
    trainee = Trainee(adapter, optimizer, lambda step: 1 - step / args.max_steps, no_scaling)

    order = torch.Generator().manual_seed(0)
    for step in range(args.max_steps):
        drawn = torch.randint(len(rows), (16,), generator=order).tolist()
        [record] = take_step(model, [trainee], [[pack([rows[row] for row in drawn])]])
        print(f"step {step + 1}: loss {record.loss:.4f} over {record.target_tokens} learned tokens")
        if record.loss < args.stop_below:
            break
    adapter.save(output / "adapter")  # what halter.load_adapter and, for methods that it has, peft read
    print(f"adapter: {output / 'adapter'}")


if __name__ == "__main__":
    main()
