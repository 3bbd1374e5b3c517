"""What holds while rows are decoded: a few of them go by the way that is quick on this machine, and 4-bit weights have
a second, quicker form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from halter.model.decoder import Decoder
from halter.model.linear import Linear
from halter.model.nf4_linear import NF4Linear
from halter.numerics import nf4_packed
from halter.numerics.allocation import available_bytes

PACK_STEPS = 8  # of decoding at least: laying a weight out anew takes the time of some four products


@contextmanager
def packed(model: Decoder, rows: int, steps: int) -> Iterator[int]:
    """Within, products of up to ``rows`` rows use packed copies of the 4-bit weights where that pays: bf16 on a CPU
    that has the product, few enough rows, ``steps`` to come, and at most half of the free memory taken; not of a base
    whose layers are streamed. Every linear layer knows that it is decoding (numerics.choice).

    Gives the bytes that the copies take. They go at the end; the weights themselves are as before.
    """
    every = [linear for _, _, linear in model.places() if isinstance(linear, Linear)]
    linears = [linear for _, _, linear in model.places() if isinstance(linear, NF4Linear)]
    linears = [linear for linear in linears if not linear.packed]  # somebody else's copies are his to drop
    need = sum(linear.in_features * linear.out_features for linear in linears) * nf4_packed.BITS / 8
    fits = model.stream is None and steps >= PACK_STEPS and 0 < need <= available_bytes() // 2
    pays = fits and model.dtype == torch.bfloat16 and nf4_packed.pays(rows)
    before = sum(linear.nbytes for linear in linears)
    try:
        for linear in every:
            linear.decoding += 1
        if pays:
            for linear in linears:
                linear.pack()
        yield sum(linear.nbytes for linear in linears) - before
    finally:
        for linear in linears:
            linear.unpack()
        for linear in every:
            linear.decoding -= 1
