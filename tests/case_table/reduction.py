from tests.cases import Case, fixed, integers, mask, normal, uniform

X = [normal(2, 3, 4)]
EMPTY = [normal(2, 0, 3)]
SCALAR = [normal()]
FAR_FROM_0 = [normal(4, 50, mean=1000.0)]  # E[x²] - E[x]² would lose every digit of the variance in float32
INF = float("inf")
INFINITE = False  # no central differences around infinity
WHOLE = [integers(3, 4, low=1, high=4), mask(3, 4)]
NO_GRADIENT = False  # integers in, or bools out: nothing to differentiate


def zeros_at(*places):
    """Normal numbers (3, 4) with some set to 0."""

    def draw(rng):
        x = rng.standard_normal((3, 4))
        for place in places:
            x[place] = 0
        return x

    return draw


CASES = [
    Case("sum", lambda t, x: t.sum(x), X),
    Case("sum-dim", lambda t, x: x.sum(1), X),
    Case("sum-last", lambda t, x: x.sum(dim=-1), X),
    Case("sum-dims", lambda t, x: t.sum(x, (0, -1)), X),
    Case("sum-dims-unordered", lambda t, x: t.sum(x, dim=[2, 0], keepdim=True), X),
    Case("sum-keepdim", lambda t, x: x.sum(-2, keepdim=True), X),
    Case("sum-no-dims", lambda t, x: x.sum(()), X),
    Case("sum-0d", lambda t, x: x.sum(), SCALAR),
    Case("sum-0d-dim", lambda t, x: x.sum(-1), SCALAR),
    Case("sum-length-1", lambda t, x: x.sum(1), [normal(3, 1, 2)]),
    Case("sum-empty", lambda t, x: x.sum(), EMPTY),
    Case("sum-empty-dim", lambda t, x: (x.sum(0), x.sum(1)), EMPTY),
    Case("sum-long", lambda t, x: (x.sum(), x.sum(0), x.sum(1)), [uniform(400, 300)]),
    Case("sum-whole-numbers", lambda t, n, m: (n.sum(), n.sum(0), m.sum(), m.sum(1)), WHOLE, smooth=NO_GRADIENT),
    Case("mean", lambda t, x: t.mean(x), X),
    Case("mean-dim", lambda t, x: x.mean(0), X),
    Case("mean-last", lambda t, x: x.mean(dim=-1, keepdim=True), X),
    Case("mean-dims", lambda t, x: t.mean(x, (1, 2)), X),
    Case("mean-dims-keepdim", lambda t, x: x.mean([-1, 0], True), X),
    Case("mean-0d", lambda t, x: x.mean(), SCALAR),
    Case("mean-empty-rows", lambda t, x: x.mean(0), EMPTY),
    Case("mean-far-from-0", lambda t, x: x.mean(1), FAR_FROM_0),
    Case("var", lambda t, x: t.var(x), X),
    Case("var-dim", lambda t, x: x.var(1), X),
    Case("var-keepdim", lambda t, x: x.var(dim=-1, keepdim=True), X),
    Case("var-dims", lambda t, x: t.var(x, (0, 2)), X),
    Case("var-correction-0", lambda t, x: t.var(x, dim=2, correction=0), X),
    Case("var-correction-2", lambda t, x: t.var(x, dim=-1, correction=2, keepdim=True), X),
    Case("var-unbiased", lambda t, x: x.var(1, unbiased=True), X),
    Case("var-biased", lambda t, x: x.var(1, False), X),
    Case("var-biased-all", lambda t, x: x.var(unbiased=False), X),
    Case("var-biased-all-short", lambda t, x: x.var(False), X),
    Case("var-far-from-0", lambda t, x: x.var(1), FAR_FROM_0),
    Case("var-0d-biased", lambda t, x: x.var(unbiased=False), SCALAR),
    Case("std", lambda t, x: t.std(x), X),
    Case("std-dim", lambda t, x: x.std(-1), X),
    Case("std-dims-keepdim", lambda t, x: t.std(x, (0, 1), keepdim=True), X),
    Case("std-correction-0", lambda t, x: t.std(x, dim=1, correction=0), X),
    Case("std-biased", lambda t, x: x.std(2, unbiased=False), X),
    Case("std-far-from-0", lambda t, x: x.std(1), FAR_FROM_0),
    Case("std-of-equals", lambda t, x: x.std(1), [fixed([[2.0, 2.0, 2.0], [1.0, 2.0, 4.0]])], smooth=False),  # the tip of a cone
    Case("std-huge", lambda t, x: (x.std(), x.std(1)), [normal(3, 4, std=1e20)], smooth=False),  # the squares overflow in float32
    Case("prod", lambda t, x: t.prod(x), X),
    Case("prod-dim", lambda t, x: x.prod(1), X),
    Case("prod-keepdim", lambda t, x: t.prod(x, -1, keepdim=True), X),
    Case("prod-first", lambda t, x: t.prod(x, dim=0), X),
    Case("prod-one-zero", lambda t, x: (x.prod(), x.prod(0), x.prod(1)), [zeros_at((1, 2))]),
    Case("prod-two-zeros", lambda t, x: (x.prod(), x.prod(0), x.prod(1)), [zeros_at((1, 2), (1, 0))]),
    Case("prod-many-zeros", lambda t, x: (x.prod(), x.prod(0), x.prod(1)), [zeros_at((0, 0), (1, 0), (2, 0), (2, 1))]),
    Case("prod-0d", lambda t, x: x.prod(), SCALAR),
    Case("prod-length-1", lambda t, x: x.prod(1), [normal(3, 1)]),
    Case("prod-length-2", lambda t, x: x.prod(1), [normal(3, 2)]),
    Case("prod-empty", lambda t, x: (x.prod(), x.prod(0), x.prod(1)), EMPTY),
    Case("prod-whole-numbers", lambda t, n, m: (n.prod(), n.prod(0), m.prod()), WHOLE, smooth=NO_GRADIENT),
    Case("logsumexp", lambda t, x: t.logsumexp(x, 1), X),
    Case("logsumexp-last-keepdim", lambda t, x: x.logsumexp(-1, keepdim=True), X),
    Case("logsumexp-dims", lambda t, x: t.logsumexp(x, dim=(0, 2)), X),
    Case("logsumexp-large", lambda t, x: x.logsumexp(-1), [normal(3, 4, mean=1000.0)]),
    Case("logsumexp-far-down", lambda t, x: x.logsumexp(-1), [normal(3, 4, mean=-1000.0)]),
    Case("logsumexp-some-minus-inf", lambda t, x: x.logsumexp(1), [fixed([[-INF, 1.0, 2.0], [0.5, -INF, -INF]])], smooth=INFINITE),
    Case("logsumexp-inf", lambda t, x: x.detach().logsumexp(1), [fixed([[-INF, -INF], [INF, 1.0], [INF, -INF]])], smooth=INFINITE),
    Case("logsumexp-0d", lambda t, x: x.logsumexp(0), SCALAR),
    Case("logsumexp-no-rows", lambda t, x: x.logsumexp(-1), EMPTY),
    Case("cumsum", lambda t, x: t.cumsum(x, 1), X),
    Case("cumsum-first", lambda t, x: x.cumsum(dim=0), X),
    Case("cumsum-last", lambda t, x: x.cumsum(-1), X),
    Case("cumsum-0d", lambda t, x: x.cumsum(0), SCALAR),
    Case("cumsum-empty", lambda t, x: x.cumsum(1), EMPTY),
    Case("cumsum-whole-numbers", lambda t, n, m: (n.cumsum(0), m.cumsum(1)), WHOLE, smooth=NO_GRADIENT),
    Case(
        "all-and-any",
        lambda t, m, n: (
            *(t.all(m), m.all(0), m.all(dim=-1, keepdim=True), t.any(m), m.any(1), m.any(0, keepdim=True), n.all(), n.any(-1)),
            *(m.all((0, 1)), m.any((0, 1), keepdim=True), m.all(0).all(), (n < 0).any()),
        ),
        [mask(3, 4), integers(3, 4, high=2)],
        smooth=NO_GRADIENT,
    ),
]
