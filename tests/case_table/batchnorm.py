from tests.cases import Case, normal

OFF_THE_TAPE = False  # running means depend on x, but have no gradient


def layer(t, x, options):
    """A fresh layer: what it makes of x while training, then its running means, and what it makes of x with them."""
    made = t.nn.BatchNorm1d(x.shape[1], **options).to(x.dtype).to(x.device)
    y = made(x)
    made.eval()
    return y, made.running_mean + 0, made.running_var + 0, made(x)


CASES = [
    Case(
        "batchnorm", lambda t, x, w, b: t.nn.functional.batch_norm(x, None, None, w, b, training=True), [normal(5, 3), normal(3), normal(3)]
    ),
    Case("batchnorm-plain", lambda t, x: t.nn.functional.batch_norm(x, None, None, training=True), [normal(6, 2)]),
    Case("batchnorm-3d", lambda t, x, w, b: t.nn.functional.batch_norm(x, None, None, w, b, True), [normal(2, 3, 4), normal(3), normal(3)]),
    Case("batchnorm-eps", lambda t, x, w: t.nn.functional.batch_norm(x, None, None, w, training=True, eps=0.3), [normal(4, 3), normal(3)]),
    Case(
        "batchnorm-offset", lambda t, x: t.nn.functional.batch_norm(x, None, None, training=True), [normal(8, 2, mean=1000.0)], float32=2e-4
    ),
    Case(
        "batchnorm-running",
        lambda t, x, w, b: t.nn.functional.batch_norm(x, *t.tensor([[0.1, -1.0, 2.0], [0.5, 1.0, 3.0]], dtype=x.dtype), w, b),
        [normal(4, 3), normal(3), normal(3)],
    ),
    Case("batchnorm-layer", lambda t, x: layer(t, x, {}), [normal(5, 3)], smooth=OFF_THE_TAPE),
    Case(
        "batchnorm-layer-mean-of-all", lambda t, x: layer(t, x, {"momentum": None, "affine": False}), [normal(3, 2, 4)], smooth=OFF_THE_TAPE
    ),
]
