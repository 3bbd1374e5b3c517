"""The parts of ``gpu.py`` that ask how quick a GPU is, and how much memory that takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_stage import DEVICE, TINY, Facts, Part, base, fresh, peak, shape, wait

ROWS, LENGTH, STEPS, NEW_TOKENS = (2, 16, 2, 4) if TINY else (4, 1024, 5, 64)


def rates() -> Facts:
    """What the device gives: operations a second of a large product, bytes a second read by a product of one row."""
    size = 256 if TINY else 8192
    dtype = torch.float32 if TINY else torch.bfloat16
    a, b, row = (torch.randn(n, size, device=DEVICE, dtype=dtype) for n in (size, size, 1))

    def best(work: Callable[[], Any]) -> float:
        spent = []
        for _ in range(8):
            wait()
            began = time.perf_counter()
            work()
            wait()
            spent.append(time.perf_counter() - began)
        return min(spent)

    return {
        "operations_per_second": 2 * size**3 / best(lambda: a @ b),
        "bytes_per_second": b.numel() * b.element_size() / best(lambda: row @ b),
    }


def training(quantize: str | None) -> Part:
    def part() -> Facts:
        from halter.adapters.adapter import adapt
        from halter.data.pack import pack
        from halter.methods.lora import Lora
        from halter.planning import Setting, forecast
        from halter.training import optimizers
        from halter.training.step import take_step
        from halter.training.trainee import Trainee

        fresh()
        model = base(quantize)
        adapter = adapt(model, "lora", r=16)
        optimizer = optimizers.make("adamw", adapter.groups(1e-4, 0.0), 1e-4, (0.9, 0.999), 1e-8, lambda _: None)
        trainee = Trainee(adapter, optimizer, lambda _: 1.0, torch.amp.GradScaler(DEVICE, enabled=False))
        batch, spent = pack(list(examples(model.config.vocab_size))), []
        for _ in range(STEPS + 1):
            wait()
            began = time.perf_counter()
            record = take_step(model, [trainee], [[batch]], checkpointing=True)[0]
            wait()
            spent.append(time.perf_counter() - began)
        assert record.applied
        seconds, tokens = sorted(spent[1:])[len(spent[1:]) // 2], ROWS * LENGTH
        found = {"tokens_per_second": tokens / seconds, "seconds": seconds, "peak_bytes": peak(), "loss": record.loss}
        found["operations_per_second"] = (
            6 * model.config.num_parameters * tokens / seconds
        )  # forward twice, backward once
        planned = Setting(
            "random weights",
            model.config,
            (Lora(r=16),),
            model.dtype,
            quantize,
            checkpointing=True,
            rows=ROWS,
            length=LENGTH,
            device=DEVICE,
        )
        found["planned_bytes"] = forecast(planned).training.total
        return found

    return part


def examples(vocab_size: int) -> Iterator[Any]:
    """The rows of a step: as many random tokens each, the second half learned."""
    import numpy as np

    from halter.data.example import Example

    draw = np.random.default_rng(0)
    for _ in range(ROWS):
        tokens = draw.integers(3, min(vocab_size, 1000) - 1, LENGTH).astype(np.int32)
        yield Example(tokens, np.arange(LENGTH) >= LENGTH // 2)


def peer() -> Facts:
    """The same LoRA step by transformers and peft, gradient checkpointing on."""
    import peft
    import transformers

    fresh()
    config = transformers.LlamaConfig(**{k: v for k, v in shape().to_hf().items() if k != "architectures"})
    torch.set_default_dtype(torch.float32 if TINY else torch.bfloat16)
    try:
        with torch.device(DEVICE):
            model = transformers.LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids = torch.stack([torch.from_numpy(row.tokens).long() for row in examples(config.vocab_size)]).to(DEVICE)
    labels = ids.clone()
    labels[:, : LENGTH // 2] = -100
    spent = []
    for _ in range(STEPS + 1):
        wait()
        began = time.perf_counter()
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait()
        spent.append(time.perf_counter() - began)
    seconds = sorted(spent[1:])[len(spent[1:]) // 2]
    return {
        "tokens_per_second": ROWS * LENGTH / seconds,
        "seconds": seconds,
        "peak_bytes": peak(),
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def decoding() -> Facts:
    """Tokens a second at 1, 8 and 32 prompts, each with a LoRA of its own."""
    from halter.adapters.adapter import adapt
    from halter.generation.engine import generate
    from halter.text.tokenizer import Tokenizer

    fresh()
    model, found = base(), {}

    class NoText(Tokenizer):
        """A tokenizer for random weights: answers are ids alone."""

        def __init__(self) -> None: ...

        stop_ids, bos_id, vocab_size, digest = (), None, model.config.vocab_size, ""

        def stream(self, **_: Any) -> Any:
            return self

        def push(self, _: int) -> str:
            return ""

        def flush(self) -> str:
            return ""

    adapters = [adapt(model, "lora", seed=n, r=16) for n in range(32)]
    for rows in (1, 8, 32):
        asked = [[3 + n] * (8 if TINY else 128) for n in range(rows)]

        def answer(count: int, asked: list[list[int]] = asked, rows: int = rows) -> float:
            wait()
            began = time.perf_counter()
            generate(model, NoText(), asked, adapters[:rows], max_new_tokens=count, ignore_stop_ids=True)
            wait()
            return time.perf_counter() - began

        answer(2)
        found[f"tokens_per_second_{rows}"] = rows * NEW_TOKENS / max(1e-9, answer(1 + NEW_TOKENS) - answer(1))
    return found
