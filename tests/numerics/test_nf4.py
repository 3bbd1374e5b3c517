"""NF4 in plain torch against bitsandbytes' functional kernels, code for code, and against its own derivation."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.errors import Refusal
from halter.numerics import nf4, nf4_kernels
from halter.numerics.nf4 import NF4, Nested

bnb = pytest.importorskip("bitsandbytes.functional")


def test_the_codebook_is_quantiles_of_the_normal():
    """QLoRA's construction: quantiles between delta and 1/2, 8 positive, 7 negative, an exact zero."""
    delta = ((1 - 1 / 30) + (1 - 1 / 32)) / 2
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    positive = normal.icdf(torch.linspace(delta, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -normal.icdf(torch.linspace(delta, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat((positive, negative, torch.zeros(1, dtype=torch.float64))).sort().values
    assert float((values / values.max() - nf4.codebook().double()).abs().max()) < 2e-7
    assert torch.equal(nf4.codebook(), bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(nf4.dynamic_map(), bnb.create_dynamic_map())


def test_packing_and_bits():
    assert int(nf4.quantise(torch.tensor([1.0, -1.0])).codes[0]) == 0xF0
    weight = torch.randn(4096, 1024, generator=torch.Generator().manual_seed(0))
    assert nf4.quantise(weight, double=False).nbytes * 8 / weight.numel() == 4.5
    assert nf4.quantise(weight).nbytes * 8 / weight.numel() == pytest.approx(4.126953, abs=1e-5)
    error = (nf4.dequantise(nf4.quantise(weight), torch.float32) - weight).norm() / weight.norm()
    assert float(error) == pytest.approx(0.092, abs=5e-4)  # 9.20 % on normal weights


kinds = st.sampled_from(["normal", "outlier", "zeros", "some zero blocks", "codes"])


def drawn(shape, kind, seed, dtype):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=g)
    if kind == "outlier":
        weight[0, 0] = 300.0
    if kind == "zeros":
        weight.zero_()
    if kind == "some zero blocks":
        weight.view(-1)[: 64 * (weight.numel() // 128)] = 0
    if kind == "codes":
        weight = nf4.codebook()[torch.randint(0, 16, shape, generator=g)]
    return weight.to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 130)),
    kinds,
    st.integers(0, 99),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.booleans(),
)
def test_equal_to_bitsandbytes_code_for_code(shape, kind, seed, dtype, double):
    weight = drawn(shape, kind, seed, dtype)
    ours = nf4.quantise(weight, double)
    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double)
    assert torch.equal(ours.codes, codes)
    if not double:
        assert torch.equal(ours.absmax, state.absmax)
        return
    assert isinstance(ours.absmax, Nested)
    absmax = nf4.quantise(weight, False).absmax
    assert torch.equal(ours.absmax.offset, state.offset)
    assert torch.equal(ours.absmax.absmax[:-1], state.state2.absmax[:-1])
    centred = (absmax - state.offset).double() / ours.absmax.absmax.double().repeat_interleave(256)[: len(absmax)]
    away = (centred[:, None] - nf4.dynamic_map().double()).abs()
    chosen = away.gather(1, ours.absmax.codes.long()[:, None]).squeeze(1)
    assert bool((chosen <= away.min(1).values + 1e-7).all())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 400), kinds, st.integers(0, 99))
def test_8_bit_codes_differ_from_bitsandbytes_cpu_kernel_by_its_grid_only(rows, columns, kind, seed):
    """That kernel rounds a value to one of 65,536 steps before it looks for the nearest code, and gives a block of
    zeros code 0. With those two rules put in, its codes come out bit for bit; everything else is equal without them."""
    weight = drawn((rows, columns), kind, seed, torch.float32)
    ours = nf4.quantise(weight)
    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    nested = ours.absmax
    assert isinstance(nested, Nested)
    assert torch.equal(ours.codes, codes) and torch.equal(nested.offset, state.offset)
    centred = nf4.quantise(weight, double=False).absmax - nested.offset
    largest = torch.stack([block.abs().max() for block in centred.split(256)])
    assert torch.equal(largest, state.state2.absmax)
    scaled = (centred * (1 / largest).repeat_interleave(256)[: len(centred)]).clamp(-1, 1)
    step = ((scaled + 1) * 0.5 * 65535 + 0.5).nan_to_num().int()
    table = nf4.dynamic_map()
    on_grid = torch.bucketize((step.double() / 65535 * 2 - 1).float(), (table[1:] + table[:-1]) / 2)
    on_grid[largest.repeat_interleave(256)[: len(centred)] == 0] = 0
    assert torch.equal(on_grid, state.absmax.long())


