from tests.cases import Case, normal

CASES = [
    Case("matmul", lambda t, a, b: t.matmul(a, b), [normal(3, 4), normal(4, 5)]),
    Case("matmul-operator", lambda t, a, b: a @ b, [normal(3, 4), normal(4, 5)]),
    Case("matmul-batch", lambda t, a, b: t.matmul(a, b), [normal(2, 3, 4), normal(2, 4, 5)]),
    Case("matmul-batch-broadcast", lambda t, a, b: t.matmul(a, b), [normal(2, 1, 3, 4), normal(5, 4, 2)]),
    Case("matmul-matrix-by-batch", lambda t, a, b: t.matmul(a, b), [normal(3, 4), normal(2, 4, 5)]),
    Case("matmul-vectors", lambda t, a, b: t.matmul(a, b), [normal(4), normal(4)]),
    Case("matmul-vector-matrix", lambda t, a, b: t.matmul(a, b), [normal(4), normal(4, 5)]),
    Case("matmul-matrix-vector", lambda t, a, b: t.matmul(a, b), [normal(3, 4), normal(4)]),
    Case("matmul-vector-batch", lambda t, a, b: t.matmul(a, b), [normal(4), normal(2, 4, 5)]),
    Case("matmul-batch-vector", lambda t, a, b: t.matmul(a, b), [normal(2, 3, 4), normal(4)]),
    Case("matmul-square", lambda t, a, b: t.matmul(a, b), [normal(4, 4), normal(4, 4)]),
    Case("matmul-inner-0", lambda t, a, b: t.matmul(a, b), [normal(3, 0), normal(0, 5)]),
    Case("matmul-rows-0", lambda t, a, b: t.matmul(a, b), [normal(0, 3), normal(3, 5)]),
    Case("matmul-1x1", lambda t, a, b: t.matmul(a, b), [normal(1, 1), normal(1, 1)]),
    Case("matmul-mm", lambda t, a, b: t.mm(a, b), [normal(3, 4), normal(4, 5)]),
    Case("matmul-bmm", lambda t, a, b: t.bmm(a, b), [normal(2, 3, 4), normal(2, 4, 5)]),
]
