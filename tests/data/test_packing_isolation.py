"""Rows that lie end to end do not see one another: other words in one row change no bit of its neighbours' logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from halter.adapters.adapter import adapt
from halter.data.example import Example
from halter.data.pack import pack
from halter.data.share import share_beginnings
from halter.methods.lora import Lora
from halter.model.decoder import Decoder
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.numerics import attention


@contextmanager
def _rows(backend: SDPBackend) -> Iterator[None]:
    """What devices other than the CPU take: torch's attention row by row."""
    with pytest.MonkeyPatch.context() as patch, sdpa_kernel(backend):
        patch.setattr(attention, "_flash", lambda q: False)
        yield


BACKENDS: dict[str, Callable[[], Any]] = {
    "CPU kernel": nullcontext,
    "row by row, math": lambda: _rows(SDPBackend.MATH),
    "row by row, flash": lambda: _rows(SDPBackend.FLASH_ATTENTION),
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.bfloat16]
LENGTHS = st.lists(st.one_of(st.integers(1, 12), st.integers(30, 200)), min_size=2, max_size=6)


def logits_of(model: Decoder, adapter: Any, rows: list[np.ndarray]) -> list[Tensor]:
    """Logits of each row of one packed pass."""
    batch = pack([Example(row.astype(np.int32), np.ones(len(row), bool)) for row in rows])
    segments = Segments.packed(batch.lengths, model.device)
    acts = adapter.bind(model, segments)
    out = model.head(model.hidden(Pass(batch.tokens.to(model.device), segments, acts)), acts)
    return list(out.split(batch.lengths))


def model_and_adapter(dtype: torch.dtype, device: str) -> tuple[Decoder, Any]:
    model = tiny.decoder(dtype=dtype).to(device)
    adapter = adapt(model, [Lora(r=2, alpha=4)], seed=0)
    tiny.jitter(adapter)
    return model, adapter


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", BACKENDS)
def test_other_words_change_no_neighbour(name: str, device: str, dtype: torch.dtype) -> None:
    """12 random packs on every backend: each row in turn gets other tokens of the same number."""
    if device == "cuda" and name == "CPU kernel":
        pytest.skip("of the CPU")
    if name.endswith("flash") and device == "cuda" and dtype == torch.float32:
        pytest.skip("this kernel has no float32 on CUDA")
    model, adapter = model_and_adapter(dtype, device)
    compared = 0

    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(LENGTHS, st.integers(0, 2**31))
    def check(lengths: list[int], seed: int) -> None:
        nonlocal compared
        random = np.random.default_rng(seed)
        rows = [random.integers(0, 96, length) for length in lengths]
        with torch.no_grad(), BACKENDS[name]():
            before = logits_of(model, adapter, rows)
            for changed in range(len(rows)):
                others = [*rows[:changed], (rows[changed] + 1 + random.integers(0, 90)) % 96, *rows[changed + 1 :]]
                after = logits_of(model, adapter, others)
                for place, (old, new) in enumerate(zip(before, after)):
                    if place == changed:
                        assert not torch.equal(old, new)
                    else:
                        assert torch.equal(old, new), (lengths, changed, place)
                        compared += 1

    check()
    print(f"{name}, {device}, {dtype}: {compared} neighbours bit-equal")
    assert compared > 50


@pytest.mark.parametrize("name", BACKENDS)
def test_a_neighbours_gradient_does_not_arrive(name: str) -> None:
    """The loss of one row has no gradient to another row's embedding; and its own does not depend on the neighbours'
    words."""
    model, adapter = model_and_adapter(torch.float32, "cpu")
    random = np.random.default_rng(0)
    rows = [random.integers(0, 96, length) for length in (7, 150, 1, 33)]
    grads = []
    with BACKENDS[name]():
        for first in (rows[0], (rows[0] + 5) % 96):
            for parameter in adapter.parameters():
                parameter.grad = None
            out = logits_of(model, adapter, [first, *rows[1:]])
            (out[1].float().logsumexp(-1).sum() + out[3].float().square().sum()).backward()
            grads.append([p.grad.clone() for p in adapter.parameters() if p.grad is not None])
    assert grads[0] and all(torch.equal(one, other) for one, other in zip(*grads))


def shared_logits(model: Decoder, adapter: Any, rows: list[np.ndarray], prompt: int) -> dict[int, Tensor]:
    """Logits of each row's own part of one pass whose rows share their beginnings, by row number."""
    learnt = [np.arange(len(row)) >= prompt for row in rows]
    batch = share_beginnings(pack([Example(r.astype(np.int32), s) for r, s in zip(rows, learnt)]))
    segments = Segments.packed(batch.lengths, prompt_lengths=batch.prompt_lengths, continues=batch.continues)
    acts = adapter.bind(model, segments)
    out = model.head(model.hidden(Pass(batch.tokens, segments, acts)), acts).split(batch.lengths)
    return {number: logits[-(len(rows[number]) - prompt) :] for number, logits in zip(batch.rows, out) if number >= 0}


@pytest.mark.parametrize("name", BACKENDS)
def test_rows_that_share_their_beginning_are_apart_behind_it(name: str) -> None:
    """Rows with one prompt compute it once. Another answer in one of them changes no bit of the others; another prompt
    in one of them, which leaves the group and so changes shapes, nothing beyond rounding (1e-5 of the largest)."""
    model, adapter = model_and_adapter(torch.float32, "cpu")
    random = np.random.default_rng(0)
    prompt, compared = 24, 0
    for _ in range(5):
        head = random.integers(0, 96, prompt)
        rows = [np.concatenate((head, random.integers(0, 96, int(random.integers(2, 60))))) for _ in range(4)]
        with torch.no_grad(), BACKENDS[name]():
            before = shared_logits(model, adapter, rows, prompt)
            for changed in range(4):
                answer, asked = rows[changed].copy(), rows[changed].copy()
                answer[prompt:] = (answer[prompt:] + 1) % 96
                asked[3] = (asked[3] + 1) % 96
                after = shared_logits(model, adapter, [*rows[:changed], answer, *rows[changed + 1 :]], prompt)
                apart = shared_logits(model, adapter, [*rows[:changed], asked, *rows[changed + 1 :]], prompt)
                for place in set(range(4)) - {changed}:
                    assert torch.equal(before[place], after[place]), (changed, place)
                    gap = (before[place] - apart[place]).abs().max() / before[place].abs().max()
                    assert gap < 1e-5
                    compared += 1
                assert not torch.equal(before[changed], after[changed])
    print(f"{name}: {compared} neighbours with a shared beginning bit-equal")
