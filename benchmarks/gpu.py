"""Everything that a GPU is needed for, in one command of at most eight minutes: `make gpu`.

    python benchmarks/gpu.py [--json FILE] [--page]

Needs torch (2.11 or newer), for the peer transformers and peft; no network, no bitsandbytes, no other package. Every
part runs by itself: one that fails is told in the record with its error, and the others go on. Exit code 1 then.
DEVICE=cpu TINY=1 rehearses the same script on tiny shapes, which the tests do. ``--page`` writes docs/measured/gpu.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]
PAGE = ROOT / "docs" / "measured" / "gpu.md"
DEVICE, TINY = os.environ.get("DEVICE", "cuda"), bool(os.environ.get("TINY"))
BUDGET_SECONDS = 480.0
ROWS, LENGTH, STEPS, NEW_TOKENS = (2, 16, 2, 4) if TINY else (4, 1024, 5, 64)
Facts = dict[str, Any]
Part = Callable[[], Facts]


def shape() -> Any:
    """Llama 3.1 8B's, or a tiny one."""
    import tiny

    from halter.model.config import preset

    return tiny.config() if TINY else preset("llama-3.1-8b")


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak() -> int | None:
    """Bytes allocated at the worst moment since ``fresh``; unknown without a GPU."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None


def fresh() -> None:
    import gc

    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def base(quantize: str | None = None, config: Any = None) -> Any:
    """Random weights of 16 bits, laid on the device a tensor at a time."""
    from plan_accuracy import base_of

    class Cell:
        shape = config or globals()["shape"]()
        dtype = torch.float32 if TINY else torch.bfloat16

    Cell.quantize = quantize  # type: ignore[attr-defined]
    return base_of(Cell, DEVICE)


def machine() -> Facts:
    found: Facts = {"torch": torch.__version__, "python": platform.python_version(), "device": DEVICE, "tiny": TINY,
                    "date": time.strftime("%Y-%m-%d")}  # fmt: skip
    if DEVICE == "cuda":
        one = torch.cuda.get_device_properties(0)
        found |= {"name": one.name, "memory_bytes": one.total_memory, "cuda": torch.version.cuda}
    return found


def laws() -> Facts:
    """Every method: starts as the base where it says so, mixed is alone, saved is loaded, gradients are finite."""
    import tiny

    from halter.methods.adapter import adapt
    from halter.methods.method import names
    from halter.methods.mixed import Mixed
    from halter.methods.storage import load_adapter
    from halter.model.segments import Segments

    model = tiny.decoder().to(DEVICE)
    tokens = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    worst: dict[str, float] = {}
    for name in names():
        adapter = adapt(model, name).cpu()
        tiny.jitter(adapter)
        adapter = adapter.to(DEVICE)
        alone = model(tokens, adapter=adapter)
        alone.float().square().mean().backward()
        assert all(bool(p.grad.isfinite().all()) for p in adapter.parameters() if p.grad is not None), name
        with tempfile.TemporaryDirectory() as scratch:
            adapter.save(Path(scratch) / "a")
            again = load_adapter(Path(scratch) / "a", model)
            assert torch.equal(model(tokens, adapter=again), model(tokens, adapter=adapter)), (
                f"{name}: saved and loaded"
            )
        segments = Segments.packed([24, 24], model.device)
        acts = Mixed([adapter], [0, -1]).bind(model, segments)
        mixed = model.head(model.hidden(tokens.flatten(), segments, acts), acts).unflatten(0, (2, 24))
        plain = model(tokens)
        worst[name] = max(_gap(mixed[0], alone[0]), _gap(mixed[1], plain[1]))
        assert worst[name] < 1e-4, f"{name}: mixed is not alone, {worst[name]}"
    return {"methods": len(worst), "worst_mixed_gap": max(worst.values())}


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def storages() -> Facts:
    """NF4 and 8 bits: codes equal to the CPU's bit for bit, products against float64."""
    from halter.model.storages import quantised

    found: Facts = {}
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    for kind in ("nf4", "int8"):
        here, there = quantised(kind, weight.to(DEVICE)), quantised(kind, weight)
        assert torch.equal(here.weight().cpu(), there.weight()), f"{kind}: other codes than on the CPU"
        product = here.to(DEVICE)(x.to(DEVICE).bfloat16()).double().cpu()
        exact = x.bfloat16().double() @ there.weight().double().t()
        found[f"{kind}_gap"] = _gap(product, exact)
        assert found[f"{kind}_gap"] < 2**-6, kind  # bf16 rounds at 2^-9 of the largest, the sum once more
    return found


