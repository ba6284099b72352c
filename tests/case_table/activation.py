import numpy as np

from tests.cases import Case, distinct, fixed, normal

FAR = fixed(np.array([-300.0, -40.0, -9.0, -5.5, -1.0, -1e-3, 1e-3, 1.0, 5.5, 9.0, 40.0, 300.0]))


def cases(name, call, **options):
    return [
        Case(name, call, [normal(3, 5, std=2)], **options),
        Case(f"{name}-far", call, [FAR], **options),
        Case(f"{name}-0d", call, [fixed(0.7)], **options),
        Case(f"{name}-empty", call, [normal(0, 3)], **options),
    ]


CASES = [
    Case("relu", lambda t, x: t.nn.functional.relu(x), [distinct(4, 5)]),
    Case("relu-at-0", lambda t, x: t.relu(x), [fixed([-1.0, 0.0, -0.0, 1.0])], smooth=False),  # the kink itself
    *cases("gelu", lambda t, x: t.nn.functional.gelu(x)),
    *cases("gelu-tanh", lambda t, x: t.nn.functional.gelu(x, approximate="tanh")),
    *cases("silu", lambda t, x: t.nn.functional.silu(x)),
    *cases("sigmoid", lambda t, x: t.sigmoid(x)),
    *cases("tanh", lambda t, x: t.tanh(x)),
    Case(
        "sigmoid-and-tanh-of-integers",  # they become float32, so here only where the result is exact
        lambda t, n, m: (t.sigmoid(n), t.tanh(n), t.sigmoid(m), t.tanh(m)),
        [fixed(np.array([0, 100, -100], "int8")), fixed([False])],
        smooth=False,  # no floating point input
    ),
]
