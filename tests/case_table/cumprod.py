from tests.cases import Case, fixed, integers, normal, uniform

CASES = [
    Case("cumprod", lambda t, x: t.cumprod(x, 1), [normal(3, 4)]),
    Case("cumprod-method", lambda t, x: x.cumprod(dim=0), [uniform(4, 3, low=0.5, high=1.5)]),
    Case("cumprod-middle", lambda t, x: x.cumprod(-2), [normal(2, 3, 4)]),
    Case("cumprod-0d", lambda t, x: x.cumprod(0), [normal()]),
    Case("cumprod-empty", lambda t, x: x.cumprod(1), [normal(3, 0)]),
    Case("cumprod-one-zero", lambda t, x: x.cumprod(0), [fixed([2.0, 0.0, 3.0, -1.0])]),
    Case("cumprod-two-zeros", lambda t, x: x.cumprod(0), [fixed([2.0, 0.0, 3.0, 0.0, 5.0])]),
    Case("cumprod-of-whole-numbers", lambda t, n: n.cumprod(0), [integers(5, high=4)], smooth=False),  # no floating point input
]
