from tests.cases import Case, fixed, normal, uniform

POSITIVE = [uniform(3, 4, low=0.2, high=3.0)]

CASES = [
    Case("log1p", lambda t, x: (t.log1p(x), x.log1p()), [uniform(3, 4, low=-0.8, high=3.0)]),
    Case("log1p-of-little", lambda t, x: x.log1p(), [normal(5, std=1e-9)]),
    Case("expm1", lambda t, x: (t.expm1(x), x.expm1()), [normal(3, 4)]),
    Case("expm1-of-little", lambda t, x: x.expm1(), [normal(5, std=1e-9)]),
    Case("log2", lambda t, x: (t.log2(x), x.log2()), POSITIVE),
    Case("log10", lambda t, x: (t.log10(x), x.log10()), POSITIVE),
    Case(
        "log2-and-others-of-integers",
        lambda t, n: (n.log2(), n.log10(), (n - n).log1p(), (n - n).expm1()),
        [fixed([1, 1, 1])],
        smooth=False,  # no floating point input
    ),
]
