"""Shapes from memory are those that torch works out, and a pass counts the same with either."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from halter.contract.registry import find, names
from halter.planning import trace
from halter.planning.dry import dry_adapter, dry_base
from halter.planning.shapes import Shapes
from tests import tiny

aten = torch.ops.aten
A = torch.empty(4, 6, device="meta")


class Asking(Shapes):
    """Torch, each time."""

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)


METHODS = [name for name in names() if name != "token_rows"]
HELD = [(None, torch.bfloat16), ("nf4", torch.bfloat16), ("int8", torch.float32)]


def counted_alike(name: str, held: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = tiny.config(layers=3, dim=64, ffn_dim=192)
    method = find(name)(r=2) if "r" in find(name).__dataclass_fields__ else find(name)()
    own = dry_base(shape, dtype, held), dry_adapter(shape, [method])
    for on in (False, True):
        found = []
        for shapes in (Asking(), Shapes(), trace.SHAPES):
            monkeypatch.setattr(trace, "SHAPES", shapes)
            found += [trace.training_pass(*own, 2, 24, on, True), trace.reading_pass(*own, 2, 20, 30)]
            monkeypatch.undo()
        assert found[:2] == found[2:4] == found[4:]


@pytest.mark.parametrize("number", range(len(METHODS)), ids=METHODS)
def test_a_pass_counts_the_same_whoever_is_asked(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each method on one of the three ways to hold the base, in turn; on all of them nightly."""
    held, dtype = HELD[number % len(HELD)] if METHODS[number] != "full" else HELD[0]
    counted_alike(METHODS[number], held, dtype, monkeypatch)


@pytest.mark.nightly
@pytest.mark.parametrize("name", METHODS)
def test_a_pass_counts_the_same_however_the_base_is_held(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for held, dtype in HELD[:1] if name == "full" else HELD:
        counted_alike(name, held, dtype, monkeypatch)


def test_torch_is_asked_once_for_each_shape() -> None:
    shapes = Shapes()
    for rows in (4, 4, 5, 4):
        made = shapes.run(aten.mm.default, (torch.empty(rows, 6, device="meta"), A.new_empty(6, 2)), {})
        assert made.shape == (rows, 2) and made.is_meta
    assert shapes.asked == 2


def test_numbers_that_are_equal_and_not_the_same_are_told_apart() -> None:
    shapes, counts = Shapes(), torch.empty(3, dtype=torch.int64, device="meta")
    assert [shapes.run(aten.mul.Tensor, (counts, by), {}).dtype for by in (1, 1.0, True)] == [
        torch.int64,
        torch.float32,
        torch.int64,
    ]
    assert shapes.run(aten.sum.dim_IntList, (A, [0]), {}).shape == (6,)
    assert shapes.run(aten.sum.dim_IntList, (A, [0]), {"dtype": torch.float64}).dtype == torch.float64


def test_what_shares_memory_is_never_laid_out_anew() -> None:
    shapes = Shapes()
    for _ in range(3):
        for made in (
            shapes.run(aten.t.default, (A,), {}),
            shapes.run(aten._unsafe_view.default, (A, [24]), {}),
            shapes.run(aten.mul_.Tensor, (A, 2.0), {}),
        ):
            assert made.untyped_storage()._cdata == A.untyped_storage()._cdata
    parts = shapes.run(aten.split.Tensor, (A, 2), {})
    assert {part.untyped_storage()._cdata for part in parts} == {A.untyped_storage()._cdata}
