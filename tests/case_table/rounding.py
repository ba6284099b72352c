from tests.cases import Case, distinct, fixed, integers, uniform

HALVES = fixed([-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 3.2, float("nan")])
STEPS = False  # on the edge of a stair central differences see the step
NO_GRADIENT = False  # integers in

CASES = [
    Case("floor", lambda t, x: (t.floor(x), x.floor()), [distinct(3, 4, gap=0.37)]),
    Case("ceil", lambda t, x: (t.ceil(x), x.ceil()), [distinct(3, 4, gap=0.37)]),
    Case("trunc", lambda t, x: (t.trunc(x), x.trunc()), [distinct(3, 4, gap=0.37)]),
    Case("round", lambda t, x: (t.round(x), x.round()), [distinct(3, 4, gap=0.37)]),
    Case("round-decimals", lambda t, x: (t.round(x, decimals=2), (100 * x).round(decimals=-1)), [distinct(3, 4, gap=0.371)]),
    Case("sign", lambda t, x: (t.sign(x), x.sign()), [distinct(3, 4)]),
    Case("round-and-others-at-the-steps", lambda t, x: (x.round(), x.floor(), x.ceil(), x.trunc(), x.sign()), [HALVES], smooth=STEPS),
    Case(
        "round-and-others-of-whole-numbers",
        lambda t, n: (n.round(), n.floor(), n.ceil(), n.trunc(), n.sign(), (n > 0).sign()),
        [integers(3, 4, low=-3, high=4)],
        smooth=NO_GRADIENT,
    ),
    Case("remainder", lambda t, x, y: t.remainder(x, y), [distinct(3, 4, gap=0.33), uniform(3, 4, low=0.9, high=1.1)]),
    Case("remainder-operator", lambda t, x: (x % 0.7, x.remainder(-0.7)), [distinct(3, 4, gap=0.33)]),
    Case("remainder-stretch", lambda t, x, y: x % y, [distinct(3, 1, gap=0.9), fixed([-1.1, 0.7, 2.3])]),
    Case(
        "remainder-of-whole-numbers",
        lambda t, n: (n % 3, n % -3, 7 % (n * n + 1), 3.1 % (n * n + 1)),
        [integers(3, 4, low=-5, high=6)],
        smooth=NO_GRADIENT,
    ),
]
