"""Every gradient of the book against central differences of its own forward, in float64."""

import pytest

import tensorlite as tl
from tensorlite.op import use_kernels
from tensorlite.testing import gradcheck
from tests.cases import all_cases

SMOOTH = [case for case in all_cases() if case.smooth]


@pytest.mark.parametrize("case", SMOOTH, ids=lambda case: case.name)
def test_gradcheck(case, record_property):
    inputs = case.draw(seed=1)
    if not any(x.dtype.kind == "f" for x in inputs):
        pytest.fail("a case without a floating point input has no gradient: mark it smooth=False and say so.")
    with use_kernels("book"):  # the faster pairs are held to the book in test_cases_pairs
        report = gradcheck(lambda *tensors: case.call(tl, *tensors), inputs)
    record_property("gradcheck", report.worst)
