"""[16] Whatever happens over a base, its tensors keep their bits: training, failing, decoding, mixing, merging."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import tiny
import torch

import halter
from halter.adapters.adapter import adapt
from halter.adapters.mixed import Mixed
from halter.contract.registry import names
from halter.data.example import Example
from halter.errors import HalterError, Refusal
from halter.model.cache import Cache
from halter.model.passes import Pass
from halter.training import head, optimizers, schedule
from halter.training.loop import Events, Feed, train_loop
from halter.training.splitting import Splitter
from halter.training.trainee import Trainee

TOKENS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(5))
ROWS = [Example(np.arange(1, 13, dtype=np.int32) + i, np.arange(12) > 4, f"row:{i}") for i in range(8)]
FEED = Feed(ROWS, lambda _: [[[2 * i, 2 * i + 1]] for i in range(4)], 4)


def digest(model):
    state = hashlib.sha256()
    for name, module, buffer in model.tensors():
        state.update(name.encode() + getattr(module, buffer).contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def trained(model, adapter, splitter=None):
    optimizer = optimizers.make("adamw", adapter.groups(1e-2, 0.1), 1e-2, (0.9, 0.999), 1e-8, lambda _: None)
    plain = torch.amp.GradScaler("cpu", enabled=False)
    one = Trainee(adapter, optimizer, schedule.make("constant", 9, 0), plain)
    train_loop(model, [one], [FEED], Events(log=lambda _: None), splitter=splitter)


def training(model, adapter, monkeypatch, tmp_path):
    trained(model, adapter)


def a_crash_in_a_step(model, adapter, monkeypatch, tmp_path):
    monkeypatch.setattr(head, "head_loss", lambda *a: (_ for _ in ()).throw(RuntimeError("crash")))
    with pytest.raises(RuntimeError, match="crash"):
        trained(model, adapter)


def out_of_memory(model, adapter, monkeypatch, tmp_path):
    monkeypatch.setattr(head, "head_loss", lambda *a: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(HalterError, match="out of memory"):
        trained(model, adapter, Splitter())


def decoding(model, adapter, monkeypatch, tmp_path):
    cache = Cache(model.config, 1, 40, model.dtype)
    with torch.no_grad():
        for length in (8, 1, 1):
            segments = cache.segments([length], [0], [8])
            model.hidden(Pass(TOKENS[0, :length], segments, adapter.bind(model, segments), cache=cache))


def mixing_and_stacking(model, adapter, monkeypatch, tmp_path):
    other = adapt(model, "lora", r=2)
    with torch.no_grad():
        model(TOKENS, adapter=Mixed([halter.stack([adapter, other]), other], [0, 1]))


def merging(model, adapter, monkeypatch, tmp_path):
    try:
        halter.merge(model, adapter, tmp_path / "merged")
    except Refusal as refusal:
        assert refusal.id == "cannot-merge"


SCENARIOS = [training, a_crash_in_a_step, out_of_memory, decoding, mixing_and_stacking, merging]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", names())
def test_the_base_keeps_its_bits(name, scenario, monkeypatch, tmp_path):
    model = tiny.decoder()
    before = digest(model)
    adapter = adapt(model, name)
    tiny.jitter(adapter)
    scenario(model, adapter, monkeypatch, tmp_path)
    assert digest(model) == before
