from tests.cases import Case, normal

CASES = [
    Case("diagonal", lambda t, x: (t.diagonal(x), x.diagonal(1), x.diagonal(offset=-2)), [normal(3, 4)]),
    Case("diagonal-axes", lambda t, x: x.diagonal(0, 1, 2), [normal(2, 3, 4)]),
    Case("diagonal-axes-exchanged", lambda t, x: x.diagonal(1, dim1=-1, dim2=0), [normal(3, 2, 4)]),
    Case("diagonal-outside", lambda t, x: x.diagonal(5), [normal(3, 4)]),
    Case("diag_embed", lambda t, x: (t.diag_embed(x), x.diag_embed(1), x.diag_embed(-1)), [normal(2, 3)]),
    Case("diag_embed-axes", lambda t, x: x.diag_embed(0, dim1=0, dim2=2), [normal(2, 3)]),
    Case("diag-of-a-vector", lambda t, x: (t.diag(x), x.diag(1)), [normal(3)]),
    Case("diag-of-a-matrix", lambda t, x: (x.diag(), t.diag(x, -1)), [normal(3, 4)]),
    Case("trace", lambda t, x: (t.trace(x), x.trace()), [normal(3, 4)]),
]
