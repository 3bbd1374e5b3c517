"""What the routers of a base have learned: where tokens go, whether that follows what they are, and what each expert is
worth to them. The playground's base with experts is accepted by these figures: `halter playground accept`.

Kinds of tokens are the playground's (playground.token_kinds); documents are those of a seed that training never read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from halter.adapters.acting import acts_of
from halter.data.pack import IGNORED
from halter.model.decoder import Decoder
from halter.model.experts import leading
from halter.model.passes import Pass
from halter.model.places import Act, Extra, Routed
from halter.model.segments import Segments
from halter.playground.token_kinds import KnownDocument, known_documents
from halter.pretraining.even_load import ROUTER

OUT = "experts_out"
COMMON = 0.01
"""The share of all tokens from which a kind is judged: rarer ones are left out, their means are too rough."""
SHUFFLES = 20


@dataclass(frozen=True)
class Hears(Act):
    """Keeps a router's scores for whoever measures; no gradient is made and no layer run twice there."""

    scores: list[Tensor] = field(default_factory=list)

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        self.scores.append(y)
        return y


@dataclass(frozen=True)
class Without(Act):
    """One expert removed: its tokens keep what the shared expert makes of them."""

    expert: int

    def act(self, x: Routed, y: Tensor) -> Tensor:
        first = sum(x.counts[: self.expert])
        y = y.clone()
        y[first : first + x.counts[self.expert]] = 0
        return y


@dataclass(frozen=True)
class Kinds:
    """One way to sort tokens: the ``names`` of the kinds, and each token's ``number`` int64 [N] among them. ``lengths``
    of the runs of tokens that are of one kind because they stand together; shuffling keeps these runs whole."""

    names: tuple[str, ...]
    number: np.ndarray
    lengths: np.ndarray

    @staticmethod
    def of(labels: Sequence[str], lengths: Sequence[int]) -> Kinds:
        """Of a label for each run."""
        names, number = np.unique(np.array(labels), return_inverse=True)
        return Kinds(tuple(str(name) for name in names), number.repeat(lengths), np.array(lengths))

    def shuffled(self, seed: int) -> np.ndarray:
        """int64 [N]: the kinds of other runs, drawn without putting back."""
        starts = self.lengths.cumsum() - self.lengths
        return np.random.default_rng(seed).permutation(self.number[starts]).repeat(self.lengths)

    @cached_property
    def counts(self) -> np.ndarray:
        return np.bincount(self.number, minlength=len(self.names))

    def common(self) -> list[int]:
        """The kinds that are not rare."""
        return [kind for kind, count in enumerate(self.counts) if count >= COMMON * len(self.number)]


