import numpy as np

from tests.cases import Case, fixed, normal

CASES = [
    case
    for name, function in (
        ("softmax", lambda t, x, dim: t.softmax(x, dim)),
        ("log_softmax", lambda t, x, dim: t.log_softmax(x, dim)),
    )
    for case in (
        Case(name, lambda t, x, f=function: f(t, x, -1), [normal(4, 5)]),
        Case(f"{name}-dim-0", lambda t, x, f=function: f(t, x, 0), [normal(4, 5)]),
        Case(f"{name}-dim-1-of-3", lambda t, x, f=function: f(t, x, 1), [normal(2, 4, 3)]),
        Case(f"{name}-large", lambda t, x, f=function: f(t, x, -1), [normal(3, 4, mean=1000, std=3)], float32=1e-4),
        Case(f"{name}-one-class", lambda t, x, f=function: f(t, x, -1), [normal(3, 1)]),
        Case(f"{name}-no-rows", lambda t, x, f=function: f(t, x, -1), [normal(0, 3)]),
        Case(f"{name}-no-classes", lambda t, x, f=function: f(t, x, -1), [normal(2, 0)]),
        Case(f"{name}-no-classes-dim-0", lambda t, x, f=function: f(t, x, 0), [normal(0, 3)]),
        Case(f"{name}-ties", lambda t, x, f=function: f(t, x, -1), [fixed(np.zeros((2, 3)))]),
    )
]
CASES += [
    Case("softmax-functional", lambda t, x: t.nn.functional.softmax(x, dim=1), [normal(4, 5)]),
    Case("softmax-method", lambda t, x: x.softmax(-1), [normal(4, 5)]),
    Case("softmax-hidden", lambda t, x: t.softmax(x, -1), [fixed([[0.3, -np.inf, 1.0], [0.0, 2.0, -np.inf]])], smooth=False),  # -inf ± eps
    Case("softmax-0d", lambda t, x: t.softmax(x, 0), [fixed(0.7)]),
]
