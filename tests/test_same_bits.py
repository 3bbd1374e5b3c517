"""The comparer of states sees one altered bit in every type that it knows."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from same_bits import differences

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8)
STATE = {
    "none": None,
    "flag": True,
    "count": 3,
    "rate": 0.1,
    "name": "adamw",
    "raw": b"ab",
    "list": [1, [2.0, "x"]],
    "tuple": (1, 2),
    "floats": np.arange(4, dtype=np.float32),
    "words": np.arange(4, dtype=np.uint64),
    "random": torch.get_rng_state(),
    "nan": float("nan"),
    "scalar": torch.tensor(2.0),
    **{str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES},
}
ALTERED = {
    "none": 0,
    "flag": False,
    "count": 4,
    "rate": np.nextafter(0.1, 1).item(),
    "name": "adamW",
    "raw": b"ac",
    "list": [1, [np.nextafter(2.0, 3).item(), "x"]],
    "tuple": (1, 3),
    "nan": 0.0,
}


def test_a_copy_is_the_same():
    assert differences(STATE, copy.deepcopy(STATE)) == []


@pytest.mark.parametrize("key", STATE)
def test_one_altered_bit_is_seen(key):
    other = copy.deepcopy(STATE)
    value = other[key]
    if isinstance(value, torch.Tensor):
        value.reshape(-1).view(torch.uint8)[-1] ^= 1
    elif isinstance(value, np.ndarray):
        value.view(np.uint8)[-1] ^= 1
    else:
        other[key] = ALTERED[key]
    found = differences(STATE, other)
    assert len(found) == 1 and f"/{key}" in found[0]


@pytest.mark.parametrize(
    "a, b",
    [
        (0.0, -0.0),
        (1, 1.0),
        (True, 1),
        ([1], (1,)),
        ({"a": 1}, {}),
        ([1], [1, 2]),
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.zeros(2), -torch.zeros(2)),
        (np.zeros(2, np.float32), np.zeros(2, np.float64)),
    ],
)
def test_almost_equal_is_not_the_same(a, b):
    assert differences(a, b)


def test_an_unknown_type_is_no_match():
    with pytest.raises(TypeError, match="object"):
        differences({"a": object()}, {"a": object()})
