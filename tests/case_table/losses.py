from tests.cases import Case, distinct, normal

CASES = [
    Case("mse_loss", lambda t, x, y: t.nn.functional.mse_loss(x, y), [normal(3, 4), normal(3, 4)]),
    Case("mse_loss-sum", lambda t, x, y: t.nn.functional.mse_loss(x, y, reduction="sum"), [normal(3, 4), normal(3, 4)]),
    Case("mse_loss-none", lambda t, x, y: t.nn.functional.mse_loss(x, y, reduction="none"), [normal(3, 4), normal(3, 4)]),
    Case("mse_loss-0d", lambda t, x, y: t.nn.functional.mse_loss(x, y), [normal(), normal()]),
]

NEAR_AND_FAR = [distinct(3, 4, gap=0.31), normal(3, 4, std=0.01)]

CASES += [
    Case("l1_loss", lambda t, x, y: t.nn.functional.l1_loss(x, y), NEAR_AND_FAR),
    Case("l1_loss-sum", lambda t, x, y: t.nn.functional.l1_loss(x, y, reduction="sum"), NEAR_AND_FAR),
    Case("l1_loss-none", lambda t, x, y: t.nn.functional.l1_loss(x, y, reduction="none"), NEAR_AND_FAR),
    Case("l1_loss-layer", lambda t, x, y: t.nn.L1Loss()(x, y), NEAR_AND_FAR),
    Case("smooth_l1_loss", lambda t, x, y: t.nn.functional.smooth_l1_loss(x, y), NEAR_AND_FAR),
    Case("smooth_l1_loss-beta", lambda t, x, y: t.nn.functional.smooth_l1_loss(x, y, reduction="sum", beta=0.5), NEAR_AND_FAR),
    Case("smooth_l1_loss-beta-0", lambda t, x, y: t.nn.functional.smooth_l1_loss(x, y, reduction="none", beta=0.0), NEAR_AND_FAR),
    Case("smooth_l1_loss-layer", lambda t, x, y: t.nn.SmoothL1Loss()(x, y), NEAR_AND_FAR),
    Case("huber_loss", lambda t, x, y: (t.nn.functional.huber_loss(x, y, delta=0.7), t.nn.HuberLoss()(x, y)), NEAR_AND_FAR),
]
