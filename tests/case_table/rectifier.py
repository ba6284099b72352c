from tests.cases import Case, distinct, fixed, normal

KINK = False  # at 0 central differences see both slopes
FAR = normal(3, 4, std=300.0)

CASES = [
    Case("leaky_relu", lambda t, x: t.nn.functional.leaky_relu(x), [distinct(3, 4)]),
    Case("leaky_relu-slope", lambda t, x: t.nn.functional.leaky_relu(x, 0.3), [distinct(3, 4)]),
    Case("leaky_relu-at-0", lambda t, x: t.nn.functional.leaky_relu(x), [fixed([-1.0, 0.0, 1.0])], smooth=KINK),
    Case("leaky_relu-layer", lambda t, x: t.nn.LeakyReLU(0.2)(x), [distinct(3, 4)]),
    Case("elu", lambda t, x: t.nn.functional.elu(x), [normal(3, 4)]),
    Case("elu-alpha", lambda t, x: t.nn.functional.elu(x, alpha=0.5), [distinct(3, 4)]),
    Case("elu-far-out", lambda t, x: t.nn.ELU()(x), [FAR]),
    Case("softplus", lambda t, x: t.nn.functional.softplus(x), [normal(3, 4, std=3.0)]),
    Case("softplus-beta", lambda t, x: t.nn.functional.softplus(x, beta=2.0, threshold=10.0), [normal(3, 4)]),
    Case("softplus-far-out", lambda t, x: t.nn.Softplus()(x), [FAR]),
    Case("logsigmoid", lambda t, x: t.nn.functional.logsigmoid(x), [normal(3, 4, std=3.0)]),
    Case("logsigmoid-far-out", lambda t, x: t.nn.LogSigmoid()(x), [FAR]),
]
