"""Training on rows with pictures: a step is that of its rows alone, whatever begins alike, and what is kept of frozen
layers is each picture's own."""

from __future__ import annotations

import numpy as np
import pytest
import seeing
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.data.example import Example
from halter.data.pack import pack
from halter.data.share import share_beginnings
from halter.evaluation.score import held_out
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.pictures.seen import features, look_at
from halter.pictures.sources import place_of
from halter.pictures.tokens import expanded
from halter.training.frozen import Frozen
from halter.training.splitting import Splitter
from halter.training.step import take_step
from halter.training.trainee import Trainee

MODEL = seeing.decoder()
RULES = MODEL.config.pictures
HEAD = list(range(3, 23))


def row(picture, answer, ahead=HEAD):
    """Words, a picture by its seed, words, and an answer that is learned."""
    look = look_at(RULES, place_of(seeing.saved(seeing.pixels(picture, 8, 16))))
    asked = [*ahead, RULES.token_id, 40, 41]
    tokens, _, pictures = expanded([*asked, *answer], [True] * (len(asked) + len(answer)), [look], RULES)
    learned = np.arange(len(tokens)) >= len(tokens) - len(answer)
    return Example(np.array(tokens, np.int32), learned, pictures=pictures)


ROWS = [row(1, [50, 51]), row(1, [52, 53]), row(2, [50, 51]), row(2, [54]), row(3, [50, 51]), row(3, [55], HEAD[:5])]


def trained(rows, splits=0, micros=None):
    adapter = adapt(MODEL, "lora", r=2).double()
    tiny.jitter(adapter)
    sgd = torch.optim.SGD(adapter.parameters(), lr=0.1)
    trainee = Trainee(adapter, sgd, lambda _: 1.0, torch.amp.GradScaler(enabled=False), 0.0)
    splitter = Splitter(halvings=splits)
    batches = [[pack([rows[n] for n in micro], micro)] for micro in micros or [range(len(rows))]]
    record = take_step(MODEL, [trainee], batches, splitter=splitter)[0]
    return record, [p.detach().clone() for p in adapter.parameters()]


def loss_alone(rows):
    """Nats a learned token, each row by itself in a pass of its own, by the base."""
    sums, count = 0.0, 0
    for one in rows:
        tokens = torch.tensor(one.tokens, dtype=torch.int64)
        segments = Segments.packed([len(tokens)])
        segments.__dict__["features"] = features(MODEL.config.pictures, [one.pictures])
        scores = MODEL.head(MODEL.hidden(Pass(tokens, segments))).log_softmax(-1)
        wanted = np.flatnonzero(one.supervised)
        sums -= float(scores[wanted - 1, tokens[wanted]].sum())
        count += len(wanted)
    return sums / count


def test_something_is_shared_and_a_step_is_that_of_the_rows_alone():
    shared = share_beginnings(pack(ROWS))
    assert len(shared.tokens) < sum(len(one.tokens) for one in ROWS) - 60
    whole, alone = trained(ROWS), trained(ROWS, micros=[[n] for n in range(len(ROWS))])
    assert whole[0].loss == pytest.approx(alone[0].loss, rel=1e-12)
    for mine, theirs in zip(whole[1], alone[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    halved = trained(ROWS, splits=1)
    assert halved[0].loss == pytest.approx(alone[0].loss, rel=1e-12)


def test_the_loss_is_that_of_the_rows_pictures():
    wanted = loss_alone(ROWS)
    assert held_out(MODEL, ROWS).loss == pytest.approx(wanted, rel=1e-6)
    blind = [Example(one.tokens, one.supervised) for one in ROWS]
    assert abs(held_out(MODEL, blind).loss - wanted) > 1e-3


def test_what_is_kept_of_frozen_layers_is_each_pictures_own():
    kept = Frozen(1, 1 << 30)
    rows = [ROWS[0], ROWS[2], ROWS[0]]
    assert (rows[0].tokens == rows[1].tokens).all()
    states = kept.states(MODEL, pack(rows)).split([len(one.tokens) for one in rows])
    assert len(kept.kept) == 2 and torch.equal(states[0], states[2])
    start, end = rows[0].pictures[0].start, rows[0].pictures[0].end
    assert torch.equal(states[0][:start], states[1][:start]) and not torch.equal(
        states[0][start:end], states[1][start:end]
    )
    segments = Segments.packed([len(rows[1].tokens)])
    segments.__dict__["features"] = features(MODEL.config.pictures, [rows[1].pictures])
    alone = MODEL.hidden(Pass(torch.tensor(rows[1].tokens, dtype=torch.int64), segments, stop=1))
    assert torch.equal(states[1], alone)
