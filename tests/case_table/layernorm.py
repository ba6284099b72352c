from tests.cases import Case, normal

AROUND_1000 = [normal(4, 8, mean=1000), normal(8), normal(8)]  # where E[x²] - E[x]² is wrong in float32

CASES = [
    Case("layernorm", lambda t, x, w, b: t.nn.functional.layer_norm(x, (8,), w, b), [normal(4, 8), normal(8), normal(8)]),
    Case("layernorm-3d", lambda t, x, w, b: t.nn.functional.layer_norm(x, (6,), w, b), [normal(2, 3, 6), normal(6), normal(6)]),
    Case("layernorm-no-bias", lambda t, x, w: t.nn.functional.layer_norm(x, (8,), w), [normal(3, 8), normal(8)]),
    Case("layernorm-bare", lambda t, x: t.nn.functional.layer_norm(x, (8,)), [normal(3, 8)]),
    Case("layernorm-around-1000", lambda t, x, w, b: t.nn.functional.layer_norm(x, (8,), w, b), AROUND_1000),
]