def test_double_quantisation_is_within_a_step_of_bitsandbytes_cpu_kernel():
    """On normal weights its CPU kernel misses the nearest 8-bit code in 0.17 % of blocks, by one."""
    weight = torch.randn(512, 640, generator=torch.Generator().manual_seed(1))
    ours = nf4.quantise(weight)
    _, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    off = (ours.absmax.codes.int() - state.absmax.int()).abs()
    assert int(off.max()) <= 1 and float((off > 0).float().mean()) < 0.01


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(1, 40), st.integers(1, 130)), kinds, st.integers(0, 9), st.booleans())
def test_dequantised_equal_to_bitsandbytes(shape, kind, seed, double):
    data = nf4.quantise(drawn(shape, kind, seed, torch.float32), double)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(nf4.dequantise(data, dtype), nf4_kernels.dequantise(data, dtype))
    index = torch.randint(0, shape[0], (5,), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(nf4.rows(data, index, torch.float32), nf4.dequantise(data, torch.float32)[index])


def test_the_torch_path_can_be_forced(monkeypatch):
    monkeypatch.setenv("HALTER_NF4", "torch")
    assert nf4_kernels.kernels() == "torch"
    data = nf4.quantise(torch.randn(8, 64))
    monkeypatch.setattr(nf4, "expand", lambda *_: "reference")
    assert nf4_kernels.dequantise(data, torch.float32) == "reference"


def test_kernels_that_read_it_in_another_way_are_left_alone(monkeypatch):
    nf4_kernels._agrees.cache_clear()
    right = nf4_kernels._kernel
    monkeypatch.setattr(nf4_kernels, "_kernel", lambda *args: right(*args).flip(0))
    try:
        with pytest.warns(UserWarning, match="plain torch"):
            assert nf4_kernels.kernels() == "torch"
        data = nf4.quantise(torch.randn(8, 64))
        assert torch.equal(nf4_kernels.dequantise(data, torch.float32), nf4.dequantise(data, torch.float32))
    finally:
        nf4_kernels._agrees.cache_clear()
    monkeypatch.undo()
    assert nf4_kernels.kernels() == "bitsandbytes"


def test_importing_bitsandbytes_fetches_no_kernels():
    """It would import ``kernels``, fetch code by that and run it. In a fresh process, with such a package planted."""
    code = """
import sys, types
class Planted:
    def find_spec(self, name, path=None, target=None):
        assert name != "kernels", "looked for"
sys.meta_path.insert(0, Planted())
from halter.numerics import nf4_kernels
assert nf4_kernels.kernels() == "bitsandbytes" and "kernels" not in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    weight = torch.zeros(70, 64)
    weight[69, 3] = bad
    with pytest.raises(Refusal, match="weight-not-finite"):
        nf4.quantise(weight)


def neighbours(values, steps=3):
    """Each value and the floats next to it, ``steps`` to either side."""
    found = [values]
    for to in (2.0, -2.0):
        near = values
        for _ in range(steps):
            near = torch.nextafter(near, torch.tensor(to))
            found.append(near)
    return torch.cat(found)


def test_codes_by_cells_count_the_middles_below_a_tie_goes_to_the_lower():
    middles = (nf4.codebook()[1:] + nf4.codebook()[:-1]) / 2  # in float32, as bitsandbytes has them
    edges = torch.arange(4097, dtype=torch.float64) / (4095.5 / 2) - 1
    spread = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = torch.cat((neighbours(middles), neighbours(edges.float()), spread)).clamp(-1, 1)
    assert torch.equal(nf4.nearest(values).long(), (values[:, None] > middles).sum(1))


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50))
def test_a_code_is_the_nearest(values):
    scaled = torch.tensor(values)
    away = (scaled.double()[:, None] - nf4.codebook().double()).abs()
    chosen = away.gather(1, nf4.nearest(scaled).long()[:, None]).squeeze(1)
    assert bool((chosen <= away.min(1).values + 6e-8).all())  # the middles are rounded to float32


def test_chunks_change_nothing(monkeypatch):
    weight = torch.randn(100, 96, generator=torch.Generator().manual_seed(1))
    weight = weight.view(-1)[:-5]
    whole = nf4.quantise(weight)
    dense = nf4.dequantise(whole, torch.bfloat16)
    monkeypatch.setattr(nf4, "_CHUNK", 640)
    parts = nf4.quantise(weight)
    assert torch.equal(whole.codes, parts.codes) and isinstance(parts, NF4)
    assert torch.equal(nf4.absmax_of(whole), nf4.absmax_of(parts))
    assert torch.equal(nf4.dequantise(whole, torch.bfloat16), dense)


@pytest.mark.parametrize("table", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_tables_dequantise_as_bitsandbytes_does(table, dtype):
    """Plain torch and whatever is quickest here, on bitsandbytes' own codes; an odd number of values as well."""
    for shape in ((96, 64), (7, 33)):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        codes, state = bnb.quantize_4bit(weight, quant_type=table)
        data = NF4(codes, state.absmax, shape, table)
        state.dtype = dtype
        want = bnb.dequantize_4bit(codes, state) if weight.numel() % 2 == 0 else nf4.dequantise(data, dtype)
        assert torch.equal(nf4.dequantise(data, dtype), want)
        assert torch.equal(nf4_kernels.dequantise(data, dtype), want)
        values = nf4.codebook(table=table)
        halves = torch.stack((codes.view(-1) >> 4, codes.view(-1) & 15), 1).view(-1)[: weight.numel()].long()
        exact = (values[halves] * state.absmax.repeat_interleave(64)[: weight.numel()]).view(shape)
        assert torch.equal(nf4.dequantise(data, torch.float32), exact)
