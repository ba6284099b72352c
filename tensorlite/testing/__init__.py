"""Checks for a new op: two functions, both used by this project's own tests.

`gradcheck` compares a backward with central differences of its forward. It needs no second
implementation, so it is the first thing to call on a new op, with float64 inputs:

    from tensorlite.testing import gradcheck
    rng = np.random.default_rng(0)
    gradcheck(my_op, [rng.standard_normal((3, 4)), rng.standard_normal(4)])
    gradcheck(lambda x: my_op(x, dim=0), [x])                    # options go into a lambda

If the gradient is wrong, the error names the input, the index, both numbers, and the probable mistake:

    GradientError: the gradient of my_op is wrong for input 1 (bias): at index (2,) backward says 0.4381,
    central differences say 1.3143 (relative error 0.67; 4 of 4 numbers differ).
    It looks like a factor of 0.333333 (1/3, and 3 is a length of an axis): a mean where a sum belongs?

`assert_pairs_agree` compares every faster pair of an op with the book pair on the same arguments: values
and gradients, in every dtype you name. Call it once for each kind of argument that a kernel supports:

    from tensorlite.ops.embedding import embedding
    from tensorlite.testing import assert_pairs_agree
    assert_pairs_agree(embedding, ids, weight, padding_idx=0, dtypes=("float32", "float64"))

Then add one entry to the table in ``tests/case_table/``. From then on both run on it, and so does the comparison with torch.
"""

from tensorlite.testing.gradcheck import GradcheckReport, GradientError, Mismatch, compare_with_differences, gradcheck
from tensorlite.testing.pairs import PairsDisagreeError, PairsReport, assert_pairs_agree

__all__ = [
    "GradcheckReport",
    "GradientError",
    "Mismatch",
    "PairsDisagreeError",
    "PairsReport",
    "assert_pairs_agree",
    "compare_with_differences",
    "gradcheck",
]
