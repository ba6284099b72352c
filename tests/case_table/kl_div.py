from tests.cases import Case, normal, uniform

F = lambda t: t.nn.functional  # noqa: E731
P = uniform(3, 4, low=0.1, high=1.0)

CASES = [
    Case("kl_div-sum", lambda t, x, y: F(t).kl_div(x, y, reduction="sum"), [P, P]),
    Case("kl_div-batchmean", lambda t, x, y: F(t).kl_div(x, y, reduction="batchmean"), [P, P]),
    Case("kl_div-none", lambda t, x, y: F(t).kl_div(x, y, reduction="none"), [P, P]),
    Case("kl_div-stretch", lambda t, x, y: F(t).kl_div(x, y, reduction="sum"), [normal(3, 4), uniform(4, low=0.1, high=1.0)]),
    Case("kl_div-of-zeros", lambda t, x: F(t).kl_div(x, t.tensor([0.0, 0.5, 0.0], dtype=x.dtype), reduction="none"), [normal(3)]),
    Case("kl_div-log-target", lambda t, x, y: F(t).kl_div(x, y, reduction="batchmean", log_target=True), [normal(3, 4), normal(3, 4)]),
    Case("kl_div-layer", lambda t, x, y: t.nn.KLDivLoss(reduction="sum")(x, y), [P, P]),
]
