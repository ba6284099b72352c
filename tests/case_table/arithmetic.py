from tests.cases import Case, distinct, fixed, integers, mask, normal, uniform

PAIR = [normal(3, 4), normal(3, 4)]
ROW = [normal(3, 4), normal(4)]
COLUMN = [normal(3, 1), normal(2, 1, 4)]
EMPTY = [normal(0, 3), normal(1, 3)]
SCALARS = [normal(), normal()]
ONE = [normal(3, 4)]
AWAY_FROM_0 = uniform(3, 4, low=0.5, high=2.0)


CASES = [
    Case("add", lambda t, x, y: t.add(x, y), PAIR),
    Case("add-row", lambda t, x, y: x + y, ROW),
    Case("add-row-left", lambda t, x, y: y + x, ROW),
    Case("add-both-stretch", lambda t, x, y: x + y, COLUMN),
    Case("add-0d", lambda t, x, y: x + y, [normal(2, 3), normal()]),
    Case("add-0d-left", lambda t, x, y: y + x, [normal(2, 3), normal()]),
    Case("add-two-0d", lambda t, x, y: x + y, SCALARS),
    Case("add-one-element", lambda t, x, y: x + y, [normal(1, 1, 1), normal(4)]),
    Case("add-empty", lambda t, x, y: x + y, EMPTY),
    Case("add-number", lambda t, x: x + 2, ONE),
    Case("add-number-left", lambda t, x: 2.5 + x, ONE),
    Case("add-integers", lambda t, x, n: x + n, [normal(3, 4), integers(4, high=5)]),
    Case("add-bools", lambda t, x, m: m + x, [normal(3, 4), mask(3, 4)]),
    Case("add-itself", lambda t, x: x + x, ONE),
    Case("sub", lambda t, x, y: t.sub(x, y), PAIR),
    Case("sub-row", lambda t, x, y: x - y, ROW),
    Case("sub-row-left", lambda t, x, y: y - x, ROW),
    Case("sub-both-stretch", lambda t, x, y: x - y, COLUMN),
    Case("sub-two-0d", lambda t, x, y: x - y, SCALARS),
    Case("sub-empty", lambda t, x, y: x - y, EMPTY),
    Case("sub-number", lambda t, x: x - 2, ONE),
    Case("sub-number-left", lambda t, x: 2.5 - x, ONE),
    Case("mul", lambda t, x, y: t.mul(x, y), PAIR),
    Case("mul-row", lambda t, x, y: x * y, ROW),
    Case("mul-row-left", lambda t, x, y: y * x, ROW),
    Case("mul-both-stretch", lambda t, x, y: x * y, COLUMN),
    Case("mul-0d", lambda t, x, y: x * y, [normal(2, 3), normal()]),
    Case("mul-two-0d", lambda t, x, y: x * y, SCALARS),
    Case("mul-empty", lambda t, x, y: x * y, EMPTY),
    Case("mul-number", lambda t, x: x * 0.5, ONE),
    Case("mul-number-left", lambda t, x: 3 * x, ONE),
    Case("mul-integers", lambda t, x, n: n * x, [normal(3, 4), integers(3, 1, high=5)]),
    Case("mul-itself", lambda t, x: x * x, ONE),
    Case("div", lambda t, x, y: t.div(x, y), [normal(3, 4), AWAY_FROM_0]),
    Case("div-row", lambda t, x, y: x / y, [normal(3, 4), uniform(4, low=-2.0, high=-0.5)]),
    Case("div-row-left", lambda t, x, y: y / x, [AWAY_FROM_0, normal(4)]),
    Case("div-both-stretch", lambda t, x, y: x / y, [normal(3, 1), uniform(2, 1, 4, low=0.5, high=2.0)]),
    Case("div-two-0d", lambda t, x, y: x / y, [normal(), uniform(low=1.0, high=2.0)]),
    Case("div-empty", lambda t, x, y: x / y, EMPTY),
    Case("div-number", lambda t, x: x / 3, ONE),
    Case("div-number-left", lambda t, x: 3 / x, [AWAY_FROM_0]),
    Case("div-integers", lambda t, x, n: x / n, [normal(3, 4), integers(4, low=1, high=5)]),
    Case("div-floor", lambda t, x, y: t.div(x, y, rounding_mode="floor"), [distinct(3, 4, gap=0.7), fixed([[1.3], [-0.9], [0.4]])]),
    Case("div-trunc", lambda t, x, y: t.div(x, y, rounding_mode="trunc"), [distinct(3, 4, gap=0.7), fixed([[1.3], [-0.9], [0.4]])]),
    Case(
        "div-floor-operator",
        lambda t, x: x // 0.4,
        [distinct(3, 4, gap=0.7)],
        lambda t, x: t.div(x, 0.4, rounding_mode="floor"),  # torch's own // has no gradient at all
    ),
    Case("div-trunc-number-left", lambda t, x: t.div(x, 0.4, rounding_mode="trunc"), [distinct(3, 4, gap=0.7)]),
    Case(
        "div-whole-numbers",
        lambda t, n, d: (n / d, n / 2, t.div(n, d, rounding_mode="trunc"), t.div(n, d, rounding_mode="floor"), n // -3),
        [fixed([-7, -6, -1, 0, 1, 6, 7]), fixed([[2], [-2], [3], [-3]])],
        smooth=False,  # no floating point input
    ),
    Case("neg", lambda t, x: -x, ONE),
    Case("neg-0d", lambda t, x: t.neg(x), [normal()]),
    Case("neg-empty", lambda t, x: t.neg(x), [normal(2, 0)]),
    Case("pow", lambda t, x, e: t.pow(x, e), [AWAY_FROM_0, normal(3, 4)]),
    Case("pow-row", lambda t, x, e: x**e, [AWAY_FROM_0, normal(4)]),
    Case("pow-row-left", lambda t, x, e: x**e, [uniform(4, low=0.5, high=2.0), normal(3, 1)]),
    Case("pow-0d", lambda t, x, e: x**e, [uniform(low=0.5, high=2.0), normal()]),
    Case("pow-empty", lambda t, x, e: x**e, [uniform(0, 3), normal(1, 3)]),
    Case("pow-2", lambda t, x: x**2, ONE),
    Case("pow-3", lambda t, x: t.pow(x, 3), ONE),
    Case("pow-3.0", lambda t, x: x**3.0, ONE),
    Case("pow-1", lambda t, x: x**1, ONE),
    Case("pow-0", lambda t, x: x**0, ONE),
    Case("pow-minus-1", lambda t, x: x**-1, [AWAY_FROM_0]),
    Case("pow-minus-2", lambda t, x: x**-2, [uniform(3, 4, low=-2.0, high=-0.5)]),
    Case("pow-half", lambda t, x: x**0.5, [AWAY_FROM_0]),
    Case("pow-fraction", lambda t, x: x**-1.7, [AWAY_FROM_0]),
    Case("pow-0-of-0", lambda t, x: x**0, [fixed([0.0, 1.0, -2.0])]),
    Case("pow-1-of-0", lambda t, x: x**1, [fixed([0.0, 1.0, -2.0])]),
    Case("pow-2-of-0", lambda t, x: x**2, [fixed([0.0, 1.0, -2.0])]),
    Case("pow-integer-exponents", lambda t, x, n: x**n, [uniform(3, 4, low=-2.0, high=-0.5), integers(4, low=-2, high=4)]),
    Case("pow-0-to-whole", lambda t, x, n: x**n, [fixed([[0.0], [1.5], [-1.5]]), fixed([0, 1, 2, 3])]),
    Case(
        "pow-0-to-float",
        lambda t, x, e: x**e,
        [fixed([[0.0], [0.5], [1.0]]), fixed([0.0, 1.0, 2.0, 2.5])],
        smooth=False,  # 0 ** e jumps at e = 0
    ),
    Case("pow-number-base", lambda t, e: 2**e, ONE),
    Case("pow-number-base-function", lambda t, e: t.pow(0.3, e), ONE),
    Case("pow-base-0", lambda t, e: t.pow(0.0, e), [uniform(3, 4, low=0.5, high=2.0)]),
    Case("pow-base-0-at-0", lambda t, e: t.pow(0, e), [fixed([0.0, 1.0, 2.0])], smooth=False),  # jumps at 0
    Case("pow-of-integers", lambda t, n, e: n**e, [integers(3, 4, low=1, high=5), normal(3, 4)]),
    Case(
        "pow-whole-numbers",
        lambda t, n, k: (n**2, n**k, 2**k, n**0.5, n + 1, n + 0.5, n * n, n - k, -n, 2 * n),
        [integers(3, 4, high=5), integers(4, high=4)],
        smooth=False,  # no floating point input
    ),
]
