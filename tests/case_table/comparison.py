from tests.cases import Case, distinct, fixed, integers, normal

TIES = fixed([[0.5, 1.0, 2.0], [2.0, 1.0, -1.0]])
NAN = float("nan")
KINK = False  # central differences see both sides of a tie, the gradient takes one
NO_GRADIENT = False  # integers in, or bools out: nothing to differentiate

CASES = [
    Case("maximum", lambda t, x, y: t.maximum(x, y), [distinct(3, 4), normal(3, 4, mean=0.0)]),
    Case("maximum-row", lambda t, x, y: t.maximum(x, y), [normal(3, 4), normal(4)]),
    Case("maximum-both-stretch", lambda t, x, y: x.maximum(y), [normal(3, 1), normal(2, 1, 4)]),
    Case("maximum-0d", lambda t, x, y: t.maximum(x, y), [normal(2, 3), normal()]),
    Case("maximum-empty", lambda t, x, y: t.maximum(x, y), [normal(0, 3), normal(1, 3)]),
    Case("maximum-ties", lambda t, x, y: t.maximum(x, y), [TIES, fixed([1.0, 1.0, 1.0])], smooth=KINK),
    Case("maximum-number", lambda t, x: t.maximum(x, 0.01), [distinct(3, 4)], lambda t, x: t.maximum(x, t.full_like(x, 0.01).detach())),
    Case("maximum-nan", lambda t, x, y: t.maximum(x, y), [fixed([NAN, 1.0]), fixed([0.0, NAN])], smooth=KINK),
    Case("minimum", lambda t, x, y: t.minimum(x, y), [distinct(3, 4), normal(3, 4)]),
    Case("minimum-row", lambda t, x, y: t.minimum(y, x), [normal(3, 4), normal(4)]),
    Case("minimum-both-stretch", lambda t, x, y: x.minimum(y), [normal(3, 1), normal(2, 1, 4)]),
    Case("minimum-ties", lambda t, x, y: t.minimum(x, y), [TIES, fixed([1.0, 1.0, 1.0])], smooth=KINK),
    Case("minimum-nan", lambda t, x, y: t.minimum(x, y), [fixed([NAN, 1.0]), fixed([0.0, NAN])], smooth=KINK),
    Case("clamp", lambda t, x: t.clamp(x, -0.31, 0.31), [distinct(3, 4)]),
    Case("clamp-names", lambda t, x: x.clamp(max=0.3, min=-0.3), [distinct(3, 5)]),
    Case("clamp-min", lambda t, x: x.clamp(min=0), [distinct(3, 4)]),
    Case("clamp-max", lambda t, x: x.clamp(max=0), [distinct(3, 4)]),
    Case("clamp-0d", lambda t, x: x.clamp(-1, 1), [fixed(0.3)]),
    Case("clamp-empty", lambda t, x: x.clamp(-1, 1), [normal(0, 3)]),
    Case("clamp-at-the-bounds", lambda t, x: x.clamp(1.0, 2.0), [fixed([0.5, 1.0, 1.5, 2.0, 2.5])], smooth=KINK),
    Case("clamp-bounds-crossed", lambda t, x: x.clamp(3, 2), [fixed([0.5, 2.0, 2.5, 3.0, 4.0])]),
    Case(
        "clamp-tensors",
        lambda t, x, a, b: t.clamp(x, a, b),
        [distinct(3, 4, gap=0.3), normal(4, mean=-1.0, std=0.2), normal(3, 1, mean=1.0, std=0.2)],
    ),
    Case("clamp-tensor-min", lambda t, x, a: t.clamp(x, min=a), [distinct(3, 4), normal(4)]),
    Case("clamp-tensor-max", lambda t, x, b: t.clamp(x, max=b), [distinct(3, 4), normal()]),
    Case(
        "clamp-tensors-crossed",
        lambda t, x, a, b: t.clamp(x, a, b),
        [distinct(6), fixed([2.0, 2.0, 2.0, 2.0, 2.0, 2.0]), fixed([-2.0] * 6)],
    ),
    Case(
        "clamp-tensors-at-the-bounds",
        lambda t, x, a, b: t.clamp(x, a, b),
        [fixed([0.0, 1.0, 1.5, 2.0, 3.0, 1.0, 0.0, 3.0]), fixed([1.0] * 8), fixed([2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0])],
        smooth=KINK,
    ),
    Case("clamp-nan", lambda t, x: x.clamp(0, 1), [fixed([NAN, 0.5, 2.0])], smooth=KINK),
    Case("clamp-whole-numbers", lambda t, n: (n.clamp(1, 3), n.clamp(min=0.5)), [integers(3, 4, high=6)], smooth=NO_GRADIENT),
    Case(
        "eq-and-others",
        lambda t, x, y: (
            *(t.eq(x, y), t.ne(x, y), t.lt(x, y), t.le(x, y), t.gt(x, y), t.ge(x, y)),
            *(x == y, x != y, x < y, x <= y, x > y, x >= y),
        ),
        [TIES, fixed([1.0, 1.0, 1.0])],
        smooth=NO_GRADIENT,
    ),
    Case(
        "eq-and-others-with-a-number",
        lambda t, x, n: (x == 1, x != 1.0, x < 1, x <= 1, x > 1, x >= 1, n == 2, n < 2.5, n >= x.sum()),
        [TIES, integers(3, 4, high=4)],
        smooth=NO_GRADIENT,
    ),
    Case(
        "isnan-and-others",
        lambda t, x, n: (
            *(t.isnan(x), t.isinf(x), t.isfinite(x), t.isnan(n), t.isfinite(n), t.logical_not(x), t.logical_not(n)),
            *(t.logical_and(x, n), t.logical_or(x, n), x.isnan(), x.logical_and(n > 1)),
        ),
        [fixed([NAN, float("inf"), -float("inf"), 0.0, 1.0, -2.0]), fixed([0, 1, 2, 0, 1, 2])],
        smooth=NO_GRADIENT,
    ),
]
