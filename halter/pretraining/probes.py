"""What a frozen encoder's states tell of the playground's pictures, by linear probes on pictures that it never saw.

A probe is ridge regression of the answer's one-hot numbers on standardised states; the strength of the ridge is the one
that does best on a fifth of the probe's own training pictures. Probes are how an encoder is measured; no encoder learns
from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halter.encoders.encoder import PictureEncoder
from halter.encoders.features import FeatureKind
from halter.playground import sights
from halter.playground.drawings import COLOURS, SHAPES, Drawing, Form, Things
from halter.playground.papers import CLOSED, Paper, paper
from halter.playground.words import Dice

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Times the mean of the kernel's diagonal."""
BATCH = 64
NOTHING = 0


def kinds(encoder: PictureEncoder) -> dict[str, FeatureKind]:
    """What adapters take: the class tokens of the last four layers, the patches of the layer before the last, and the
    one vector of the space shared with texts."""
    depth = min(4, encoder.config.layers)
    return {
        "class": FeatureKind(tuple(range(-depth, 0)), "class"),
        "patches": FeatureKind((-2,), "patches"),
        "whole": FeatureKind((-1,), "whole"),
    }


def measure(encoder: PictureEncoder, train: int, test: int, seed: object = "probe") -> dict[str, dict[str, float]]:
    """{kind of features: {what is asked: share of right answers}}, each asked of ``test`` drawings of things, forms or
    papers after ``train`` of them, none of which a recipe's training drew."""
    found: dict[str, dict[str, float]] = {name: {} for name in kinds(encoder)}
    dice = [Dice("probes", seed, at) for at in range(train + test)]
    things, forms = [sights.things(one) for one in dice], [sights.form(one) for one in dice]
    sheets = [paper(one) for one in dice]
    several: list[tuple[Sequence[Drawing | Paper], Answers]] = [
        (things, things_answers(things)),
        (forms, form_answers(forms)),
        (sheets, paper_answers(sheets)),
    ]
    for drawn, asked in several:
        for name, features in states(encoder, drawn).items():
            for what, right in _right(features, asked, train).items():
                found[name][what] = right
    return found


def states(encoder: PictureEncoder, drawn: Sequence[Drawing | Paper]) -> dict[str, Tensor]:
    """{kind: float32 [drawings, numbers]}."""
    made: dict[str, list[Tensor]] = {name: [] for name in kinds(encoder)}
    for start in range(0, len(drawn), BATCH):
        pixels = [torch.from_numpy(one.draw()).permute(2, 0, 1) for one in drawn[start : start + BATCH]]
        ready = torch.stack([encoder.prepare(one) for one in pixels])
        for name, kind in kinds(encoder).items():
            made[name].append(kind.of(encoder, ready).flatten(1).float())
    return {name: torch.cat(parts) for name, parts in made.items()}


Answers = dict[str, list[tuple[list[int], list[bool]]]]
"""{what is asked: for each question of the kind, the class of every drawing's answer, and whether it is counted}."""


def things_answers(drawn: Sequence[Things]) -> Answers:
    """Colour and shape of each quarter, counted where there is a thing; how many there are; which quarters are
    empty."""
    quarters = [{thing.quarter: thing for thing in one.things} for one in drawn]
    shapes, colours = [None, *SHAPES], [None, *COLOURS]
    asked: Answers = {"colour": [], "shape": [], "empty": []}
    for quarter in range(4):
        there = [quarter in one for one in quarters]
        asked["colour"].append(
            ([colours.index(one[quarter].colour) if quarter in one else NOTHING for one in quarters], there)
        )
        asked["shape"].append(
            ([shapes.index(one[quarter].shape) if quarter in one else NOTHING for one in quarters], there)
        )
        asked["empty"].append(([int(not one) for one in there], [True] * len(there)))
    return asked | {"count": [([len(one.things) for one in drawn], [True] * len(drawn))]}


def form_answers(drawn: Sequence[Form]) -> Answers:
    """Whether each line is ticked, and the digits of its number."""
    every = [True] * len(drawn)
    asked: Answers = {"tick": [], "tens": [], "ones": []}
    for line in range(2):
        asked["tick"].append(([int(one.lines[line].ticked) for one in drawn], every))
        asked["tens"].append(([one.lines[line].number // 10 for one in drawn], every))
        asked["ones"].append(([one.lines[line].number % 10 for one in drawn], every))
    return asked


def paper_answers(drawn: Sequence[Paper]) -> Answers:
    """The fields that are from closed lists, counted where a paper has them."""
    asked: Answers = {"fields": []}
    for name, values in CLOSED.items():
        known = [None, *values]
        said = [known.index(one.fields.get(name)) for one in drawn]
        asked["fields"].append((said, [answer != NOTHING for answer in said]))
    return asked


def _right(features: Tensor, asked: Answers, train: int) -> dict[str, float]:
    """{what is asked: the share of right answers about the drawings behind the first ``train``}."""
    flat = [(what, *one) for what, several in asked.items() for one in several]
    targets = [torch.nn.functional.one_hot(torch.tensor(answers)).float() for _, answers, _ in flat]
    widths = [one.shape[1] for one in targets]
    guesses = ridge(features, torch.cat(targets, 1)[:train]).split(widths, 1)
    right: dict[str, list[bool]] = {what: [] for what in asked}
    for (what, answers, counted), guess in zip(flat, guesses, strict=True):
        for said, wanted, counts in zip(guess.argmax(1).tolist(), answers[train:], counted[train:], strict=True):
            if counts:
                right[what].append(said == wanted)
    return {what: round(float(np.mean(one)), 4) for what, one in right.items()}


def ridge(features: Tensor, wanted: Tensor) -> Tensor:
    """``features`` [n + m, numbers], ``wanted`` [n, k] of the first n -> what is foretold of the other m, [m, k]."""
    train = len(wanted)
    known = features[:train]
    spread = known.std(0).clamp_min(1e-6)
    x = (features - known.mean(0)) / spread
    kernel = (x @ x[:train].T).double()
    kept = train - train // 5

    def foretold(rows: int, strength: float, of: slice) -> Tensor:
        inner = kernel[:rows, :rows] + strength * kernel.diagonal().mean() * torch.eye(rows).double()
        mean = wanted[:rows].double().mean(0)
        solved = torch.cholesky_solve(wanted[:rows].double() - mean, torch.linalg.cholesky(inner))
        return kernel[of, :rows] @ solved + mean

    held = slice(kept, train)
    errors = [(foretold(kept, one, held) - wanted[held]).square().mean().item() for one in RIDGES]
    return foretold(train, RIDGES[int(np.argmin(errors))], slice(train, None))


def told(encoder: PictureEncoder, train: int, test: int) -> dict[str, Any]:
    """What figures.json keeps."""
    return {"train": train, "test": test, **measure(encoder, train, test)}
