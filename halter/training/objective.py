"""What an objective is: what is learned, said of one pass's numbers, and never how a pass is run.

An objective file in training/objectives holds one subclass of Objective, a frozen dataclass of options. The file's name
is the objective's name and the only registration there is. What it ``needs`` decides which of its functions are asked.

Its value is a sum over the pass, which the step divides by the tokens, rows or groups (``per``) of the *whole* step: so
value and gradient are the same however a step is cut into passes, and no objective counts anything.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache, cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from halter.arguments import check_options
from halter.data.pack import IGNORED, Batch
from halter.elsewhere import refuse_unknown
from halter.errors import Refusal

FOLDER = "halter.training.objectives"
Unit = Literal["token", "row", "group"]
Need = Literal["tokens", "losses", "distributions", "reference", "groups", "scores", "reports"]


def units(batch: Batch, per: Unit) -> int:
    """Learned tokens, rows or groups of a batch."""
    if per == "token":
        return int((batch.targets != IGNORED).sum())
    return len(batch.lengths) if per == "row" else len(batch.units())


@dataclass(frozen=True)
class Rows:
    """One trainee's rows in one pass, as an objective sees them: R rows with M learned tokens, in G groups.

    ``batch`` as it came, ``laid`` as it lies in the pass, where beginnings may be shared. ``reference`` float [M]: the
    token losses of the reference, where the objective needs them.
    """

    batch: Batch
    laid: Batch
    device: torch.device
    reference: Tensor | None = None

    @cached_property
    def row_of(self) -> Tensor:
        """int64 [M]: the row of each learned token."""
        rows = torch.repeat_interleave(torch.tensor(self.batch.lengths))
        rows = rows if self.laid.order is None else rows[self.laid.order]
        return rows[self.laid.targets != IGNORED].to(self.device)

    @cached_property
    def group_of(self) -> Tensor:
        """int64 [R]: the group of each row, counted from 0 in the order in which they come."""
        groups = self.batch.units()
        of = {row: number for number, unit in enumerate(groups) for row in unit}
        return torch.tensor([of[row] for row in range(len(of))], device=self.device)

    @cached_property
    def labels(self) -> Tensor:
        """float32 [R], NaN where a row has none."""
        rows = len(self.batch.lengths)
        given = self.batch.labels or [float("nan")] * rows
        return torch.tensor(given, dtype=torch.float32, device=self.device)

    @cached_property
    def tokens(self) -> Tensor:
        """int64 [R]: the learned tokens of each row."""
        return torch.bincount(self.row_of, minlength=len(self.batch.lengths))

    def by_row(self, values: Tensor) -> Tensor:
        """[R]: the sum of each row's ``values`` [M]; differentiable."""
        return values.new_zeros(len(self.batch.lengths)).index_add(0, self.row_of, values)

    def by_group(self, values: Tensor) -> Tensor:
        """[G]: the sum of each group's ``values`` [R]; differentiable."""
        return values.new_zeros(units(self.batch, "group")).index_add(0, self.group_of, values)


@dataclass(frozen=True)
class Objective:
    """Options of one objective. Subclasses are frozen dataclasses with a docstring under every field.

    ``needs``, what it asks of a pass:

    - ``tokens``: the losses of the learned tokens, each with a weight that is known before they are (``weights``)
    - ``losses``: the same with weights that depend on the losses (``value``); the head then runs twice
    - ``distributions``: with ``tokens`` or ``losses``, a token's loss is what ``compare`` makes of all of its
      distribution and of the reference's, in place of cross entropy
    - ``reference``: the reference's token losses, ``rows.reference``: of the same pass by the base or another adapter
    - ``groups``: rows of one group in one pass
    - ``scores``: what the adapter's pieces at the place ``score`` make of hidden states (``score``)
    - ``reports``: the sum of what layers report (``report``)
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"tokens"})
    per: ClassVar[Unit] = "token"
    """By the number of which in the whole step the value is divided."""
    nats: ClassVar[bool] = False
    """Whether its value is the mean loss of the learned tokens, which a guess among the vocabulary bounds."""
    scored: ClassVar[Literal["last", "learned"]] = "last"
    """Where scores are asked: at the last token of each row (K = R), or where each learned token is predicted (M)."""

    @classmethod
    def name(cls) -> str:
        """The objective's name, which is its file's."""
        return cls.__module__.rsplit(".", 1)[-1]

    @property
    def grouped(self) -> bool:
        """Whether rows of one group must stay in one pass."""
        return "groups" in self.needs

    @property
    def referring(self) -> bool:
        """Whether the reference goes through the pass too."""
        return bool(self.needs & {"reference", "distributions"})

    @property
    def plain(self) -> bool:
        """Whether weighted token losses are all that it asks for."""
        return self.needs == {"tokens"}

    def weights(self, rows: Rows) -> Tensor | None:
        """float [M], a weight of each token's loss; None: all are 1."""
        return None

    def value(self, losses: Tensor, rows: Rows) -> Tensor:
        """The scalar that is learned, differentiable in the token ``losses`` float64 [M]."""
        raise NotImplementedError

    def weigh(self, losses: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """(value, its derivatives by the token losses [M]). An objective that knows them need not give ``value``."""
        with torch.enable_grad():
            leaf = losses.detach().double().requires_grad_()
            value = self.value(leaf, rows)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    def compare(self, own: Tensor, reference: Tensor, targets: Tensor) -> Tensor:
        """Token losses [c], differentiable in the log-probabilities ``own`` [c, V]; the reference's are beside them,
        ``targets`` int64 [c] the tokens that follow."""
        raise NotImplementedError

    def score(self, scores: Tensor, rows: Rows) -> Tensor:
        """A scalar, differentiable in ``scores`` [K, outputs]."""
        raise NotImplementedError

    def report(self, total: Tensor, rows: Rows) -> Tensor:
        """A scalar, differentiable in ``total``, the sum of what all layers reported (0 where none did)."""
        raise NotImplementedError


@cache
def names() -> tuple[str, ...]:
    """Every objective there is, by the names of the files in its folder."""
    folder = importlib.import_module(FOLDER)
    return tuple(sorted(module.name for module in pkgutil.iter_modules(folder.__path__)))


@cache
def find(name: str) -> type[Objective]:
    """The Objective in the file of that name. Refusal ``unknown-objective`` names those there are."""
    if name not in names():
        near = get_close_matches(str(name).lower(), names(), 1)
        fix = f"did you mean {near[0]}?" if near else "take one of these; sft is the usual one"
        raise Refusal("unknown-objective", f"no objective is called {name!r}", expected=", ".join(names()), fix=fix)
    module = importlib.import_module(f"{FOLDER}.{name}")
    return next(
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Objective) and item.__module__ == module.__name__
    )


def make(choice: str | Mapping[str, Any]) -> Objective:
    """The objective of that name, or of ``{name: ..., option: value, ...}``. Refusals ``unknown-objective``;
    ``unknown-option`` and ``wrong-argument`` for options that it does not have, or of another kind."""
    given = {"name": choice} if isinstance(choice, str) else dict(choice)
    kind = find(str(given.pop("name", "")))
    refuse_unknown(given, [field.name for field in fields(kind) if field.init], kind.name())
    check_options(kind.name(), kind, given)
    return kind(**given)
