from tests.cases import Case, normal

CASES = [
    Case("rmsnorm", lambda t, x, w: t.nn.functional.rms_norm(x, (8,), w), [normal(4, 8), normal(8)]),
    Case("rmsnorm-3d", lambda t, x, w: t.nn.functional.rms_norm(x, (6,), w, 1e-5), [normal(2, 3, 6), normal(6)]),
    Case("rmsnorm-bare", lambda t, x: t.nn.functional.rms_norm(x, (8,)), [normal(3, 8)]),
]
