"""The trace against real tensors: what lives at the worst moment of a real step on the CPU, counted block by block."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from halter.adapters.adapter import adapt
from halter.contract.registry import find
from halter.data.example import Example
from halter.data.pack import pack
from halter.planning.dry import dry_adapter, dry_base
from halter.planning.trace import training_pass
from halter.training import optimizers
from halter.training.step import gather
from halter.training.trainee import Trainee
from tests import tiny

ROWS, LENGTH = 2, 300


class Alive(TorchDispatchMode):
    """Bytes of real storages that this mode saw being made, and their most."""

    def __init__(self, standing: set[int]) -> None:
        super().__init__()
        self.held: dict[int, Any] = dict.fromkeys(standing)
        self.alive = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor.untyped_storage())
        return made

    def see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.held:
            self.held[key] = weakref.ref(storage, lambda _: self.gone(key, size))
            self.alive += size
            self.most = max(self.most, self.alive)

    def gone(self, key: int, size: int) -> None:
        del self.held[key]
        self.alive -= size


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["lora", "llama_adapter", "llama_adapter_v2", "excitor", "bottleneck", "full", "dora"])
def test_what_is_planned_lives(name: str, checkpointing: bool) -> None:
    shape = tiny.config(layers=3, dim=64, heads=4, kv_heads=2, head_dim=16, ffn_dim=160, vocab_size=512)
    method = find(name)()
    model = tiny.decoder(shape)
    adapter = adapt(model, method)
    optimizer = optimizers.make("adamw", adapter.groups(1e-3, 0.0), 1e-3, (0.9, 0.999), 1e-8, lambda _: None)
    trainee = Trainee(adapter, optimizer, lambda _: 1.0, torch.amp.GradScaler("cpu", enabled=False))
    draw = np.random.default_rng(0)
    every = np.ones(LENGTH, dtype=bool)
    batch = pack([Example(draw.integers(0, 512, LENGTH).astype(np.int32), every) for _ in range(ROWS)])
    held = [*adapter.parameters(), *adapter.buffers(), *model.buffers()]
    standing = {tensor.untyped_storage()._cdata for tensor in held}
    with Alive(standing) as real:
        gather(model, [trainee], [[batch]], checkpointing)
    planned = training_pass(
        dry_base(shape, model.dtype, False), dry_adapter(shape, [method]), ROWS, LENGTH, checkpointing
    )
    assert planned.total == pytest.approx(real.most, rel=0.08), planned.worst
