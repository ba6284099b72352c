from tests.cases import Case, distinct, fixed, normal, uniform

ANY = [normal(3, 4)]
POSITIVE = [uniform(3, 4, low=0.2, high=3.0)]

CASES = [
    Case("abs", lambda t, x: t.abs(x), [distinct(3, 4)]),
    Case("abs-operator-0d", lambda t, x: abs(x), [normal(mean=3.0, std=0.1)]),
    Case("abs-at-0", lambda t, x: x.abs(), [fixed([-1.5, 0.0, 2.0])], smooth=False),  # 0 is the kink
    Case("exp", lambda t, x: t.exp(x), ANY),
    Case("exp-method-empty", lambda t, x: x.exp(), [normal(0, 3)]),
    Case("exp-far-down", lambda t, x: x.exp(), [normal(5, mean=-50.0)]),
    Case("log", lambda t, x: t.log(x), POSITIVE),
    Case("log-method", lambda t, x: x.log(), POSITIVE),
    Case("sqrt", lambda t, x: t.sqrt(x), POSITIVE),
    Case("sqrt-0d", lambda t, x: x.sqrt(), [uniform(low=1.0, high=2.0)]),
    Case("rsqrt", lambda t, x: t.rsqrt(x), POSITIVE),
    Case("rsqrt-method", lambda t, x: x.rsqrt(), POSITIVE),
    Case("square", lambda t, x: t.square(x), ANY),
    Case("square-method", lambda t, x: x.square(), ANY),
    Case("reciprocal", lambda t, x: t.reciprocal(x), POSITIVE),
    Case("reciprocal-negative", lambda t, x: x.reciprocal(), [uniform(3, 4, low=-2.0, high=-0.5)]),
    Case("sin", lambda t, x: t.sin(x), [normal(3, 4, std=3.0)]),
    Case("sin-method-0d", lambda t, x: x.sin(), [normal()]),
    Case("cos", lambda t, x: t.cos(x), [normal(3, 4, std=3.0)]),
    Case("cos-method-0d", lambda t, x: x.cos(), [normal()]),
    Case(
        "exp-and-others-of-integers",  # they become float32, so here only where the result is exact
        lambda t, n, zero: (
            *(t.exp(zero), t.log(n // n), t.sin(zero), t.cos(zero)),
            *(t.sqrt(n), t.rsqrt(n), t.reciprocal(n), t.square(n), t.abs(-n)),
        ),
        [fixed([1, 4, 16, 64]), fixed([0, 0])],
        smooth=False,  # no floating point input
    ),
]
