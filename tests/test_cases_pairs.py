"""Every faster pair against the book, on every case whose arguments it supports."""

from unittest import mock

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import op as op_module
from tensorlite.testing import assert_pairs_agree
from tests.cases import all_cases
from tests.compare import leaves_of, run_ours, worst_error


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_pairs_agree_on_the_arguments_of(case):
    """Whatever ops the case calls, each is run through all its pairs on the very arguments it got."""
    choose = op_module.choose

    def check_and_choose(op, arrays, options):
        if op.faster:
            assert_pairs_agree(op, *arrays, dtypes=("float64", "float32"), **options)
        return choose(op, arrays, options)

    with mock.patch.object(op_module, "choose", check_and_choose):
        case.call(tl, *leaves_of(case.draw()))


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
@pytest.mark.parametrize("dtype, allowed", [(np.float64, 1e-10), (np.float32, 2e-5)], ids=["float64", "float32"])
def test_the_book_alone_gives_the_same(case, dtype, allowed):
    arrays = case.draw(dtype=dtype)
    fast = run_ours(case.call, arrays)
    with op_module.use_kernels("book"):
        book = run_ours(case.call, arrays)
    error, where = worst_error(fast, book)
    assert error <= max(allowed, case.float32 if dtype is np.float32 else 0), f"{where} differs by {error:.2g}"
