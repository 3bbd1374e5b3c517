"""Whether a base with experts has learned what it was made for: four questions, each answered with its figures.

Kinds of tokens are the classes of their words; the kinds of their documents are told beside them and decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from halter.errors import Refusal
from halter.files.reading import read_json
from halter.model.decoder import Decoder
from halter.model.experts import EXPERTS
from halter.playground.base import base_folder
from halter.pretrained.load import load
from halter.run.making import FIGURES
from halter.run.specialised import Kinds, Routes, chance, information, read

LEAST_SHARE = 0.25
"""Of an expert's even share of the tokens, what it takes at least."""
LEAST_INFORMATION = 5.0
"""Times what chance gives, the information that a token's kind and its expert share at least."""
SMALL = 1e-9
TOKENS = 30_000
DECIDES = "word"
TWIN = "twin.json"
"""Beside a base's weights: figures.json of its dense twin, whose own weights are not kept."""
COMPARED = ("held_out_loss", "parameters", "active_parameters", "tokens", "seconds")
Figures = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """The answer to one question: whether it ``holds``, its ``figures`` as JSON has them, and ``lines`` of them."""

    question: str
    holds: bool
    figures: Figures
    lines: tuple[str, ...]


def accept(
    model: Decoder, tokenizer: Tokenizer, figures: Mapping[str, Any], twin: Mapping[str, Any], tokens: int
) -> dict[str, Reply]:
    """The four answers for a base, by letter; ``figures`` and ``twin`` are what the recipe kept in figures.json of it
    and of its dense twin, ``tokens`` how many held-out ones are read."""
    routes = read(model, tokenizer, tokens)
    return {"a": beside_twin(figures, twin), "b": even(routes), "c": informed(routes), "d": missed(routes)}


def of_folder(folder: str | Path | None = None, twin: str | Path | None = None) -> dict[str, Reply]:
    """The answers for a folder that ``run.pretrain`` wrote, or for the base in the package; ``twin`` is the folder of
    its dense twin, where that was made anew too. Refusals ``no-experts``, ``file-missing`` and those of loading."""
    folder = base_folder("moe") if folder is None else Path(folder)
    figures = read_json(folder / FIGURES)
    other = read_json(folder / TWIN if twin is None else Path(twin) / FIGURES)
    model, _ = load(str(folder), "float32", say=lambda _: None)
    if not model.layout.of(EXPERTS):
        what = "this base has no routed experts, so there is nothing to ask"
        raise Refusal("no-experts", what, where=str(folder), fix="halter playground pretrain FOLDER --base moe")
    return accept(model, Tokenizer.from_file(str(folder / "tokenizer.json")), figures, other, TOKENS)


def beside_twin(figures: Mapping[str, Any], twin: Mapping[str, Any]) -> Reply:
    """(a) Held-out loss against that of a dense base of at least equal active size and equal tokens, by one recipe."""
    base, other = ({key: one[key] for key in COMPARED} for one in (figures, twin))
    fair = base["tokens"] == other["tokens"] and base["active_parameters"] <= other["active_parameters"]
    lines = tuple(
        f"{name}: {one['held_out_loss']:.4f} a token, perplexity {np.exp(one['held_out_loss']):.3f}; "
        f"{one['parameters']:,} parameters, {one['active_parameters']:,} active; {one['tokens']:,} tokens read"
        for name, one in (("base", base), ("twin", other))
    )
    question = "held-out loss is at most that of a dense base of equal active size and tokens"
    holds = fair and base["held_out_loss"] <= other["held_out_loss"]
    return Reply(question, bool(holds), {"base": base, "twin": other}, lines)


def even(routes: Routes) -> Reply:
    """(b) The share of the tokens that each expert takes, in each layer."""
    loads, bound = routes.loads(), LEAST_SHARE / routes.experts
    by_layer = dict(zip(routes.names, loads.tolist(), strict=True))
    lines = tuple(f"layer {name}: " + " ".join(f"{share:.3f}" for share in one) for name, one in by_layer.items())
    least = float(loads.min())
    question = f"no expert takes under 1/(4E) = {bound:.4f} of the tokens: the least takes {least:.4f}"
    return Reply(question, least >= bound, {"least": least, "bound": bound, "loads": by_layer}, lines)


def informed(routes: Routes) -> Reply:
    """(c) Normalised mutual information of a token's expert and its kind, beside that of shuffled kinds."""
    figures: Figures = {}
    lines = []
    for name, kinds in routes.kinds.items():
        figures[name] = {}
        for place, layer in zip(routes.names, routes.layers, strict=True):
            experts = routes.chosen[layer][:, 0]
            own, shuffled = information(experts, kinds.number), chance(experts, kinds)
            figures[name][place] = {"information": own, "shuffled": shuffled, "times": own / max(shuffled, SMALL)}
            lines.append(
                f"layer {place}, {name}: {own:.4f}, shuffled {shuffled:.4f}: {own / max(shuffled, SMALL):.0f} times"
            )
    least = min(one["times"] for one in figures[DECIDES].values())
    question = f"expert and kind share {LEAST_INFORMATION:g} times the information that shuffled kinds do"
    return Reply(question, least >= LEAST_INFORMATION, figures, tuple(lines))


def missed(routes: Routes) -> Reply:
    """(d) What the removal of each kind's favourite expert costs it, beside that of the others of its layer."""
    figures = {name: favourites(routes, kinds) for name, kinds in routes.kinds.items()}
    lines = tuple(
        f"{kind} ({name}): expert {one['expert']} of layer {one['layer']} takes {one['share']:.0%}; removed, it costs "
        f"{one['cost']:.3f}, the next of its layer {one['next']:.3f}, give or take {one['error']:.3f}"
        for name, told in figures.items()
        for kind, one in told.items()
    )
    most = [one["cost"] > one["next"] for one in figures[DECIDES].values()]
    question = f"removing a kind's favourite expert costs that kind most: {sum(most)} of {len(most)} kinds"
    return Reply(question, all(most), figures, lines)


def favourites(routes: Routes, kinds: Kinds) -> dict[str, Figures]:
    """{kind that is not rare: the expert that takes the largest share of its tokens, and what removals cost it}. The
    ``error`` is one standard error of the difference of both costs."""
    shares, costs = routes.shares(kinds), routes.costs(kinds)
    found: dict[str, Figures] = {}
    for kind in kinds.common():
        place, expert = np.unravel_index(shares[:, :, kind].argmax(), shares.shape[:2])
        others = np.where(np.arange(routes.experts) == expert, -np.inf, costs[place, :, kind])
        rival = others.argmax()
        apart = (routes.removed[place, expert] - routes.removed[place, rival])[kinds.number == kind]
        apart = apart[~np.isnan(apart)]
        found[kinds.names[kind]] = {
            "layer": routes.layers[place],
            "expert": int(expert),
            "share": float(shares[place, expert, kind]),
            "cost": float(costs[place, expert, kind]),
            "next": float(others[rival]),
            "error": float(apart.std() / len(apart) ** 0.5),
        }
    return found
