from tests.cases import Case, fixed, integers, normal

WITH_IGNORED = fixed([1, -100, 3, 0, -100, 1])


def both(name, inputs, log_inputs=None, **options):
    """The case for cross_entropy, and for nll_loss on log-probabilities."""
    return [
        Case(f"cross_entropy-{name}", lambda t, x, y: t.nn.functional.cross_entropy(x, y, **options), inputs),
        Case(f"nll_loss-{name}", lambda t, x, y: t.nn.functional.nll_loss(x, y, **options), inputs),
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
