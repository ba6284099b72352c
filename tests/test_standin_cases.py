"""The book on CuPy: every case of the table, forward and backward, on the stand-in's arrays, gives NumPy's numbers bit for bit.

Only the book runs, so both sides do the same arithmetic, in the same order but for long sums (see `tensorlite.ops.summation`).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import random
from tensorlite.backend import array_module, to_numpy
from tensorlite.op import use_kernels
from tensorlite.tensor import Tensor
from tests.cases import Case, all_cases
from tests.compare import cotangents, flat

OTHER_ORDER = {"sum-long": 400}  # how many positive numbers are added: each order rounds each sum so far by half a unit at most


class OnDevice:
    """`tensorlite` for a case that makes a tensor of its own: there it is made, too."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(tl, name)
        return functools.partial(found, device="cupy") if name in ("zeros", "ones", "full", "arange", "tensor") else found


def run(case: Case, t: Any, xp: Any, dtype: type) -> list[Any]:
    """The outputs, and a gradient for each input, of the book on arrays of ``xp``."""
    leaves = [Tensor(xp.asarray(x), requires_grad=x.dtype.kind == "f") for x in case.draw(dtype=dtype)]
    with use_kernels("book"), random.use_generator(random.make_generator(0)):
        outputs = flat(case.call(t, *leaves))
        wanted = [(y, xp.asarray(dy)) for y, dy in zip(outputs, cotangents(outputs, 0), strict=True) if y.requires_grad]
        for y, dy in wanted:
            y.backward(Tensor(dy), retain_graph=y is not wanted[-1][0])
    return [*(y.array for y in outputs), *(x.grad.array for x in leaves if x.grad is not None)]


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_the_book_gives_the_same_result_on_cupy_and_numpy(case, dtype, standin):
    expected = run(case, tl, np, dtype)
    found = run(case, OnDevice(), standin, dtype)
    assert all(array_module(x) is standin for x in found), "a result is not on the device"
    for here, there in zip(expected, map(to_numpy, found), strict=True):
        assert here.dtype == there.dtype
        if case.name in OTHER_ORDER:
            np.testing.assert_allclose(here, there, rtol=OTHER_ORDER[case.name] * np.finfo(dtype).eps)
        else:
            assert np.array_equal(here, there, equal_nan=here.dtype.kind == "f")
