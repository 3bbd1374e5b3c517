"""One adapter of each case that laws are tried on (sighted.CASES), rows that it sees, and a trainee of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sighted
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.data.pack import pack
from halter.model.experts import EXPERTS
from halter.training.schedule import make as make_schedule
from halter.training.trainee import Trainee

every_method = pytest.mark.parametrize("name", sighted.CASES)
TOKENS = torch.randint(0, 96, (3, 24), generator=torch.Generator().manual_seed(5))


def fresh(name, model, seed=0, moved=True):
    method = sighted.method_of(name)
    if hasattr(method, "experts") and model.layout.of(EXPERTS):
        method = replace(method, experts="all")
    adapter = adapt(model, method, seed=seed)
    if moved:
        tiny.jitter(adapter, seed=seed + 1)
    return adapter


def shown_to(adapter, tokens=TOKENS):
    """TOKENS as rows; where the adapter sees, more of them, with pictures in all but the first."""
    return sighted.rows_of(adapter.sight, tokens if adapter.sight is None else tokens.repeat(2, 1)[:5])


def logits(model, adapter, seen_by=None):
    """Of all tokens of the rows, as ``adapter`` or another one sees them, [N, vocabulary]."""
    return torch.cat(sighted.logits(model, adapter, shown_to(seen_by or adapter)))


def rows(sight=None, lengths=(9, 14, 5), seed=0):
    """Rows of these lengths; for who sees some with pictures, of which the first length has one too."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for number, n in enumerate(lengths):
        tokens = [1, 2, *torch.randint(0, 96, (n - 2,), generator=g).tolist()]  # BOS and EOS, which token_rows trains
        learned = [n // 2 < place < n for place in range(n)]
        made.append(sighted.row(tokens, learned, sight, sighted.SHOWN[number % 5 - 1], min(3, n)))
    return made


def batch(adapter, lengths=(9, 14, 5), seed=0):
    return pack(rows(adapter.sight, lengths, seed))


def trainee(adapter, rate=1e-2, optimizer=torch.optim.AdamW, clip=0.0):
    groups = adapter.groups(rate, 0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Trainee(adapter, optimizer(groups, lr=rate), make_schedule("constant", 10, 0), scaler, clip)
