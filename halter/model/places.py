"""How an adapter acts at a place, and what the decoder hands to whoever acts there.

This file and the layout, which lists a model's places, are all that the decoder and the methods know of one another. A
place has two halves: ``enter(x)`` before the base operation and ``act(x, y)`` after it: what others call a forward
pre-hook and a forward hook at a hook point. ``None`` at a place means that nothing acts there and costs nothing.
Several acts at one place, or on the rows of one batch, are joints (model.joints).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from halter.model.layout import Place
    from halter.model.segments import RowRun, Segments

JOINTS = "halter.model.joints"
"""The one module whose classes say how several acts work at one place."""
FINAL = frozenset({"joint", "apply", "after", "follows", "own_weight"})


@dataclass(frozen=True)
class Act:
    """What happens at one place during one forward. Made by bind, used by the decoder, then forgotten.

    Subclasses are frozen dataclasses of tensors and numbers and never store anything during the forward: a memo
    inside a checkpointed layer would break recomputation. They say what they do in ``enter``, ``act``, ``beside`` and
    ``stand_in``; how these are put together, alone or with other acts, is written once here and once for each joint in
    model.joints, and can be written nowhere else, so that no joint misses what an act does.
    """

    joint: ClassVar[bool] = False
    """Whether it stands for several acts, and so has no halves of its own."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ != JOINTS and (taken := sorted(FINAL & vars(cls).keys())):
            what = "say what it does in enter, act, beside and stand_in, which every joint asks"
            raise TypeError(f"{cls.__qualname__} overrides {', '.join(taken)}: {what}")

    def enter(self, x: Any) -> Any:
        """x' that goes into the base operation instead of x."""
        return x

    def act(self, x: Any, y: Tensor) -> Tensor:
        """y' that leaves the place, x being what entered the operation and y what it computed."""
        return y

    def beside(self, x: Any, y: Tensor) -> Tensor:
        """y', x being what came to this act, before its own ``enter``: for a branch beside a changed input."""
        return y

    def stand_in(self) -> tuple[Tensor, Tensor | None] | None:
        """(weight, bias) used instead of the base's, in the compute dtype; None keeps the base's."""
        return None

    def select(self, index: Tensor) -> Act:
        """The same act for the tokens ``index`` (int64 [M], ascending) only; acts without per-token state are equal."""
        return self

    def stack(self, parts: Sequence[Act | None], counts: Sequence[int]) -> Act | None:
        """One act for neighbouring runs of ``counts`` tokens, each with its own part, self among them; or None.

        For speed alone: model.joints defines what is computed, and a law demands agreement with it.
        """
        return None

    def apply(self, operation: Callable[..., Tensor], x: Any) -> Tensor:
        """enter, the operation with the act's own weight or the base's, act, beside."""
        entered = self.enter(x)
        own = self.stand_in()
        y = operation(entered) if own is None else operation(entered, *own)
        return self.beside(x, self.act(entered, y))

    def after(self, x: Any, y: Tensor) -> Tensor:
        """The same where y has been computed already; right for what ``follows``, and for nothing else."""
        return self.beside(x, self.act(x, y))

    @property
    def follows(self) -> bool:
        """Whether it only changes what the base's operation computed."""
        return type(self).enter is Act.enter and self.stand_in() is None

    @property
    def own_weight(self) -> tuple[Tensor, Tensor | None] | None:
        """(weight, bias) that it computes with instead of the base's, where that is all that it does."""
        kind = type(self)
        alone = kind.enter is Act.enter and kind.act is Act.act and kind.beside is Act.beside
        return self.stand_in() if alone else None


@dataclass(frozen=True)
class Extra:
    """Vectors that rows of a batch see beside their own tokens: ``tensors`` [K, ...], and ``rows`` int64 CPU [R, 2],
    (start, length) of each row's own among the K; None: every row sees all K."""

    tensors: tuple[Tensor, ...]
    rows: Tensor | None = None

    @property
    def length(self) -> int:
        return self.tensors[0].shape[0]

    def of(self, rows: int) -> Tensor:
        """``rows`` written out for a batch of that many."""
        return torch.tensor([[0, self.length]] * rows) if self.rows is None else self.rows

    def then(self, other: Extra) -> Extra:
        """Both, one after the other, for all rows."""
        return Extra(tuple(torch.cat(pair) for pair in zip(self.tensors, other.tensors, strict=True)))


class LayerActs(NamedTuple):
    """One layer's places in the order in which they are called, and the memory that its attention sees besides."""

    input_layernorm: Act | None = None  # x: normalised, before the weight   y: times the weight
    q_proj: Act | None = None  # x: input of the Linear   y: its output; the same for every Linear
    k_proj: Act | None = None
    v_proj: Act | None = None
    score_key: Act | None = None  # x: hidden states   y: rotated keys, used for scores only
    context: Act | None = None  # x: Context   y: attention output per head [N, heads, head_dim]
    o_proj: Act | None = None
    after_attention: Act | None = None  # x: Sublayer   y: the sublayer's output, before the residual add
    post_attention_layernorm: Act | None = None
    gate_proj: Act | None = None
    up_proj: Act | None = None
    down_proj: Act | None = None
    after_mlp: Act | None = None
    block: Act | None = None  # x: Segments   y: the residual stream after the layer
    memory: Extra | None = None  # keys and values [K, kv_heads, head_dim], not rotated, ahead of each row


