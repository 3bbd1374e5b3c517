"""What holds while rows are decoded: a few of them go by the way that is quick on this machine, and weights have a
second, quicker form where there is room for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from halter.model.decoder import Decoder
from halter.model.layout import TEXT
from halter.model.linear import DenseLinear, Linear
from halter.model.nf4_linear import NF4Linear
from halter.numerics import allocation, nf4_packed, products
from halter.numerics.allocation import available_bytes

PACK_STEPS = 8  # of decoding at least: laying 4-bit codes out anew takes the time of some four products
LAY_STEPS = 40  # before a dense weight is laid out anew, which takes the time of as many products of one row


@contextmanager
def for_decoding(model: Decoder, rows: int, steps: int) -> Iterator[int]:
    """Within, every linear layer knows that it is decoding (numerics.choice), and products of up to ``rows`` rows use
    second copies of the text's weights where that was measured to be quicker: of 4-bit ones at once where ``steps`` are
    to come, of dense ones (bf16 on a CPU) after ``LAY_STEPS`` of decoding, a piece a step, so that a short answer waits
    for none. They take at most half of the free memory together. There are none of a base whose layers are streamed,
    nor of dense weights while a run is training, whose memory is planned.

    Gives the bytes that the 4-bit copies take. All go at the end; the weights themselves are as before.
    """
    every = [linear for place, linear in model.places() if isinstance(linear, Linear) and place.rows == TEXT]
    # Somebody else's copies are his to drop.
    short = [linear for linear in every if isinstance(linear, NF4Linear) and not linear.packed]
    dense = [linear for linear in every if isinstance(linear, DenseLinear) and not linear.awaits_laying]
    room = available_bytes() // 2 if model.residence.resident else 0
    need = int(sum(linear.in_features * linear.out_features for linear in short) * nf4_packed.BITS / 8)
    pays = steps >= PACK_STEPS and 0 < need <= room and model.dtype == torch.bfloat16 and nf4_packed.pays(rows)
    before = sum(linear.nbytes for linear in short)
    try:
        for linear in every:
            linear.decoding += 1
        if pays:
            for linear in short:
                linear.pack()
        _lay_out(dense, rows, room - need if pays else room)
        yield sum(linear.nbytes for linear in short) - before
    finally:
        for linear in short:
            linear.unpack()
        for linear in dense:
            linear.drop_laid()
        for linear in every:
            linear.decoding -= 1


def _lay_out(dense: Sequence[DenseLinear], rows: int, room: int) -> None:
    wanted = [linear for linear in dense if products.wants_laid(linear.matrix, rows)]
    if not allocation.is_kept() and sum(linear.matrix.nbytes for linear in wanted) <= room:
        step = LAY_STEPS
        for linear in wanted:
            step += linear.lay_out_after(step)
