from tests.cases import Case, distinct, fixed, integers

NO_GRADIENT = False  # integers in

CASES = [
    Case("sort", lambda t, x: t.sort(x), [distinct(3, 5)]),
    Case("sort-dim", lambda t, x: x.sort(0, descending=True), [distinct(4, 3)]),
    Case("sort-middle", lambda t, x: x.sort(dim=1), [distinct(2, 4, 3)]),
    Case("sort-0d", lambda t, x: x.sort(), [fixed(1.5)]),
    Case("sort-empty", lambda t, x: x.sort(), [distinct(3, 0)]),
    Case(
        "sort-ties-keep-their-order",
        lambda t, x: (*x.sort(stable=True), *t.sort(x, stable=True, dim=-1, descending=True)),
        [fixed([2.0, 1.0, 2.0, 1.0, 3.0, 1.0])],
        smooth=False,  # differences change the order
    ),
    Case("sort-nan", lambda t, x: (*x.sort(), *x.sort(descending=True)), [fixed([float("nan"), 1.0, float("inf"), -2.0])], smooth=False),
    Case(
        "sort-of-whole-numbers",
        lambda t, n: (n.sort().values, n.sort(descending=True).values),
        [integers(3, 5, high=9)],
        smooth=NO_GRADIENT,
    ),
    Case("topk", lambda t, x: t.topk(x, 2), [distinct(3, 5)]),
    Case("topk-smallest", lambda t, x: x.topk(3, dim=0, largest=False), [distinct(5, 2)]),
    Case("topk-all", lambda t, x: x.topk(5), [distinct(3, 5)]),
    Case("topk-0d", lambda t, x: x.topk(1), [fixed(1.5)]),
    Case(
        "argsort",
        lambda t, x: (t.argsort(x), x.argsort(0), x.argsort(dim=1, descending=True)),
        [distinct(3, 5)],
        smooth=False,  # integers out
    ),
]
