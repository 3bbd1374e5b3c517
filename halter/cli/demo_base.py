"""What both demos do: open the tiny base, train beside it, ask it, count right answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

DemoRow = dict[str, Any]


def open_base(console: Console) -> tuple[Any, Any]:
    """The tiny base and its tokenizer."""
    console.print("   loading ...")
    from halter.numerics import threads
    from halter.playground import base_folder
    from halter.pretrained.load import load

    # In fp32 the merged model's answers are the same to the letter; in bf16 a close call may fall the other way.
    model, tokenizer = load(str(base_folder()), "float32", say=lambda _: None)
    chosen = threads.choose()
    threads.put(chosen)
    if chosen.remarkable():
        console.print(f"   {chosen.words()}")
    console.print(f"   {model.config.num_parameters:,} parameters, from {base_folder()}\n")
    return model, tokenizer


def answers_of(model: Any, tokenizer: Any, rows: Sequence[DemoRow], adapter: Any) -> list[str]:
    """What is answered to each row's question."""
    from halter.generation.engine import generate

    asked = [row["messages"][:1] for row in rows]
    return [g.text for g in generate(model, tokenizer, asked, adapter, max_new_tokens=60, max_rows=64)]


def score_of(answers: Sequence[str], rows: Sequence[DemoRow]) -> float:
    """The share of right answers."""
    from halter.evaluation.texts import exact_match

    right = [exact_match(a, row["messages"][1]["content"]) for a, row in zip(answers, rows, strict=True)]
    return sum(right) / len(right)


def train_demo(out: Path, recipe: Mapping[str, Any]) -> Path:
    """Train the tiny base by ``recipe`` on the rows in ``out``/data; the run folder, ``out``/run."""
    import torch

    from halter.playground import base_folder
    from halter.run import train

    run = train(
        {
            **recipe,
            "train": {**recipe["train"], "threads": torch.get_num_threads()},
            "model": {"path": str(base_folder()), "dtype": "float32"},
            "data": {"train": str(out / "data" / "train.jsonl")},
            "output_dir": str(out / "run"),
        }
    )
    assert run is not None
    return run


def mark_of(answer: str, row: DemoRow) -> str:
    """Whether an answer is right, in brackets behind it."""
    return "right" if score_of([answer], [row]) else f"wrong, expected: {row['messages'][1]['content'].strip()}"
