"""The mark of a first run: LoRA on stories260K, Halter beside transformers + peft, both in this run.

    python benchmarks/tinystories.py --shared DIR [--seeds 3] [--json FILE]

The same work for both: instruct/tinystories_instruct_train.jsonl, LoRA r=8 alpha=16 on all linear layers, Alpaca's
template ending in "### Response:\\n", the response tokenised apart, BOS once, EOS at the end, rows cut at 512 tokens,
2 epochs of 16 rows a step, cosine from 3e-3 after 10 warm-up steps, clip 1, token-weighted loss, AdamW without decay.
Held-out loss is that of the responses of instruct/tinystories_instruct_test.jsonl. The peer runs as its documentation
says: one padded batch a step (right padding, attention mask, labels -100 outside responses).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

RATE, WARMUP, EPOCHS, ROWS, CUT = 3e-3, 10, 2, 16, 512
PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
PREAMBLE_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}"
    "\n\n### Response:\n"
)


def halter_run(shared: Path, seed: int) -> dict[str, float]:
    """Train through the public API and take the loss of the saved metrics."""
    import halter

    data = shared / "data"
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = halter.train(
            {
                "model": {"path": str(data / "models" / "stories260K"), "dtype": "float32"},
                "method": {"name": "lora", "r": 8, "alpha": 16, "target_modules": "all-linear"},
                "data": {
                    "train": str(data / "instruct" / "tinystories_instruct_train.jsonl"),
                    "validation": str(data / "instruct" / "tinystories_instruct_test.jsonl"),
                    "template": "alpaca",
                    "max_length": CUT,
                    "on_long": "cut",
                },
                "train": {
                    "learning_rate": RATE,
                    "warmup_steps": WARMUP,
                    "num_train_epochs": EPOCHS,
                    "seed": seed,
                    "per_device_train_batch_size": ROWS,
                    "lr_scheduler_type": "cosine",
                    "max_grad_norm": 1.0,
                    "logging_steps": 50,
                },
                "output_dir": str(Path(folder) / "run"),
            }
        )
        seconds = time.perf_counter() - started
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    steps = [line for line in lines if "loss" in line]
    spent = sum(line["tokens"] / line["tokens_per_second"] for line in steps)
    return {
        "before": losses[0],
        "after": losses[-1],
        "seconds": seconds,
        "training_seconds": spent,
        "tokens_per_second": sum(line["tokens"] for line in steps) / spent,
        "peak_bytes": max(line["peak_memory_bytes"] for line in steps),
    }


def peer_run(shared: Path, seed: int) -> dict[str, float]:
    """transformers + peft on the same rows."""
    import resource

    import peft
    import torch
    import transformers

    data = shared / "data"
    started = time.perf_counter()
    tokenizer = transformers.AutoTokenizer.from_pretrained(data / "models" / "stories260K")
    rows = {
        part: _peer_rows(data / "instruct" / f"tinystories_instruct_{part}.jsonl", tokenizer)
        for part in ("train", "test")
    }
    torch.manual_seed(seed)
    base = transformers.AutoModelForCausalLM.from_pretrained(data / "models" / "stories260K", dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    model = peft.get_peft_model(base, config)
    before = _peer_loss(model, rows["test"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    steps = EPOCHS * (len(rows["train"]) // ROWS)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, WARMUP, steps)
    tokens, training = 0, 0.0
    for epoch in range(EPOCHS):
        order = torch.randperm(len(rows["train"]), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for start in range(0, len(order) - ROWS + 1, ROWS):
            clock = time.perf_counter()
            batch = _collate([rows["train"][i] for i in order[start : start + ROWS]])
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(), schedule.step(), optimizer.zero_grad()
            training += time.perf_counter() - clock
            tokens += int(batch["attention_mask"].sum())
    after = _peer_loss(model, rows["test"])
    return {
        "before": before,
        "after": after,
        "seconds": time.perf_counter() - started,
        "training_seconds": training,
        "tokens_per_second": tokens / training,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _peer_rows(path, tokenizer):
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = (PREAMBLE_INPUT if row.get("input") else PREAMBLE).format(**{"input": "", **row})
        prompt = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        answer = [*tokenizer(row["output"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append(((prompt + answer)[:CUT], ([-100] * len(prompt) + answer)[:CUT]))
    return rows


def _collate(rows):
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence([torch.tensor(ids) for ids, _ in rows], batch_first=True)
    labels = pad_sequence([torch.tensor(labels) for _, labels in rows], batch_first=True, padding_value=-100)
    mask = pad_sequence([torch.ones(len(ids), dtype=torch.long) for ids, _ in rows], batch_first=True)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def _peer_loss(model, rows):
    import torch

    model.eval()
    total = count = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), ROWS):
            batch = _collate(rows[start : start + ROWS])
            targets = int((batch["labels"][:, 1:] != -100).sum())
            total += float(model(**batch).loss) * targets
            count += targets
    model.train()
    return total / count


def main() -> None:
    """Alternate both sides over the seeds, each in a process of its own; print and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer-seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("halter", "peer"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.side:
        side = {"halter": halter_run, "peer": peer_run}[arguments.side]
        print(json.dumps(side(arguments.shared, arguments.seed)))
        return
    sides: dict[str, list[dict[str, float]]] = {"halter": [], "peer": []}
    for seed in range(arguments.seeds):
        for side in ("halter", "peer"):
            if side == "peer" and seed >= arguments.peer_seeds:
                continue
            command = [sys.executable, __file__, "--shared", str(arguments.shared), "--side", side, "--seed", str(seed)]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            sides[side].append(json.loads(out.splitlines()[-1]))
            print(side, seed, sides[side][-1], flush=True)
    record = {"machine": platform.processor() or platform.machine(), "date": date.today().isoformat(), **sides}
    for key in ("after", "seconds", "training_seconds", "tokens_per_second"):
        ours, theirs = (statistics.median(r[key] for r in sides[s]) for s in ("halter", "peer"))
        record[key] = {"halter": ours, "peer": theirs, "ratio": ours / theirs}
        print(f"{key}: halter {ours:.4g}, peer {theirs:.4g}, ratio {ours / theirs:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