class Routes:
    """A model's way with some documents: the losses of its tokens and the experts that they take."""

    def __init__(self, model: Decoder, documents: Sequence[KnownDocument]) -> None:
        self.model, self.documents = model, documents
        lengths = [len(one.tokens) for one in documents]
        tokens = np.concatenate([one.tokens for one in documents]).astype(np.int64)
        targets = np.append(tokens[1:], IGNORED)
        targets[np.cumsum(lengths) - 1] = IGNORED  # the last of a document foretells nothing
        self.tokens, self.targets = (torch.from_numpy(one).to(model.device) for one in (tokens, targets))
        self.segments = Segments.packed(lengths, model.device)
        self.layers = [place.layer for place in model.layout if place.name == ROUTER and place.layer is not None]
        """The layers with experts."""
        self.names = [str(layer) for layer in self.layers]
        self.kinds = {
            "word": Kinds.of([word for one in documents for word in one.words], [1] * len(tokens)),
            "document": Kinds.of([one.kind for one in documents], lengths),
        }
        """The class of each token's word, and the kind of the document that it stands in."""

    @torch.no_grad()
    def losses(
        self, acts: Mapping[tuple[int | None, str], Act | Extra], entered: tuple[int, Tensor] | None = None
    ) -> np.ndarray:
        """float64 [N]: each token's loss in foretelling the next; NaN at a document's last. ``entered`` as Pass has
        it."""
        at = acts_of(acts, self.model.layout)
        logits = self.model.head(self.model.hidden(Pass(self.tokens, self.segments, at, entered=entered)), at)
        losses = torch.nn.functional.cross_entropy(logits.float(), self.targets, reduction="none", ignore_index=IGNORED)
        return losses.masked_fill(self.targets == IGNORED, float("nan")).double().cpu().numpy()

    @cached_property
    def _plain(self) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        heard = {layer: Hears() for layer in self.layers}
        losses = self.losses({(layer, ROUTER): act for layer, act in heard.items()})
        count = self.model.config.experts_per_token  # type: ignore[attr-defined]
        return losses, {layer: leading(act.scores[0], count)[1].cpu().numpy() for layer, act in heard.items()}

    @property
    def plain(self) -> np.ndarray:
        """``losses`` of the model as it is."""
        return self._plain[0]

    @property
    def chosen(self) -> dict[int, np.ndarray]:
        """{layer: int64 [N, experts a token], the strongest first}."""
        return self._plain[1]

    @property
    def experts(self) -> int:
        return self.model.config.experts  # type: ignore[attr-defined]

    def loads(self) -> np.ndarray:
        """float64 [layers, experts]: the share of all choices that falls on each expert."""
        counts = [np.bincount(self.chosen[layer].ravel(), minlength=self.experts) for layer in self.layers]
        return np.array([one / one.sum() for one in counts])

    def shares(self, kinds: Kinds) -> np.ndarray:
        """float64 [layers, experts, kinds]: of each kind's tokens, the share whose first choice is the expert."""
        out = np.zeros((len(self.layers), self.experts, len(kinds.names)))
        for place, layer in enumerate(self.layers):
            np.add.at(out[place], (self.chosen[layer][:, 0], kinds.number), 1)
        return out / kinds.counts

    def costs(self, kinds: Kinds) -> np.ndarray:
        """float64 [layers, experts, kinds]: by how much the mean loss of a kind's tokens grows where one expert of one
        layer is removed."""
        told = ~np.isnan(self.plain)
        number, names = kinds.number[told], len(kinds.names)
        sums = np.array([[np.bincount(number, one[told], names) for one in layer] for layer in self.removed])
        return sums / np.maximum(np.bincount(number, minlength=names), 1)

    @cached_property
    def removed(self) -> np.ndarray:
        """float64 [layers, experts, N]: what the removal of each expert adds to each token's loss."""
        found = []
        for layer in self.layers:
            with torch.no_grad():
                entering = layer, self.model.hidden(Pass(self.tokens, self.segments, stop=layer))
            more = [self.losses({(layer, OUT): Without(e)}, entering) - self.plain for e in range(self.experts)]
            found.append(more)
        return np.array(found)


def information(first: np.ndarray, second: np.ndarray) -> float:
    """Mutual information of two labellings int64 [N] through the mean of their entropies: 0 where one says nothing of
    the other, 1 where each tells the other. 0 where both have one label."""
    joint = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(joint, (first, second), 1)
    joint /= joint.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    there = joint > 0
    shared = float((joint[there] * np.log(joint[there] / np.outer(rows, columns)[there])).sum())
    entropies = sum(-float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (rows, columns))
    return 2 * shared / entropies if entropies else 0.0


def chance(experts: np.ndarray, kinds: Kinds) -> float:
    """The mean ``information`` of ``SHUFFLES`` shuffles of the kinds: that of a router which knows nothing of them."""
    return float(np.mean([information(experts, kinds.shuffled(seed)) for seed in range(SHUFFLES)]))


def read(model: Decoder, tokenizer: Tokenizer, tokens: int) -> Routes:
    """Where a model sends held-out documents."""
    return Routes(model, known_documents(tokenizer, tokens))