class Acts(NamedTuple):
    """Everything that acts during one forward: the places outside the layers, and one record a layer, which is a
    LayerActs where the layer is the dense LLaMA's."""

    layers: tuple[Any, ...]
    embed_tokens: Act | None = None  # x: token ids int64 [N]   y: embeddings [N, dim]
    norm: Act | None = None
    lm_head: Act | None = None  # x: final hidden states [M, dim]   y: logits [M, vocab]
    virtual_tokens: Extra | None = None  # embeddings [K, dim] ahead of each row; what comes out of them is dropped
    score: Act | None = None  # x: final hidden states [M, dim]   y: [M, 0], which acts make wider; asked by objectives

    def at(self, place: Place) -> Any:
        """The Act or Extra at a place of the layout, or None."""
        return getattr(self if place.layer is None else self.layers[place.layer], place.name)


@dataclass(frozen=True)
class Context:
    """What attention-level methods see at ``context``."""

    q: Tensor
    """[N, heads, head_dim]: the queries as they were scored, rotated."""
    k: Tensor
    """[S, kv_heads, head_dim]: the keys as they were scored, rotated; the cache's whole buffer when decoding."""
    v: Tensor
    """[S, kv_heads, head_dim]: the values."""
    segments: Segments
    """The rows."""
    spans: Tensor
    """int64 CPU [R, 4 or 6]: which queries and keys are a row's (``Segments.spans``)."""
    project: Callable[[Tensor, bool], tuple[Tensor, Tensor]]
    """``project(hidden [K, dim], adapted)``: unrotated (k, v) [K, kv_heads, head_dim] through this layer's k_proj and
    v_proj, with the acts of this forward at those places when ``adapted``, else of the base alone."""

    def part(self, run: RowRun) -> Context:
        """The record for one run of rows; k and v stay whole, because spans say which of them a row reads."""
        spans = self.spans[run.row : run.row_end].clone()
        spans[:, 0] -= run.token
        return replace(self, q=self.q[run.token : run.token_end], segments=self.segments.part(run), spans=spans)


@dataclass(frozen=True)
class Sublayer:
    """What entered attention or the MLP: ``normalised`` [N, dim], and the residual ``stream`` [N, dim] that it was
    normalised from."""

    normalised: Tensor
    stream: Tensor

    def parts(self, counts: list[int]) -> list[Sublayer]:
        """The records of runs of so many tokens."""
        return [Sublayer(*both) for both in zip(self.normalised.split(counts), self.stream.split(counts), strict=True)]


@dataclass(frozen=True)
class Routed:
    """What comes to a place of routed experts: ``rows`` [rows, in] in the order of the experts, how many of them are
    each expert's (``counts``), and which token each is of (``tokens``, int64 [rows])."""

    rows: Tensor
    counts: list[int]
    tokens: Tensor

    def apart(self, runs: Sequence[RowRun]) -> tuple[list[Routed], Tensor]:
        """The record of each run of tokens, and int64 [rows]: which rows these are, one run after the other."""
        device, experts = self.rows.device, len(self.counts)
        ends = torch.tensor([run.token_end for run in runs], device=device)
        run = torch.searchsorted(ends, self.tokens, right=True)
        expert = torch.arange(experts, device=device).repeat_interleave(torch.tensor(self.counts, device=device))
        counts = (run * experts + expert).bincount(minlength=len(runs) * experts).unflatten(0, (-1, experts)).tolist()
        order = run.argsort(stable=True)
        sizes = [sum(own) for own in counts]
        parts = zip(self.rows.index_select(0, order).split(sizes), counts, self.tokens[order].split(sizes), strict=True)
        return [Routed(*part) for part in parts], order


def cut(x: Any, runs: Sequence[RowRun]) -> Sequence[Any]:
    """A place's x run by run, the runs following each other: views of a tensor, or the record's own parts.

    All at once, so that a tensor's gradient is put together once and not added up over as many as there are runs.
    """
    counts = [run.token_end - run.token for run in runs]
    if isinstance(x, Sublayer):
        return x.parts(counts)
    return x.split(counts) if isinstance(x, Tensor) else [x.part(r) for r in runs]


def run_at(act: Act | None, operation: Callable[..., Tensor], x: Any) -> Tensor:
    """A base operation with whatever acts at its place."""
    return operation(x) if act is None else act.apply(operation, x)


A = TypeVar("A")


def tensors_of(act: Any) -> list[Tensor]:
    """Every tensor inside an act, in a fixed order, acts inside acts included."""
    if isinstance(act, Tensor):
        return [act]
    if type(act) in (tuple, list):
        return [t for item in act for t in tensors_of(item)]
    if isinstance(act, Act):
        return [t for f in fields(act) for t in tensors_of(getattr(act, f.name))]
    return []


def with_tensors(act: A, tensors: Sequence[Tensor]) -> A:
    """The same act over other tensors, given in the order of ``tensors_of``."""
    return _rebuild(act, iter(tensors))


def _rebuild(act: Any, tensors: Any) -> Any:
    if isinstance(act, Tensor):
        return next(tensors)
    if type(act) in (tuple, list):  # not the named tuples, which hold no tensors
        return type(act)(_rebuild(item, tensors) for item in act)
    if isinstance(act, Act):
        return replace(act, **{f.name: _rebuild(getattr(act, f.name), tensors) for f in fields(act)})
    return act
