from tests.cases import Case, fixed, mask, normal, uniform

F = lambda t: t.nn.functional  # noqa: E731
P = uniform(3, 4, low=0.05, high=0.95)
EDGE = False  # at 0 and 1 the logarithm ends


def yes_or_no(draw):
    return lambda rng: draw(rng).astype("float64")


def constant(t, x):
    """A weight, which has no gradient."""
    return t.tensor([0.5, 1.0, 2.0, 0.3], dtype=x.dtype)


CASES = [
    Case("binary_cross_entropy", lambda t, x, y: F(t).binary_cross_entropy(x, y), [P, P]),
    Case("binary_cross_entropy-sum", lambda t, x, y: F(t).binary_cross_entropy(x, y, reduction="sum"), [P, yes_or_no(mask(3, 4))]),
    Case("binary_cross_entropy-none", lambda t, x, y: F(t).binary_cross_entropy(x, y, reduction="none"), [P, P]),
    Case("binary_cross_entropy-weight", lambda t, x, y: F(t).binary_cross_entropy(x, y, constant(t, x)), [P, P]),
    Case(
        "binary_cross_entropy-certain",
        lambda t, x, y: F(t).binary_cross_entropy(x, y.detach(), reduction="none"),  # the gradient of the target is infinite in torch
        [fixed([0.0, 0.0, 1.0, 1.0, 1e-60]), fixed([0.0, 1.0, 0.0, 1.0, 1.0])],
        smooth=EDGE,
    ),
    Case("binary_cross_entropy-layer", lambda t, x, y: t.nn.BCELoss()(x, y), [P, P]),
    Case("binary_cross_entropy_with_logits", lambda t, x, y: F(t).binary_cross_entropy_with_logits(x, y), [normal(3, 4), P]),
    Case(
        "binary_cross_entropy_with_logits-sum",
        lambda t, x, y: F(t).binary_cross_entropy_with_logits(x, y, reduction="sum"),
        [normal(5), uniform(5)],
    ),
    Case(
        "binary_cross_entropy_with_logits-weights",
        lambda t, x, y: F(t).binary_cross_entropy_with_logits(x, y, constant(t, x), pos_weight=2 * constant(t, x), reduction="none"),
        [normal(3, 4), P],
    ),
    Case(
        "binary_cross_entropy_with_logits-far-out",
        lambda t, x, y: F(t).binary_cross_entropy_with_logits(x, y, reduction="none"),
        [fixed([-800.0, -30.0, 30.0, 800.0]), fixed([1.0, 0.0, 1.0, 0.0])],
    ),
    Case("binary_cross_entropy_with_logits-layer", lambda t, x, y: t.nn.BCEWithLogitsLoss()(x, y), [normal(3, 4), P]),
]
