from tests.cases import Case, normal

CASES = [
    Case("pad", lambda t, x: t.nn.functional.pad(x, (1, 2)), [normal(3, 4)]),
    Case("pad-two-axes", lambda t, x: t.nn.functional.pad(x, (1, 0, 2, 1), value=0.5), [normal(2, 3, 4)]),
    Case("pad-cuts", lambda t, x: t.nn.functional.pad(x, (-1, 2, 1, -2)), [normal(3, 4)]),
    Case("pad-cuts-all", lambda t, x: t.nn.functional.pad(x, (-2, -1)), [normal(2, 3)]),
    Case("pad-nothing", lambda t, x: t.nn.functional.pad(x, (0, 0)), [normal(3, 4)]),
    Case("pad-replicate", lambda t, x: t.nn.functional.pad(x, (2, 3), mode="replicate"), [normal(2, 3, 4)]),
    Case("pad-reflect", lambda t, x: t.nn.functional.pad(x, (2, 3), mode="reflect"), [normal(2, 3, 4)]),
    Case("pad-circular", lambda t, x: t.nn.functional.pad(x, (2, 1), mode="circular"), [normal(2, 3, 4)]),
    Case("pad-reflect-two-axes", lambda t, x: t.nn.functional.pad(x, (1, 0, 2, 1), mode="reflect"), [normal(1, 2, 4, 3)]),
]
