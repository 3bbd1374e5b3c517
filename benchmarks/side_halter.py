"""Halter's side: the package as a user has it, training through its own loop."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from workloads import Setting, Work, data, first_adapter, model_folder, prompts

import halter
from halter.data.example import Example
from halter.evaluation.score import held_out
from halter.generation.engine import generate
from halter.methods.adapter import Adapter, adapt
from halter.methods.storage import load_adapter
from halter.model.decoder import Decoder
from halter.numerics import allocation, denormals
from halter.pretrained.load import load
from halter.training import memory, optimizers
from halter.training.loop import Events, Feed, train_loop
from halter.training.trainee import Trainee

RATE = 1e-3


def quiet(_: str) -> None:
    pass


def examples(work: Work, setting: Setting, vocab_size: int) -> list[Example]:
    made = []
    for row in data(work, setting, vocab_size):
        supervised = np.zeros(len(row.tokens), dtype=bool)
        supervised[row.supervised_from :] = True
        made.append(Example(np.array(row.tokens, dtype=np.int32), supervised))
    return made


def begin(work: Work, setting: Setting, model: Decoder) -> Adapter:
    assert work.method is not None
    if work.method["name"] == "full":
        return adapt(model, "full")
    return load_adapter(first_adapter(work, setting), model)


def trainee(adapter: Adapter) -> Trainee:
    """AdamW at a constant rate, gradients clipped to 1: the defaults of halter.train."""
    optimizer = optimizers.make("adamw", adapter.groups(RATE, 0.0), RATE, (0.9, 0.999), 1e-8, quiet)
    return Trainee(adapter, optimizer, lambda step: 1.0, torch.amp.GradScaler("cpu", enabled=False))


@allocation.kept()
@denormals.flushed()
def step(work: Work, setting: Setting) -> dict[str, Any]:
    model, _ = load(model_folder(setting), setting.dtype, work.quantize, say=quiet)
    rows = examples(work, setting, model.config.vocab_size)
    total = setting.warm + setting.steps
    tokens = sum(len(row.tokens) for row in rows)
    lines: list[dict[str, Any]] = []
    plan = Feed(rows, lambda epoch: [[list(range(len(rows)))]], total)
    checkpointing = memory.needs_checkpointing(model.config, tokens, model.dtype.itemsize, model.device)
    train_loop(model, [trainee(begin(work, setting, model))], [plan], Events(log=lines.append), checkpointing)
    seconds = [tokens / line["tokens_per_second"] for line in lines][setting.warm :]
    return {"tokens": tokens, "targets": sum(row.targets for row in rows), "seconds": seconds,
            "losses": [line["loss"] for line in lines], "grad_norms": [line["grad_norm"] for line in lines],
            "checkpointing": checkpointing}  # fmt: skip


def evaluate(work: Work, setting: Setting) -> dict[str, Any]:
    model, _ = load(model_folder(setting), setting.dtype, work.quantize, say=quiet)
    rows = examples(work, setting, model.config.vocab_size)
    seconds, losses = [], []
    for _ in range(setting.warm + setting.steps):
        began = time.perf_counter()
        losses.append(held_out(model, rows).loss)
        seconds.append(time.perf_counter() - began)
    return {"tokens": sum(len(row.tokens) for row in rows), "targets": sum(row.targets for row in rows),
            "seconds": seconds[setting.warm :], "losses": losses}  # fmt: skip


def decode(work: Work, setting: Setting) -> dict[str, Any]:
    """Seconds of ``new_tokens`` steps: an answer of one more token, less an answer of one."""
    model, tokenizer = load(model_folder(setting), setting.dtype, work.quantize, say=quiet)
    asked = prompts(work, setting, model.config.vocab_size)

    def answer(count: int) -> tuple[float, list[list[int]]]:
        began = time.perf_counter()
        made = generate(model, tokenizer, asked, max_new_tokens=count, ignore_stop_ids=True)
        return time.perf_counter() - began, [list(one.tokens) for one in made]

    answer(2)
    first = [answer(1)[0] for _ in range(setting.steps)]
    whole = [answer(1 + setting.new_tokens) for _ in range(setting.steps)]
    seconds = [all_ - one for (all_, _), one in zip(whole, first, strict=True)]
    return {"tokens": work.batch * setting.new_tokens, "seconds": seconds, "prefill_seconds": first,
            "answers": whole[0][1]}  # fmt: skip


def to_first_token(work: Work, setting: Setting) -> dict[str, Any]:
    began = time.perf_counter()
    model, tokenizer = halter.load(model_folder(setting), setting.dtype, work.quantize, say=quiet)
    loaded = time.perf_counter() - began
    asked = prompts(work, setting, model.config.vocab_size)
    made = generate(model, tokenizer, asked, max_new_tokens=1, ignore_stop_ids=True)
    return {"tokens": 1, "seconds": [time.perf_counter() - began], "loading_seconds": loaded,
            "answers": [list(one.tokens) for one in made]}  # fmt: skip


def measure(work: Work, setting: Setting) -> dict[str, Any]:
    kinds = {"step": step, "evaluate": evaluate, "decode": decode, "load": to_first_token}
    return kinds[work.kind](work, setting)
