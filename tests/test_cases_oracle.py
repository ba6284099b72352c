"""Every value and every gradient against torch: to the last digits in float64, and no worse than torch in float32.

Twice: by the book alone, and with whatever faster pairs there are.
"""

import numpy as np
import pytest

from tensorlite.op import use_kernels
from tests.cases import all_cases
from tests.compare import relative_error, run_ours, run_torch, worst_error

FLOAT64 = 1e-9  # relative to the largest number
STEP = float(np.finfo(np.float32).eps)


@pytest.fixture(params=["book", "fast"], autouse=True)
def kernels(request):
    with use_kernels(request.param):
        yield request.param


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_float64_equals_torch(case, record_property):
    arrays = case.draw()
    ours, torchs = run_ours(case.call, arrays), run_torch(case, arrays)
    error, where = worst_error(ours, torchs)
    record_property("float64", error)
    assert error <= FLOAT64, f"{where} is off by {error:.2g} of its largest number"
    check_dtypes(ours, torchs)


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_float32_loses_no_more_than_torch(case, record_property):
    """Both are measured against float64, started from the same float32 numbers."""
    arrays = case.draw(dtype=np.float32)
    truth = run_torch(case, [x.astype(np.float64) if x.dtype.kind == "f" else x for x in arrays])
    ours, torchs = run_ours(case.call, arrays), run_torch(case, arrays)
    check_dtypes(ours, torchs)
    for (what, a), (_, b), (_, right) in zip(ours.named(), torchs.named(), truth.named(), strict=True):
        if a is None:
            continue
        error, torch_error = relative_error(a, right), relative_error(b, right)
        record_property("float32", error / max(torch_error, STEP))
        assert error <= 3 * torch_error + case.float32, f"{what} is off by {error:.2g} of its largest number, torch's by {torch_error:.2g}"


def check_dtypes(ours, torchs):
    for (what, a), (_, b) in zip(ours.named(), torchs.named(), strict=True):
        if a is not None:
            assert a.dtype == b.dtype, f"{what} is {a.dtype}, torch's is {b.dtype}"
