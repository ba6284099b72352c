"""Layers, losses and nn.functional against torch's, in float64: values, gradients, names, texts, refusals."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import tensorlite as tl

ids = np.array([[0, 2, 1], [2, 2, 4]])
LAYERS = [
    ("linear", lambda nn: nn.Linear(6, 3), (4, 6)),
    ("linear-no-bias", lambda nn: nn.Linear(6, 3, bias=False), (2, 4, 6)),
    ("linear-vector", lambda nn: nn.Linear(6, 3), (6,)),
    ("embedding", lambda nn: nn.Embedding(5, 6), ids),
    ("embedding-padding", lambda nn: nn.Embedding(5, 6, padding_idx=-3), ids),
    ("layernorm", lambda nn: nn.LayerNorm(6), (4, 6)),
    ("layernorm-axes", lambda nn: nn.LayerNorm((2, 3), eps=1e-3), (4, 2, 3)),
    ("layernorm-all-axes", lambda nn: nn.LayerNorm([4, 6]), (4, 6)),
    ("layernorm-no-bias", lambda nn: nn.LayerNorm(6, bias=False), (4, 6)),
    ("layernorm-bare", lambda nn: nn.LayerNorm((4, 6), elementwise_affine=False), (3, 4, 6)),
    ("rmsnorm", lambda nn: nn.RMSNorm(6), (4, 6)),
    ("rmsnorm-axes", lambda nn: nn.RMSNorm((2, 3), eps=1e-3), (4, 2, 3)),
    ("rmsnorm-bare", lambda nn: nn.RMSNorm(6, elementwise_affine=False), (4, 6)),
    ("relu", lambda nn: nn.ReLU(), (4, 6)),
    ("gelu", lambda nn: nn.GELU(), (4, 6)),
    ("gelu-tanh", lambda nn: nn.GELU(approximate="tanh"), (4, 6)),
    ("silu", lambda nn: nn.SiLU(), (4, 6)),
    ("sigmoid", lambda nn: nn.Sigmoid(), (4, 6)),
    ("tanh", lambda nn: nn.Tanh(), (4, 6)),
    ("softmax", lambda nn: nn.Softmax(dim=1), (4, 6, 2)),
    ("identity", lambda nn: nn.Identity(3, some="thing"), (4, 6)),
    ("flatten", lambda nn: nn.Flatten(), (4, 3, 2)),
    ("flatten-some", lambda nn: nn.Flatten(0, 1), (4, 3, 2)),
    ("dropout-eval", lambda nn: nn.Dropout(0.4).eval(), (4, 6)),
    ("sequential", lambda nn: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.LayerNorm(4)), (5, 6)),
]


def close(ours, theirs, what=""):
    theirs = theirs.detach().numpy()
    ours = ours.detach().numpy()
    assert ours.shape == theirs.shape, what
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12, err_msg=what)


def compare(call, arrays, what=""):
    """Run ``call(t, *tensors)`` in both libraries and compare values and all gradients for a random cotangent."""
    ours = [tl.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    theirs = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    y, y_torch = call(tl, *ours), call(torch, *theirs)
    close(y, y_torch, what)
    dy = np.random.default_rng(9).standard_normal(y.shape)
    y.backward(tl.tensor(dy))
    y_torch.backward(torch.tensor(dy))
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.requires_grad:
            if b.grad is None:
                assert a.grad is None
            else:
                close(a.grad, b.grad, f"{what} gradient {number}")


@pytest.mark.parametrize(("make", "x"), [pytest.param(make, x, id=name) for name, make, x in LAYERS])
def test_layer_equals_torchs(make, x):
    rng = np.random.default_rng(3)
    theirs = make(torch.nn).double()
    ours = make(tl.nn).to(tl.float64)
    assert repr(ours) == repr(theirs)
    state = {name: rng.standard_normal(value.shape) for name, value in theirs.state_dict().items()}
    theirs.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    ours.load_state_dict(state)
    assert list(ours.state_dict()) == list(state)
    x = rng.standard_normal(x) if isinstance(x, tuple) else x
    compare(lambda t, x: (ours if t is tl else theirs)(x), [x])
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        close(p.grad, q.grad, name)


def test_dropout_drops_only_while_training():
    tl.manual_seed(0)
    layer = tl.nn.Dropout(0.25)
    x = tl.ones(100, 100)
    y = layer(x).numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(y.mean() - 1) < 0.02
    layer.eval()
    assert layer(x) is x
    assert tl.nn.Dropout(0)(x) is x


CLASSES = 5
SCORES = [((7, CLASSES), (7,)), ((CLASSES,), ()), ((3, CLASSES, 4), (3, 4)), ((2, CLASSES, 3, 2), (2, 3, 2))]
OPTIONS = [{}, {"reduction": "sum"}, {"reduction": "none"}, {"ignore_index": 2}, {"ignore_index": 2, "reduction": "none"}]


@pytest.mark.parametrize("options", [*OPTIONS, {"label_smoothing": 0.2}, {"label_smoothing": 0.2, "ignore_index": 1}], ids=str)
@pytest.mark.parametrize(("shape", "target_shape"), SCORES, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_cross_entropy_with_class_numbers(shape, target_shape, options, weighted):
    rng = np.random.default_rng(5)
    x, target = rng.standard_normal(shape), rng.integers(0, CLASSES, target_shape)
    target.reshape(-1)[0] = 3  # at least one that counts
    weight = rng.uniform(0.5, 2, CLASSES) if weighted else None

    def call(t, x, target):
        return t.nn.functional.cross_entropy(x, target, None if weight is None else t.tensor(weight), **options)

    compare(call, [x, target])


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"reduction": "none"}, {"label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("shape", [shape for shape, _ in SCORES], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_cross_entropy_with_class_probabilities(shape, options, weighted):
    rng = np.random.default_rng(6)
    x, target = rng.standard_normal(shape), rng.uniform(0, 1, shape)
    weight = rng.uniform(0.5, 2, CLASSES) if weighted else None

    def call(t, x, target):
        return t.nn.functional.cross_entropy(x, target, None if weight is None else t.tensor(weight), **options)

    compare(call, [x, target])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("shape", "target_shape"), SCORES, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_nll_loss(shape, target_shape, options, weighted):
    rng = np.random.default_rng(7)
    x, target = rng.standard_normal(shape), rng.integers(0, CLASSES, target_shape)
    target.reshape(-1)[0] = 3
    weight = rng.uniform(0.5, 2, CLASSES) if weighted else None

    def call(t, x, target):
        return t.nn.functional.nll_loss(x, target, None if weight is None else t.tensor(weight), **options)

    compare(call, [x, target])


def test_the_loss_modules_pass_their_options_on():
    rng = np.random.default_rng(8)
    x, target = rng.standard_normal((6, CLASSES)), rng.integers(0, CLASSES, 6)
    weight = rng.uniform(0.5, 2, CLASSES)
    kinds = [
        lambda t: t.nn.CrossEntropyLoss(t.tensor(weight), ignore_index=1, reduction="sum", label_smoothing=0.1),
        lambda t: t.nn.CrossEntropyLoss(),
        lambda t: t.nn.NLLLoss(t.tensor(weight), ignore_index=1, reduction="sum"),
    ]
    for make in kinds:
        compare(lambda t, x, target, make=make: make(t)(x, target), [x, target])
        assert list(make(tl).state_dict()) == list(make(torch).state_dict())
    compare(lambda t, x, y: t.nn.MSELoss(reduction="sum")(x, y), [x, rng.standard_normal((6, CLASSES))])


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss"])
def test_by_default_the_loss_modules_ignore_no_class(name):
    """-100 is not a class, so the default ignores no row; 100 would be one of 200 classes."""
    rng = np.random.default_rng(9)
    target = np.concatenate([[100, -100], rng.integers(0, 200, 4)])
    compare(lambda t, x, target: getattr(t.nn, name)()(x, target), [rng.standard_normal((6, 200)), target])


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
def test_attention(options):
    rng = np.random.default_rng(10)
    q, k, v = rng.standard_normal((2, 3, 4, 8)), rng.standard_normal((2, 3, 5, 8)), rng.standard_normal((2, 3, 5, 6))
    compare(lambda t, q, k, v: t.nn.functional.scaled_dot_product_attention(q, k, v, **options), [q, k, v])


def test_attention_masks():
    rng = np.random.default_rng(11)
    q, k, v = (rng.standard_normal((2, 4, 8)) for _ in range(3))
    keep = rng.random((4, 4)) < 0.6
    keep[:, 0] = True
    for mask in (keep, rng.standard_normal((2, 4, 4))):
        compare(lambda t, q, k, v, mask: t.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask), [q, k, v, mask])


def test_softmax_in_another_dtype_and_along_any_axis():
    x = np.random.default_rng(12).standard_normal((3, 4)).astype(np.float32)
    for name in ("softmax", "log_softmax"):
        ours = getattr(tl.nn.functional, name)(tl.tensor(x), 0, dtype=tl.float64)
        close(ours, getattr(torch.nn.functional, name)(torch.tensor(x), 0, dtype=torch.float64), name)
        assert ours.dtype == tl.float64


def test_one_hot():
    for arguments in [(), (7,)]:
        ours = tl.nn.functional.one_hot(tl.tensor(ids), *arguments)
        theirs = torch.nn.functional.one_hot(torch.tensor(ids), *arguments)
        assert ours.dtype == tl.int64
        close(ours, theirs)
    with pytest.raises(ValueError, match="from 0 to 2 here, got 0 to 4"):
        tl.nn.functional.one_hot(tl.tensor(ids), 3)


def test_a_layer_without_inputs_is_its_bias():
    model = tl.nn.Linear(0, 3)
    assert model.bias.tolist() == [0, 0, 0]
    assert model(tl.zeros(2, 0)).shape == (2, 3)


F = tl.nn.functional
x = tl.zeros(2, 3)
REFUSED = [
    (NotImplementedError, "max_norm", lambda: F.embedding(tl.tensor([0]), x, max_norm=1.0)),
    (NotImplementedError, "scale_grad_by_freq", lambda: F.embedding(tl.tensor([0]), x, scale_grad_by_freq=True)),
    (NotImplementedError, "sparse", lambda: F.embedding(tl.tensor([0]), x, sparse=True)),
    (ValueError, "padding_idx 2 is no row", lambda: F.embedding(tl.tensor([0]), x, padding_idx=2)),
    (IndexError, "7", lambda: F.embedding(tl.tensor([7]), x)),
    (NotImplementedError, "size_average", lambda: F.cross_entropy(x, tl.tensor([0, 1]), size_average=True)),
    (NotImplementedError, "reduce", lambda: F.mse_loss(x, x, reduce=True)),
    (NotImplementedError, "size_average", lambda: F.binary_cross_entropy(x, x, size_average=True)),
    (NotImplementedError, "reduce", lambda: F.binary_cross_entropy(x, x, reduce=True)),
    (NotImplementedError, "inplace", lambda: F.dropout(x, inplace=True)),
    (NotImplementedError, "inplace", lambda: tl.nn.ReLU(inplace=True)),
    (ValueError, "between 0 and 1, got 1.5", lambda: tl.nn.Dropout(1.5)),
    (ValueError, "between 0 and 1, got -0.1", lambda: F.dropout(x, -0.1)),
    (ValueError, r"\(4,\) is not the end of the input's shape \(2, 3\)", lambda: F.layer_norm(x, (4,))),
    (ValueError, "needs a weight of that shape", lambda: F.layer_norm(x, (2, 3), tl.zeros(6))),
    (ValueError, "needs a weight of that shape", lambda: F.rms_norm(x, (3,), tl.zeros(2))),
    (ValueError, r"linear: x \(2, 3\) does not fit weight \(4, 5\)", lambda: F.linear(x, tl.zeros(4, 5))),
    (ValueError, r"linear: x \(\) does not fit weight \(4, 5\)", lambda: F.linear(tl.tensor(1.0), tl.zeros(4, 5))),
    (ValueError, r"linear: x \(2, 3\) does not fit weight \(3,\)", lambda: F.linear(x, tl.zeros(3))),
    (ValueError, "one weight for each class", lambda: F.cross_entropy(x, tl.tensor([0, 1]), tl.ones(2))),
    (ValueError, "reduction is", lambda: F.cross_entropy(x, tl.tensor([0, 1]), tl.ones(3), reduction="avg")),
    (ValueError, "the shape of the input", lambda: F.cross_entropy(x, tl.zeros(2))),
    (TypeError, "give the axis, for instance dim=-1", lambda: F.softmax(x, None)),
    (ValueError, "'none' or 'tanh'", lambda: tl.nn.GELU("erf")),
]


@pytest.mark.parametrize(("error", "match", "call"), [pytest.param(*r, id=f"{i}-{r[1]}") for i, r in enumerate(REFUSED)])
def test_impossible_arguments_are_refused_by_name(error, match, call):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    "make",
    [
        lambda nn: nn.Linear(300, 200),
        lambda nn: nn.Embedding(300, 200, padding_idx=1),
        lambda nn: nn.LayerNorm(50),
        lambda nn: nn.RMSNorm(50),
    ],
    ids=["Linear", "Embedding", "LayerNorm", "RMSNorm"],
)
def test_initial_values_have_torchs_distribution(make):
    tl.manual_seed(1)
    torch.manual_seed(1)
    ours, theirs = make(tl.nn), make(torch.nn)
    for name, value in theirs.state_dict().items():
        a, b = ours.state_dict()[name].numpy(), value.numpy()
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        # two samples of one distribution: their quantiles differ by a few standard errors at most
        tolerance = 6 * b.std() / np.sqrt(b.size) + 1e-12
        for q in (0.05, 0.25, 0.5, 0.75, 0.95):
            assert abs(np.quantile(a, q) - np.quantile(b, q)) <= 2 * tolerance, (name, q)
        assert abs(np.abs(a).max() - np.abs(b).max()) <= 0.2 * np.abs(b).max() + 1e-12
    if isinstance(ours, tl.nn.Embedding):
        np.testing.assert_array_equal(ours.weight.array[1], 0)


def test_a_seed_gives_the_same_model():
    tl.manual_seed(3)
    one = tl.nn.Linear(4, 4)
    tl.manual_seed(3)
    two = tl.nn.Linear(4, 4)
    np.testing.assert_array_equal(one.weight.array, two.weight.array)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("normal_", {"mean": 1.0, "std": 0.02}),
        ("uniform_", {"a": -3.0, "b": 1.0}),
        ("kaiming_uniform_", {"a": 5**0.5}),
        ("kaiming_uniform_", {"nonlinearity": "relu"}),
        ("kaiming_uniform_", {"mode": "fan_out"}),
        ("xavier_uniform_", {"gain": 2.0}),
        ("zeros_", {}),
        ("ones_", {}),
    ],
    ids=str,
)
def test_init_has_torchs_mean_spread_and_range(name, arguments):
    tl.manual_seed(2)
    torch.manual_seed(2)
    ours = getattr(tl.nn.init, name)(tl.zeros(300, 100, 2), **arguments).numpy()
    theirs = getattr(torch.nn.init, name)(torch.zeros(300, 100, 2), **arguments).numpy()
    assert abs(ours.mean() - theirs.mean()) <= 0.02 * np.abs(theirs).max()
    assert abs(ours.std() - theirs.std()) <= 0.02 * theirs.std()
    if name.endswith("uniform_"):
        np.testing.assert_allclose([ours.min(), ours.max()], [theirs.min(), theirs.max()], rtol=1e-3)


def test_init_draws_from_the_generator_given_and_bumps_the_version():
    x = tl.zeros(3)
    before = x.version.count
    tl.nn.init.normal_(x, generator=np.random.default_rng(5))
    np.testing.assert_array_equal(x.numpy(), np.random.default_rng(5).standard_normal(3).astype(np.float32))
    assert x.version.count == before + 1
    with pytest.raises(ValueError, match="at least 2 axes"):
        tl.nn.init.xavier_uniform_(x)


def test_float32_stays_float32_everywhere():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tl.nn.Sequential(
            tl.nn.Embedding(5, 4), tl.nn.Linear(4, 4), tl.nn.LayerNorm(4), tl.nn.RMSNorm(4), tl.nn.GELU(), tl.nn.SiLU(), tl.nn.Dropout(0.1)
        )
        y = model(tl.tensor(ids))
        assert y.dtype == tl.float32
        loss = tl.nn.CrossEntropyLoss(tl.ones(4))(y.reshape(-1, 4), tl.tensor([0, 1, 2, 3, 0, 1]))
        assert loss.dtype == tl.float32
        loss.backward()
    assert all(p.grad.dtype == tl.float32 for p in model.parameters())


@pytest.mark.parametrize("shape", [(3, 0), (0, 0)])
def test_cross_entropy_of_no_classes_is_refused(shape):
    for call in (F.cross_entropy, F.nll_loss):
        with pytest.raises(ValueError, match=r"has no classes \(axis 1 is empty\)"):
            call(tl.zeros(*shape), tl.zeros(shape[0], dtype=tl.int64))
