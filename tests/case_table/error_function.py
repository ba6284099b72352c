from tests.cases import Case, fixed, normal

CASES = [
    Case("erf", lambda t, x: (t.erf(x), x.erf()), [normal(3, 4)]),
    Case("erf-near-0", lambda t, x: x.erf(), [normal(5, std=1e-8)]),
    Case("erf-where-the-formula-changes", lambda t, x: x.erf(), [fixed([-1.0001, -1.0, -0.9999, 0.9999, 1.0, 1.0001])]),
    Case("erf-far-out", lambda t, x: x.erf(), [fixed([-300.0, -5.5, 5.5, 300.0])]),
    Case("erf-of-integers", lambda t, n: n.erf(), [fixed([0, 9, -9])], smooth=False),  # no floating point input
]