def streaming() -> Facts:
    """Layers in CPU memory, and activations there: the resident base's gradients, bit for bit."""
    import tiny

    from halter.methods.adapter import adapt
    from halter.model.segments import Segments
    from halter.training.offload import offloaded
    from halter.training.step import Learnt, one_pass

    def gradients(streamed: bool, moved: bool) -> list[torch.Tensor]:
        model = tiny.decoder(tiny.config(layers=6)).to(DEVICE)
        adapter = adapt(model, "lora")
        tiny.jitter(adapter.cpu())
        adapter.to(DEVICE)
        if streamed and DEVICE == "cuda":
            model.stream_layers()
        tokens = torch.randint(3, 96, (64,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
        index = torch.arange(1, 64, 2, device=DEVICE)
        learnt = Learnt(index, tokens[index - 1], torch.full((len(index),), 0.1, device=DEVICE))
        segments = Segments.packed([32, 32], torch.device(DEVICE), prompt_lengths=[3, 3])
        with offloaded(model, [adapter], moved, lambda _: None):
            one_pass(model, tokens, segments, adapter.bind(model, segments, 7), learnt, moved)
        wait()
        return [p.grad.cpu() for p in adapter.parameters() if p.grad is not None]

    wanted = gradients(False, False)
    for streamed, moved in ((True, False), (True, True)):
        for a, b in zip(gradients(streamed, moved), wanted, strict=True):
            assert torch.equal(a, b), (streamed, moved)
    return {"tensors": len(wanted)}


def compiled() -> Facts:
    """A compiled block is the eager one."""
    import tiny

    model = tiny.decoder().to(DEVICE)
    tokens = torch.randint(3, 96, (2, 24)).to(DEVICE)
    eager = model(tokens)
    backend = "aot_eager" if TINY else "inductor"
    for number, block in enumerate(model.layers):
        model.layers[number] = torch.compile(block, backend=backend)
    gap = _gap(model(tokens), eager)
    assert gap < 1e-5, gap
    return {"gap": gap, "backend": backend}


def resume() -> Facts:
    """Four steps in one go, and two with a resumed two: the adapters are equal bit for bit."""
    import halter
    from halter.cli import main
    from halter.files.tensors import read_tensors
    from halter.playground import base_folder

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        assert main.run(["playground", "export", str(folder / "rows"), "--train", "40", "--test", "5"]) == 0
        rows = folder / "rows" / "lookup" / "train.jsonl"

        def run(name: str, steps: int, again: bool = False) -> Path:
            train = {"max_steps": 4, "save_steps": 2, "deterministic": True, "per_device_train_batch_size": 4,
                     "lr_scheduler_type": "constant"}  # fmt: skip
            recipe = {"model": {"path": str(base_folder()), "device": DEVICE}, "data": {"train": str(rows)},
                      "train": train | {"max_steps": steps}, "output_dir": str(folder / name)}  # fmt: skip
            halter.train(recipe, resume=again, say=lambda _: None)
            return folder / name / "adapter" / "adapter_model.safetensors"

        whole = read_tensors(run("whole", 4))
        run("parts", 2)
        parts = read_tensors(run("parts", 4, again=True))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    return {"tensors": len(whole)}


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

    return {"operations_per_second": 2 * size**3 / best(lambda: a @ b),
            "bytes_per_second": b.numel() * b.element_size() / best(lambda: row @ b)}  # fmt: skip


def training(quantize: str | None) -> Part:
    def part() -> Facts:
        from halter.data.pack import pack
        from halter.methods.adapter import adapt
        from halter.methods.lora import Lora
        from halter.plan import Setting, forecast
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
        planned = Setting("random weights", model.config, (Lora(r=16),), model.dtype, quantize, checkpointing=True,
                          rows=ROWS, length=LENGTH, device=DEVICE)  # fmt: skip
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
    return {"tokens_per_second": ROWS * LENGTH / seconds, "seconds": seconds, "peak_bytes": peak(),
            "transformers": transformers.__version__, "peft": peft.__version__}  # fmt: skip


class NoText:
    """A tokenizer for random weights: answers are ids alone."""

    stop_ids: tuple[int, ...] = ()
    bos_id = None

    def stream(self, **_: Any) -> NoText:
        return self

    def push(self, _: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def decoding() -> Facts:
    """Tokens a second at 1, 8 and 32 prompts, each with a LoRA of its own."""
    from halter.generation.engine import generate
    from halter.methods.adapter import adapt

    fresh()
    model, found = base(), {}
    adapters = [adapt(model, "lora", seed=n, r=16) for n in range(32)]
    for rows in (1, 8, 32):
        asked = [[3 + n] * (8 if TINY else 128) for n in range(rows)]

        def answer(count: int, asked: list[list[int]] = asked, rows: int = rows) -> float:
            wait()
            began = time.perf_counter()
            generate(model, NoText(), asked, adapters[:rows], max_new_tokens=count, ignore_stop_ids=True)  # type: ignore[arg-type]
            wait()
            return time.perf_counter() - began

        answer(2)
        found[f"tokens_per_second_{rows}"] = rows * NEW_TOKENS / max(1e-9, answer(1 + NEW_TOKENS) - answer(1))
    return found


PARTS: dict[str, Part] = {
    "laws": laws, "storages": storages, "streaming": streaming, "compiled": compiled, "resume": resume, "rates": rates,
    "lora": training(None), "qlora": training("nf4"), "decoding": decoding, "peer": peer,
}  # fmt: skip
"""In this order: what is right comes before what is quick, ours before the peer."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "gpu.json")
    parser.add_argument("--page", action="store_true")
    chosen = parser.parse_args()
    record: Facts = {"machine": machine(), "parts": {}}
    began = time.monotonic()
    for name, part in PARTS.items():
        if time.monotonic() - began > BUDGET_SECONDS:
            record["parts"][name] = {"skipped": "the eight minutes are over"}
            continue
        start = time.monotonic()
        try:
            record["parts"][name] = part()
        except Exception as error:  # the other parts go on
            record["parts"][name] = {"failed": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        record["parts"][name]["wall_seconds"] = round(time.monotonic() - start, 1)
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(record, indent=1) + "\n")
        print(name, {k: v for k, v in record["parts"][name].items() if k != "trace"}, flush=True)
    if chosen.page:
        PAGE.write_text(page(record))
    return int(any("failed" in part for part in record["parts"].values()))


def page(record: Facts) -> str:
    """docs/measured/gpu.md."""
    where, parts = record["machine"], record["parts"]
    lines = [
        "# On a GPU", "",
        f"Written by `make gpu` on {where['date']}: {where.get('name', where['device'])}, torch {where['torch']}.", "",
        "| part | what was found |", "|---|---|",
    ]  # fmt: skip
    for name, facts in parts.items():
        shown = "; ".join(f"{key} {_short(value)}" for key, value in facts.items() if key != "trace")
        lines.append(f"| {name} | {shown} |")
    ours, theirs = parts.get("lora", {}), parts.get("peer", {})
    if "tokens_per_second" in ours and "tokens_per_second" in theirs:
        lines += ["", f"LoRA beside peft: {ours['tokens_per_second'] / theirs['tokens_per_second']:.2f}x."]
    rates, lora = parts.get("rates", {}), ours.get("operations_per_second")
    if lora and "operations_per_second" in rates:
        lines.append(f"Of the rate of a large product: {lora / rates['operations_per_second']:.0%}.")
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
