from tests.cases import Case, distinct, fixed, normal

INF = float("inf")
TIP = False  # where y = 0 the graph has a tip

CASES = [
    Case("norm", lambda t, x: (t.norm(x), x.norm()), [normal(3, 4)]),
    Case("norm-dim", lambda t, x: (x.norm(dim=1), x.norm(2, 0, keepdim=True), x.norm(dim=(0, 1))), [normal(3, 4)]),
    Case("norm-1", lambda t, x: t.norm(x, p=1, dim=-1), [distinct(3, 4)]),
    Case("norm-3", lambda t, x: x.norm(3, dim=0), [distinct(3, 4)]),
    Case("norm-half", lambda t, x: x.norm(0.5), [distinct(2, 3)]),
    Case("norm-inf", lambda t, x: (x.norm(INF), x.norm(INF, dim=1), x.norm(-INF, dim=0)), [distinct(3, 3)]),
    Case("norm-inf-ties", lambda t, x: x.norm(INF), [fixed([2.0, -2.0, 1.0])], smooth=False),  # at a tie differences see one side
    Case("norm-0", lambda t, x: x.norm(0, dim=1), [distinct(3, 4)]),
    Case("norm-0d", lambda t, x: x.norm(), [fixed(-1.5)]),
    Case("norm-empty", lambda t, x: x.norm(dim=1), [normal(3, 0)]),
    Case("norm-of-zeros", lambda t, x: (x.norm(), x.norm(dim=0)), [fixed([[0.0, 0.0], [0.0, 0.0]])], smooth=TIP),
    # the small steps of central differences are lost in numbers so large
    Case("norm-large", lambda t, x: x.norm(), [normal(4, std=1e15)], smooth=False),
    Case("normalize", lambda t, x: t.nn.functional.normalize(x), [normal(3, 4)]),
    Case("normalize-dim", lambda t, x: t.nn.functional.normalize(x, p=1.0, dim=0), [distinct(3, 4)]),
    Case("normalize-zeros", lambda t, x: t.nn.functional.normalize(x), [fixed([[0.0, 0.0], [3.0, 4.0]])], smooth=TIP),
]
