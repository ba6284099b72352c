"""Every faster pair for NumPy arrays against the book, on every case whose arguments it supports.

Those for CuPy's arrays are in test_kernels_cuda_cases.py.
"""

from unittest import mock

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import op as op_module
from tensorlite.op import REGISTRY
from tensorlite.testing import assert_pairs_agree
from tensorlite.testing.pairs import RTOL
from tests.cases import all_cases
from tests.compare import leaves_of, run_ours, worst_error


def run_all_pairs(case):
    """Call the case; whatever ops it uses, each goes through all its pairs on the very arguments it got. Returns those that ran."""
    choose = op_module.choose
    ran = set()

    def check_and_choose(op, arrays, options):
        if op.faster:
            for dtype, rtol in (("float64", None), ("float32", max(RTOL["float32"], case.float32))):
                report = assert_pairs_agree(op, *arrays, dtypes=[dtype], rtol=rtol, **options)
                ran.update((op.name, name.split()[0]) for name in report.ran)
        return choose(op, arrays, options)

    with mock.patch.object(op_module, "choose", check_and_choose):
        case.call(tl, *leaves_of(case.draw()))
    return ran


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_pairs_agree_on_the_arguments_of(case):
    run_all_pairs(case)


def test_every_faster_pair_is_run_by_a_case():
    registered = {(op.name, pair.name) for op in REGISTRY.values() for pair in op.faster if pair.name != "cuda"}
    missing = registered - set().union(*(run_all_pairs(case) for case in all_cases()))
    assert not missing, f"no case has arguments that these pairs support: {sorted(missing)}"


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
@pytest.mark.parametrize("dtype, allowed", [(np.float64, 1e-10), (np.float32, 2e-5)], ids=["float64", "float32"])
def test_the_book_alone_gives_the_same(case, dtype, allowed):
    arrays = case.draw(dtype=dtype)
    fast = run_ours(case.call, arrays)
    with op_module.use_kernels("book"):
        book = run_ours(case.call, arrays)
    error, where = worst_error(fast, book)
    assert error <= max(allowed, case.float32 if dtype is np.float32 else 0), f"{where} differs by {error:.2g}"
