from tests.cases import Case, distinct, fixed, normal

X = [distinct(2, 3, 4)]
SCALAR = [normal()]
TIES = [fixed([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [5.0, 3.0, 1.0], [1.0, 1.0, 5.0]])]
NAN = [fixed([[1.0, float("nan"), 3.0], [2.0, 0.0, 1.0]])]
KINK = False  # central differences see both sides of a tie, the gradient takes one
INDICES = False  # they have no gradient

CASES = [
    Case("amax", lambda t, x: t.amax(x), X),
    Case("amax-dim", lambda t, x: x.amax(1), X),
    Case("amax-keepdim", lambda t, x: x.amax(dim=-1, keepdim=True), X),
    Case("amax-dims", lambda t, x: t.amax(x, (0, -1)), X),
    Case("amax-ties", lambda t, x: (x.amax(), x.amax(0), x.amax(1), x.amax((0, 1), keepdim=True)), TIES, smooth=KINK),
    Case("amax-0d", lambda t, x: (x.amax(), x.amax(0)), SCALAR),
    Case("amax-length-1", lambda t, x: x.amax(1), [normal(3, 1, 2)]),
    Case("amax-no-rows", lambda t, x: x.amax(1), [normal(0, 3)]),
    Case("amin", lambda t, x: t.amin(x), X),
    Case("amin-dim", lambda t, x: x.amin(-2), X),
    Case("amin-dims-keepdim", lambda t, x: x.amin((1, 2), keepdim=True), X),
    Case("amin-ties", lambda t, x: (x.amin(), x.amin(0), x.amin(1)), TIES, smooth=KINK),
    Case("max", lambda t, x: t.max(x), X),
    Case("max-ties", lambda t, x: x.max(), TIES, smooth=KINK),
    Case("max_along", lambda t, x: t.max(x, 1), X),
    Case("max_along-names", lambda t, x: (x.max(dim=-1).values, x.max(-1, keepdim=True).indices), X),
    Case("max_along-keepdim", lambda t, x: x.max(0, True), X),
    Case("max_along-ties", lambda t, x: (*x.max(1), *x.max(0)), TIES, smooth=KINK),
    Case("max_along-nan", lambda t, x: (*x.max(1), *x.max(0)), NAN, smooth=KINK),
    Case("max_along-0d", lambda t, x: x.max(0), SCALAR),
    Case("max_along-length-1", lambda t, x: x.max(-1), [normal(3, 1)]),
    Case("max_along-no-rows", lambda t, x: x.max(1), [normal(0, 3)]),
    Case("max-of-two", lambda t, x, y: t.max(x, y), [distinct(3, 4), normal(4)]),
    Case("min", lambda t, x: t.min(x), X),
    Case("min-ties", lambda t, x: x.min(), TIES, smooth=KINK),
    Case("min_along", lambda t, x: t.min(x, 2), X),
    Case("min_along-names", lambda t, x: (x.min(dim=0).values, x.min(0, keepdim=True).indices), X),
    Case("min_along-ties", lambda t, x: (*x.min(1), *x.min(0)), TIES, smooth=KINK),
    Case("min_along-nan", lambda t, x: (*x.min(1), *x.min(0)), NAN, smooth=KINK),
    Case("min-of-two", lambda t, x, y: x.min(y), [distinct(3, 4), normal(4)]),
    Case(
        "argmax-and-argmin",
        lambda t, x: (
            *(t.argmax(x), x.argmax(0), x.argmax(dim=-1), x.argmax(1, keepdim=True), x.argmax(keepdim=True)),
            *(t.argmin(x), x.argmin(0), x.argmin(dim=-1), x.argmin(1, keepdim=True), x.argmin(keepdim=True)),
        ),
        TIES,
        smooth=INDICES,
    ),
    Case("argmax-nan", lambda t, x: (x.argmax(), x.argmax(1), x.argmin(0)), NAN, smooth=INDICES),
    Case("argmax-0d", lambda t, x: (x.argmax(), x.argmin(0)), SCALAR, smooth=INDICES),
]
