"""torch has no gradient where src is larger than the index; there its own lambda cuts src."""

from tests.cases import Case, fixed, integers, normal

INDEX = fixed([[0, 2, 1], [3, 0, 2]])
TWICE = fixed([[0, 0, 1], [1, 1, 1]])

CASES = [
    Case("scatter", lambda t, x, i, s: t.scatter(x, 1, i, s), [normal(2, 4), INDEX, normal(2, 3)]),
    Case(
        "scatter-dim-0",
        lambda t, x, i, s: x.scatter(0, i, s),
        [normal(4, 5), INDEX, normal(3, 4)],
        lambda t, x, i, s: x.scatter(0, i, s[:2, :3]),
    ),
    Case("scatter-number", lambda t, x, i: x.scatter(1, i, 1.5), [normal(2, 4), INDEX]),
    Case("scatter-value", lambda t, x, i: x.scatter(1, i, value=-1.0), [normal(2, 4), INDEX]),
    Case("scatter-0d", lambda t, x, i, s: x.scatter(0, i, s), [normal(), fixed(0), normal()]),
    Case("scatter-empty", lambda t, x, i, s: x.scatter(1, i, s), [normal(2, 4), integers(2, 0, high=1), normal(2, 0)]),
    Case("scatter_add", lambda t, x, i, s: t.scatter_add(x, 1, i, s), [normal(2, 4), TWICE, normal(2, 3)]),
    Case(
        "scatter_add-dim-0",
        lambda t, x, i, s: x.scatter_add(0, i, s),
        [normal(4, 5), TWICE, normal(3, 4)],
        lambda t, x, i, s: x.scatter_add(0, i, s[:2, :3]),
    ),
    Case("scatter_add-3d", lambda t, x, i, s: x.scatter_add(1, i, s), [normal(2, 3, 4), integers(2, 5, 3, high=3), normal(2, 5, 3)]),
    Case("index_add", lambda t, x, i, s: t.index_add(x, 0, i, s), [normal(4, 3), fixed([0, 2, 0]), normal(3, 3)]),
    Case("index_add-alpha", lambda t, x, i, s: x.index_add(1, i, s, alpha=-0.5), [normal(2, 4), fixed([1, 1, 3]), normal(2, 3)]),
    Case("index_add-0d", lambda t, x, i, s: x.index_add(0, i, s), [normal(), fixed([0]), normal()]),
]
