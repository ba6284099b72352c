from tests.cases import Case, normal

CASES = [
    Case("mse_loss", lambda t, x, y: t.nn.functional.mse_loss(x, y), [normal(3, 4), normal(3, 4)]),
    Case("mse_loss-sum", lambda t, x, y: t.nn.functional.mse_loss(x, y, reduction="sum"), [normal(3, 4), normal(3, 4)]),
    Case("mse_loss-none", lambda t, x, y: t.nn.functional.mse_loss(x, y, reduction="none"), [normal(3, 4), normal(3, 4)]),
    Case("mse_loss-0d", lambda t, x, y: t.nn.functional.mse_loss(x, y), [normal(), normal()]),
]
