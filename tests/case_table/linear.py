from tests.cases import Case, normal

CASES = [
    Case("linear", lambda t, x, w, b: t.nn.functional.linear(x, w, b), [normal(5, 4), normal(3, 4), normal(3)]),
    Case("linear-3d", lambda t, x, w, b: t.nn.functional.linear(x, w, b), [normal(2, 5, 4), normal(3, 4), normal(3)]),
    Case("linear-no-bias", lambda t, x, w: t.nn.functional.linear(x, w), [normal(2, 5, 4), normal(3, 4)]),
    Case("linear-square", lambda t, x, w, b: t.nn.functional.linear(x, w, b), [normal(4, 4), normal(4, 4), normal(4)]),
    Case("linear-vector", lambda t, x, w, b: t.nn.functional.linear(x, w, b), [normal(4), normal(3, 4), normal(3)]),
    Case("linear-one-row", lambda t, x, w, b: t.nn.functional.linear(x, w, b), [normal(1, 4), normal(3, 4), normal(3)]),
    Case("linear-no-rows", lambda t, x, w, b: t.nn.functional.linear(x, w, b), [normal(0, 4), normal(3, 4), normal(3)]),
    Case("linear-keyword", lambda t, x, w, b: t.nn.functional.linear(x, weight=w, bias=b), [normal(5, 4), normal(3, 4), normal(3)]),
]
