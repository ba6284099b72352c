"""The memory layout of an array does not change a result, and arguments are never written to."""

import numpy as np
import pytest

from tests.cases import all_cases
from tests.compare import run_ours, worst_error

ROUNDING = 1e-12  # sums may run in another order


def strided(x):
    """Every second element, along every axis, of an array with NaN in between."""
    return _inside(x, [2 * n for n in x.shape], (slice(None, None, 2),) * x.ndim)


def reversed_(x):
    """Negative strides along every axis."""
    everything = (slice(None, None, -1),) * x.ndim
    return x[everything].copy()[everything]


def fortran(x):
    """The first axis is the one whose neighbours lie side by side."""
    return x.copy(order="F")


def offset(x):
    """A window into a larger array."""
    return _inside(x, [n + 3 for n in x.shape], tuple(slice(1, 1 + n) for n in x.shape))


def _inside(x, shape, window):
    whole = np.full(shape, np.nan if x.dtype.kind == "f" else 0, x.dtype)
    whole[window] = x
    return whole[window] if x.ndim else whole


LAYOUTS = [strided, reversed_, fortran, offset]
CASES = [case for case in all_cases() if case.layouts]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_layout_changes_nothing(case):
    arrays = case.draw()
    expected = run_ours(case.call, arrays)
    for layout in LAYOUTS:
        every = [layout(x) for x in arrays]
        laid_out = [every] + [[*arrays[:i], y, *arrays[i + 1 :]] for i, y in enumerate(every) if len(arrays) > 1]
        for number, variant in enumerate(laid_out):
            error, where = worst_error(run_ours(case.call, variant, layout=layout if number == 0 else lambda x: x), expected)
            which = "all inputs" if number == 0 else f"input {number - 1}"
            assert error <= ROUNDING, f"{where} changes by {error:.2g} when {which} is {layout.__name__.strip('_')}"


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_inputs_are_not_written_to(case):
    """All arrays that an op sees here are read-only (see `compare.watch`); this compares the caller's own as well."""
    arrays = case.draw()
    run_ours(case.call, arrays)
    for x, fresh in zip(arrays, case.draw(), strict=True):
        np.testing.assert_array_equal(x, fresh)
