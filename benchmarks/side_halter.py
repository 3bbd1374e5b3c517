"""Halter's side: the package as a user has it, training through its own loop."""

from __future__ import annotations

import time
from typing import Any

import ladder
import numpy as np
import torch
from workloads import WARM_PROMPTS, Setting, Work, data, first_adapter, model_folder, prompts

import halter
from halter.adapters.adapter import Adapter, adapt
from halter.adapters.loading import load_adapter
from halter.data.example import Example
from halter.evaluation.score import held_out
from halter.generation.engine import generate
from halter.model.decoder import Decoder
from halter.model.decoding import LAY_STEPS, for_decoding
from halter.pretrained.load import load
from halter.training import memory, optimizers
from halter.training.loop import Events, Feed, train_loop
from halter.training.trainee import Trainee

RATE = 1e-3


def quiet(_: str) -> None:
    pass


def examples(work: Work, setting: Setting, vocab_size: int, padded: bool = False) -> list[Example]:
    rows = data(work, setting, vocab_size)
    longest = max(len(row.tokens) for row in rows)
    made = []
    for row in rows:
        length = longest if padded else len(row.tokens)
        tokens, supervised = np.zeros(length, dtype=np.int32), np.zeros(length, dtype=bool)
        tokens[: len(row.tokens)] = row.tokens
        supervised[row.supervised_from : len(row.tokens)] = True
        made.append(Example(tokens, supervised))
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


def step(work: Work, setting: Setting) -> dict[str, Any]:
    with ladder.only(setting.rungs) as padded:
        return _step(work, setting, padded)


def _step(work: Work, setting: Setting, padded: bool) -> dict[str, Any]:
    model, _ = load(model_folder(setting), setting.dtype, work.quantize, say=quiet)
    rows = examples(work, setting, model.config.vocab_size, padded)
    total = setting.warm + setting.steps
    laid, tokens = (
        sum(len(row.tokens) for row in rows),
        sum(len(r.tokens) for r in data(work, setting, model.config.vocab_size)),
    )
    lines: list[dict[str, Any]] = []
    plan = Feed(rows, lambda epoch: [[list(range(len(rows)))]], total)
    checkpointing = memory.needs_checkpointing(model.config, laid, model.dtype.itemsize, model.device)
    train_loop(model, [trainee(begin(work, setting, model))], [plan], Events(log=lines.append), checkpointing)
    seconds = [laid / line["tokens_per_second"] for line in lines][setting.warm :]
    return {
        "tokens": tokens,
        "targets": sum(row.targets for row in rows),
        "seconds": seconds,
        "losses": [line["loss"] for line in lines],
        "grad_norms": [line["grad_norm"] for line in lines],
        "checkpointing": checkpointing,
    }


def several(work: Work, setting: Setting, together: bool = True) -> dict[str, Any]:
    """An adapter a row, each with its own optimizer: all in one pass over the base, or one after the other."""
    assert work.method is not None
    options = {key: value for key, value in work.method.items() if key != "name"}
    with ladder.only(setting.rungs):
        model, _ = load(model_folder(setting), setting.dtype, work.quantize, say=quiet)
        rows = examples(work, setting, model.config.vocab_size)
        total = setting.warm + setting.steps
        trainees = [trainee(adapt(model, work.method["name"], seed=i, **options)) for i in range(len(rows))]
        feeds = [Feed([row], lambda epoch: [[[0]]], total) for row in rows]
        lines: list[list[dict[str, Any]]] = [[] for _ in rows]
        if together:
            train_loop(model, trainees, feeds, Events(log=lambda line: lines[line["trainee"]].append(line)))
        else:
            for one, feed, into in zip(trainees, feeds, lines, strict=True):
                train_loop(model, [one], [feed], Events(log=into.append))
    spent = [[line["tokens"] / line["tokens_per_second"] for line in one] for one in lines]
    each = [max(step) if together else sum(step) for step in zip(*spent, strict=True)]
    return {
        "tokens": sum(len(row.tokens) for row in rows),
        "targets": sum(row.targets for row in rows),
        "seconds": each[setting.warm :],
        "losses": [line["loss"] for one in lines for line in one],
        "grad_norms": [line["grad_norm"] for one in lines for line in one],
    }


def evaluate(work: Work, setting: Setting) -> dict[str, Any]:
    model, _ = load(model_folder(setting), setting.dtype, work.quantize, say=quiet)
    rows = examples(work, setting, model.config.vocab_size)
    seconds, losses = [], []
    for _ in range(setting.warm + setting.steps):
        began = time.perf_counter()
        losses.append(held_out(model, rows).loss)
        seconds.append(time.perf_counter() - began)
    return {
        "tokens": sum(len(row.tokens) for row in rows),
        "targets": sum(row.targets for row in rows),
        "seconds": seconds[setting.warm :],
        "losses": losses,
    }


def decode(work: Work, setting: Setting, alike: bool = False) -> dict[str, Any]:
    """Seconds of ``new_tokens`` steps: an answer of one more token, less an answer of one."""
    model, tokenizer = load(model_folder(setting), setting.dtype, work.quantize, say=quiet)
    asked = prompts(work, setting, model.config.vocab_size)

    adapters: Any = None
    if work.method is not None:  # fresh ones: their numbers change no time, and the tokens stay the base's
        options = {key: value for key, value in work.method.items() if key != "name"}
        made = [adapt(model, work.method["name"], seed=i, **options) for i in range(1 if alike else len(asked))]
        adapters = made[0] if alike else made

    def answer(count: int) -> tuple[float, list[list[int]]]:
        began = time.perf_counter()
        made = generate(model, tokenizer, asked, adapters, max_new_tokens=count, ignore_stop_ids=True)
        return time.perf_counter() - began, [list(one.tokens) for one in made]

    with for_decoding(model, len(asked), setting.new_tokens):  # as `halter chat` holds it over its turns
        answer(2 + LAY_STEPS + len(list(model.places())))  # where weights have been laid out anew
        for _ in range(WARM_PROMPTS):
            answer(1)
        first = [answer(1)[0] for _ in range(setting.steps)]
        whole = [answer(1 + setting.new_tokens) for _ in range(setting.steps)]
    seconds = [all_ - one for (all_, _), one in zip(whole, first, strict=True)]
    return {
        "tokens": work.batch * setting.new_tokens,
        "seconds": seconds,
        "prefill_seconds": first,
        "answers": whole[0][1],
    }


def to_first_token(work: Work, setting: Setting) -> dict[str, Any]:
    began = time.perf_counter()
    model, tokenizer = halter.load(model_folder(setting), setting.dtype, work.quantize, say=quiet)
    loaded = time.perf_counter() - began
    asked = prompts(work, setting, model.config.vocab_size)
    made = generate(model, tokenizer, asked, max_new_tokens=1, ignore_stop_ids=True)
    return {
        "tokens": 1,
        "seconds": [time.perf_counter() - began],
        "loading_seconds": loaded,
        "answers": [list(one.tokens) for one in made],
    }


def measure(work: Work, setting: Setting) -> dict[str, Any]:
    kinds = {"step": step, "several": several, "evaluate": evaluate, "decode": decode, "load": to_first_token}
    return kinds[work.kind](work, setting)
