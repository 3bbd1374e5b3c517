"""The parts of ``gpu.py`` that ask whether what a GPU computes is right."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from gpu_stage import DEVICE, TINY, Facts, wait


def laws() -> Facts:
    """Every method: starts as the base where it says so, mixed is alone, saved is loaded, gradients are finite."""
    import tiny

    from halter.adapters.adapter import adapt
    from halter.adapters.loading import load_adapter
    from halter.adapters.mixed import Mixed
    from halter.contract.registry import names
    from halter.model.passes import Pass
    from halter.model.segments import Segments

    model = tiny.decoder().to(DEVICE)
    tokens = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    worst: dict[str, float] = {}
    for name in names():
        adapter = adapt(model, name).cpu()
        tiny.jitter(adapter)
        adapter = adapter.to(DEVICE)
        alone = model(tokens, adapter=adapter)
        if not adapter.methods[0].picture_tokens:  # else it has nothing to do with rows of text
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
        mixed = model.head(model.hidden(Pass(tokens.flatten(), segments, acts)), acts).unflatten(0, (2, 24))
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

    from halter.adapters.adapter import adapt
    from halter.model.segments import Segments
    from halter.training.offload import offloaded
    from halter.training.one_pass import Learnt, one_pass

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
            train = {
                "max_steps": 4,
                "save_steps": 2,
                "deterministic": True,
                "per_device_train_batch_size": 4,
                "lr_scheduler_type": "constant",
            }
            recipe = {
                "model": {"path": str(base_folder()), "device": DEVICE},
                "data": {"train": str(rows)},
                "train": train | {"max_steps": steps},
                "output_dir": str(folder / name),
            }
            halter.train(recipe, resume=again, say=lambda _: None)
            return folder / name / "adapter" / "adapter_model.safetensors"

        whole = read_tensors(run("whole", 4))
        run("parts", 2)
        parts = read_tensors(run("parts", 4, again=True))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    return {"tensors": len(whole)}
