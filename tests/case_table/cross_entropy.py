from tests.cases import Case, fixed, integers, normal

WITH_IGNORED = fixed([1, -100, 3, 0, -100, 1])


def both(name, inputs, smooth=True, **options):
    """The case for cross_entropy, and for nll_loss on log-probabilities."""
    return [
        Case(f"cross_entropy-{name}", lambda t, x, y: t.nn.functional.cross_entropy(x, y, **options), inputs, smooth=smooth),
        Case(f"nll_loss-{name}", lambda t, x, y: t.nn.functional.nll_loss(x, y, **options), inputs, smooth=smooth),
    ]


CASES = [
    *both("mean", [normal(6, 5), integers(6, high=5)]),
    *both("sum", [normal(6, 5), integers(6, high=5)], reduction="sum"),
    *both("none", [normal(6, 5), integers(6, high=5)], reduction="none"),
    *both("ignored", [normal(6, 5), WITH_IGNORED]),
    *both("ignored-sum", [normal(6, 5), WITH_IGNORED], reduction="sum"),
    *both("ignored-none", [normal(6, 5), WITH_IGNORED], reduction="none"),
    *both("ignored-other-index", [normal(6, 5), fixed([1, 2, 2, 0, 4, 1])], ignore_index=2),
    *both("one-row", [normal(1, 5), fixed([3])]),
    *both("no-batch", [normal(5), fixed(3)]),
    *both("one-class", [normal(4, 1), fixed([0, 0, 0, 0])]),
    *both("class-dim-1", [normal(2, 5, 3), integers(2, 3, high=5)]),
    *both("class-dim-1-of-4", [normal(2, 5, 3, 2), integers(2, 3, 2, high=5)]),
    *both("class-dim-1-none", [normal(2, 5, 3), integers(2, 3, high=5)], reduction="none"),
    Case("cross_entropy-far", lambda t, x, y: t.nn.functional.cross_entropy(x, y), [normal(6, 5, std=200), integers(6, high=5)]),
    Case(
        "cross_entropy-shifted",
        lambda t, x, y: t.nn.functional.cross_entropy(x, y),
        [normal(6, 5, mean=1000), integers(6, high=5)],
        float32=1e-4,
    ),
]
for reduction in ("mean", "sum", "none"):
    CASES += [
        Case(
            f"cross_entropy-smoothing-{reduction}",
            lambda t, x, y, r=reduction: t.nn.functional.cross_entropy(x, y, label_smoothing=0.1, reduction=r),
            [normal(6, 5), WITH_IGNORED],
        )
    ]
CASES += [
    Case(
        "cross_entropy-smoothing-class-dim",
        lambda t, x, y: t.nn.functional.cross_entropy(x, y, label_smoothing=0.3),
        [normal(2, 5, 3), integers(2, 3, high=5)],
    ),
]


def weighted(name, inputs, smooth=True, **options):
    """As `both`, with weights for the classes, one of which is 0."""

    def weights(t, x):
        return t.tensor([0.5, 0.0, 2.0, 1.0, 3.0], dtype=x.dtype)

    smoothed = {"label_smoothing": 0.1, **options}
    return [
        Case(f"cross_entropy-{name}", lambda t, x, y: t.nn.functional.cross_entropy(x, y, weights(t, x), **options), inputs, smooth=smooth),
        Case(
            f"cross_entropy-smoothing-{name}",
            lambda t, x, y: t.nn.functional.cross_entropy(x, y, weights(t, x), **smoothed),
            inputs,
            smooth=smooth,
        ),
        Case(f"nll_loss-{name}", lambda t, x, y: t.nn.functional.nll_loss(x, y, weights(t, x), **options), inputs, smooth=smooth),
    ]


NOTHING_TO_PREDICT = {"all-ignored": [normal(4, 5), fixed([-100] * 4)], "no-rows": [normal(0, 5), integers(0, high=5)]}
for reduction in ("mean", "sum", "none"):
    CASES += weighted(f"weighted-{reduction}", [normal(6, 5), WITH_IGNORED], reduction=reduction)
    for name, inputs in NOTHING_TO_PREDICT.items():
        smooth = reduction != "mean"  # a mean of no rows is nan, and so are its differences
        CASES += both(f"{name}-{reduction}", inputs, smooth, reduction=reduction)
        CASES += both(f"smoothing-{name}-{reduction}", inputs, smooth, reduction=reduction, label_smoothing=0.1)[:1]
        CASES += weighted(f"weighted-{name}-{reduction}", inputs, smooth, reduction=reduction)
