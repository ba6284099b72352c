"""The CPU's pairs of layernorm, gelu, relu, cross-entropy, linear and embedding, and its AdamW, against the book.

The case table runs them on its small arguments. Here: shapes that are cut into ragged tiles, far values, odd layouts, and what
is particular to one kernel.
"""

import contextlib
import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from tensorlite.kernels.cpu import activation as cpu_activation
from tensorlite.kernels.cpu import adam as cpu_adam
from tensorlite.kernels.cpu import cross_entropy as cpu_cross_entropy
from tensorlite.kernels.cpu import tiling
from tensorlite.op import choose_pair, use_kernels
from tensorlite.ops.activation import gelu, relu
from tensorlite.ops.cross_entropy import cross_entropy
from tensorlite.ops.embedding import embedding
from tensorlite.ops.layernorm import layernorm
from tensorlite.ops.linear import linear
from tensorlite.optim.adam import adamw_update
from tensorlite.tensor import Tensor
from tensorlite.testing import assert_pairs_agree
from tests.compare import read_only

DTYPES = ("float32", "float64")
SMALL_TILES = 1000  # bytes: a handful of rows is several tiles already, and the last one is ragged

shapes = st.tuples(st.integers(1, 40), st.integers(1, 70))
leading = st.sampled_from([(), (1,), (3,), (2, 5)])
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True, scope="module")
def small_tiles():
    """Every kernel cuts at `SMALL_TILES`."""
    whole = tiling.row_tiles.__defaults__
    tiling.row_tiles.__defaults__ = (SMALL_TILES,)
    yield
    tiling.row_tiles.__defaults__ = whole


def normal(seed, *shape, scale=1.0, mean=0.0):
    """Not what `assert_pairs_agree` draws as dy from the same seed."""
    return read_only(mean + scale * np.random.default_rng([*np.atleast_1d(seed), 99]).standard_normal(shape))


def agree(op, *args, **options):
    """The kernel ran, in both dtypes, and said what the book says."""
    report = assert_pairs_agree(op, *args, dtypes=DTYPES, **options)
    assert [name.split()[0] for name in report.ran] == ["cpu", "cpu"]


# --- layernorm ------------------------------------------------------------------------------------------


@given(shapes, leading, seeds, st.booleans(), st.booleans())
def test_layernorm(shape, lead, seed, has_weight, has_bias):
    C = shape[1] + 2  # in one or two columns dx is next to nothing: an error relative to it would say nothing
    weight = normal([seed, 1], C) if has_weight else None
    bias = normal([seed, 2], C) if has_bias else None
    agree(layernorm, normal(seed, *lead, shape[0], C), weight, bias)


@pytest.mark.parametrize("shape", [(5,), (1, 1), (7, 1), (3, 400)])
def test_layernorm_of_one_row_one_column_and_rows_wider_than_a_tile(shape):
    agree(layernorm, normal(0, *shape), normal(1, shape[-1]), normal(2, shape[-1]))


@pytest.mark.parametrize("mean", [-1e3, 2.0, 9.0, 1e4])
def test_layernorm_of_rows_far_from_0(mean):
    """Against the truth in float64, where a mean that is rounded once would be off by up to 1e-3."""
    x, weight, bias = (a.astype(np.float32) for a in (normal(0, 50, 33, mean=mean), normal(1, 33), normal(2, 33)))
    right, _ = layernorm.book.forward(*(a.astype(np.float64) for a in (x, weight, bias)))
    found, _ = choose_pair(layernorm, [x, weight, bias], {}).forward(x, weight, bias)
    assert abs(found - right).max() < 4e-6


@pytest.mark.parametrize("C", [24, tiling.LONG_ROW + 20])
def test_layernorm_adds_the_gradient_of_a_residual_connection(C):
    x, weight, bias, dy, stream = normal(0, 2, 15, C), normal(1, C), normal(2, C), normal(3, 2, 15, C), normal(4, 2, 15, C)
    pair = choose_pair(layernorm, [x, weight, bias], {})
    dx, dweight, dbias = pair.backward(dy, pair.forward(x, weight, bias)[1], stream)
    expected = layernorm.book.backward(dy, layernorm.book.forward(x, weight, bias)[1])
    for found, right in zip((dx - stream, dweight, dbias), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-11, atol=1e-12)


def test_rows_whose_squares_overflow_are_left_to_the_book():
    """In float32. A row beside them is normalised as it would be alone."""
    x = np.stack([np.linspace(-1, 1, 300), np.linspace(-1e30, 1e30, 300)]).astype(np.float32)
    y, _ = choose_pair(layernorm, [x, None, None], {}).forward(x, None, None, eps=0.0)
    np.testing.assert_allclose(y[1], y[0], rtol=1e-5, atol=1e-6)


def test_the_buffer_is_as_before_afterwards():
    size = np.getbufsize()
    for width, inside in ((tiling.LONG_ROW, size), (tiling.LONG_ROW + 1, tiling.SMALLEST_BUFFER)):
        with contextlib.suppress(KeyError), tiling.without_buffer(width):
            assert np.getbufsize() == inside
            raise KeyError
        assert np.getbufsize() == size


# --- linear and embedding -------------------------------------------------------------------------------


def test_linear_writes_the_gradient_of_its_weight_to_where_it_is_kept():
    x, weight, bias, dy = normal(0, 2, 9, 5), normal(1, 7, 5), normal(2, 7), normal(3, 2, 9, 7)
    pair, home = choose_pair(linear, [x, weight, bias], {}), np.full((7, 5), np.nan)
    dx, dweight, dbias = pair.backward(dy, pair.forward(x, weight, bias)[1], (True, True, True), (None, home, None))
    assert pair.name == "cpu" and dweight is home
    expected = linear.book.backward(dy, linear.book.forward(x, weight, bias)[1])
    for found, right in zip((dx, dweight, dbias), expected, strict=True):
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("padding_idx", [None, 2, -1])
@pytest.mark.parametrize("add", [False, True])
def test_embedding_writes_or_adds_its_gradient_where_it_is_kept(padding_idx, add):
    ids, weight, dy = np.array([[4, 2, 2], [0, 4, 5]]), normal(0, 6, 5), normal(1, 2, 3, 5)
    pair = choose_pair(embedding, [ids, weight, padding_idx], {})
    home = np.array(normal(2, 6, 5)) if add else np.full((6, 5), np.nan)
    earlier = home.copy() if add else 0
    _, dweight = pair.backward(dy, pair.forward(ids, weight, padding_idx)[1], (None, home), (False, add))
    _, right = embedding.book.backward(dy, embedding.book.forward(ids, weight, padding_idx)[1])
    assert pair.name == "cpu" and dweight is home
    np.testing.assert_allclose(dweight, earlier + right, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("passes", [1, 2])
def test_a_table_that_is_the_head_too_gets_both_gradients(passes):
    """In an optimizer's flat buffer, in one pass and in two that are added."""
    ids, drawn = np.array([[1, 3, 3], [0, 1, 1]]), normal(0, 6, 5)
    results = {}
    for kernels in ("book", "fast"):
        table = tl.nn.Parameter(tl.tensor(drawn))
        tl.optim.AdamW([table])
        with use_kernels(kernels):
            for _ in range(passes):
                linear(embedding(tl.from_numpy(ids), table), table).pow(2).sum().backward()
        assert table.grad.array is table.grad_buffer
        results[kernels] = table.grad.numpy().copy()
    np.testing.assert_allclose(results["fast"], results["book"], rtol=1e-12, atol=1e-13)


# --- AdamW ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [None, 0.25])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_adamw_makes_the_books_step(step, factor, dtype):
    """From the same state. Each of at most twelve results in a row is rounded once, so it is off by ε of what was added up in it."""
    p, g, m = (normal([step, i], 500).astype(dtype) for i in range(3))
    v, scale = normal([step, 3], 500).astype(dtype) ** 2, None if factor is None else np.array(factor, dtype)
    ours, book = ([np.array(x) for x in (p, m, v)] for _ in range(2))
    arguments = step, 0.1, (0.9, 0.999), 1e-8, 0.05, None, scale
    assert adamw_update.choose(ours[0], g, *ours[1:], *arguments) is cpu_adam.update
    adamw_update(ours[0], g, *ours[1:], *arguments)
    wide = [x.astype(np.float64) for x in book]
    adamw_update.book(wide[0], g.astype(np.float64), *wide[1:], *arguments)
    moment = 0.9 * abs(m) + 0.1 * abs(g)
    change = 0.1 / (1 - 0.9**step) * moment / np.sqrt(wide[2] / (1 - 0.999**step))
    for found, right, added in zip(ours, wide, (abs(p) + change, moment, wide[2]), strict=True):
        assert found.dtype == dtype
        assert (abs(found - right) <= 12 * np.finfo(dtype).eps * added).all()


def test_adamw_leaves_the_gradient_as_it_is_and_amsgrad_to_the_book():
    p, g, m, v = (np.array(normal(i, 20)) ** 2 for i in range(4))
    before = g.copy()
    adamw_update(p, g, m, v, 3, 0.1, (0.9, 0.999), 1e-8, 0.0)
    np.testing.assert_array_equal(g, before)
    assert adamw_update.choose(p, g, m, v, 3, 0.1, (0.9, 0.999), 1e-8, 0.0, v.copy()) is adamw_update.book


# --- gelu and relu --------------------------------------------------------------------------------------


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@given(shape=shapes, lead=leading, seed=seeds, scale=st.sampled_from([0.1, 1.0, 5.0]))
def test_gelu(approximate, shape, lead, seed, scale):
    x = normal(seed, *lead, *shape, scale=scale).copy()
    x.flat[0] = 1  # the error is measured against the largest y: it must not be that of a lone -9, where y is next to nothing
    agree(gelu, x, approximate=approximate)


@given(shapes, leading, seeds)
def test_relu(shape, lead, seed):
    agree(relu, normal(seed, *lead, *shape))


@pytest.mark.parametrize("op", [gelu, relu])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_activations_of_one_number_and_of_none(op, shape):
    agree(op, normal(0, *shape))


def test_gelu_in_float32_is_as_exact_as_float32_is():
    """Φ to 2e-7 and the derivative to 3e-7, on a fine grid and far beyond, against math.erfc."""
    x = np.concatenate([np.linspace(-12, 12, 100_001), [-1e30, -1e6, -300, 300, 1e6, 1e18]]).astype(np.float32)
    cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x.tolist()])
    y, derivative = cpu_activation.gelu_forward(x)
    wide = x.astype(np.float64)
    assert (abs(y - wide * cdf) <= 2e-7 * np.maximum(1, abs(wide))).all()
    with np.errstate(under="ignore"):
        right = cdf + wide * np.exp(-wide * wide / 2) / math.sqrt(2 * math.pi)
    assert abs(derivative - right).max() <= 3e-7


# --- cross-entropy --------------------------------------------------------------------------------------


@given(shapes, seeds, st.sampled_from(["mean", "sum", "none"]), st.sampled_from([0.1, 5.0, 60.0]), st.booleans())
def test_cross_entropy(shape, seed, reduction, scale, some_ignored):
    """With a scale of 5 some tiles need the guard against overflow and others do not, with 60 all of them do."""
    rows, classes = shape
    target = np.random.default_rng(seed).integers(0, classes, rows)
    if some_ignored:
        target[1::3] = -100  # the first row always counts: the mean of none is not a number
    agree(cross_entropy, normal(seed, rows, classes, scale=scale), read_only(target), reduction=reduction)


def test_cross_entropy_of_masked_classes():
    """-inf says that a class cannot come: it gets no gradient, and takes the tile out of the safe range."""
    x = normal(0, 9, 7).copy()
    x[:, 3] = -np.inf
    agree(cross_entropy, x, np.array([0, 1, 2, 4, 5, 6, 0, 1, 2]))


def test_cross_entropy_at_the_edge_of_the_safe_range():
    edge = cpu_cross_entropy.SAFE_SCORE - 1e-3
    x = np.where(np.arange(70_000) % 2, edge, -edge).reshape(2, -1)
    agree(cross_entropy, x, np.array([0, 1]))


@pytest.mark.parametrize(
    "x, target, options, error",
    [
        (normal(0, 3, 4), np.array([0, 1, 4]), {}, IndexError),
        (normal(0, 3, 4), np.array([0.0, 1.0, 2.0]), {}, TypeError),
        (normal(0, 3, 4), np.array([0, 1]), {}, ValueError),
        (normal(0, 3, 4), np.array([0, 1, 2]), {"reduction": "median"}, ValueError),
    ],
)
def test_cross_entropy_refuses_what_the_book_refuses(x, target, options, error):
    messages = []
    for pair in (choose_pair(cross_entropy, [x, target], options), cross_entropy.book):
        with pytest.raises(error) as caught:
            pair.forward(x, target, **options)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_gradient_of_cross_entropy_is_not_changed_by_later_calls():
    x, target = Tensor(normal(0, 5, 4), requires_grad=True), Tensor(np.array([0, 1, 2, 3, 0]))
    scores = x * 1.0
    scores.retain_grad()
    loss = cross_entropy(scores, target)
    loss.backward(retain_graph=True)
    once = scores.grad.array.copy()
    loss.backward()
    np.testing.assert_array_equal(scores.grad.array, 2 * once)
    np.testing.assert_array_equal(x.grad.array, 2 * once)


# --- all of them ----------------------------------------------------------------------------------------

CALLS = [
    (layernorm, [normal(0, 30, 24), normal(1, 24), normal(2, 24)], {}),
    (gelu, [normal(0, 30, 24)], {}),
    (gelu, [normal(0, 30, 24)], {"approximate": "tanh"}),
    (relu, [normal(0, 30, 24)], {}),
    (cross_entropy, [normal(0, 30, 24), np.arange(30) % 24], {}),
]
NAMES = [f"{op.name}{'-tanh' if 'approximate' in options else ''}" for op, _, options in CALLS]


@pytest.mark.parametrize("op, args, options", CALLS, ids=NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_twice_from_read_only_cotangents_in_any_layout(op, args, options, dtype):
    """What is saved outlives a backward, as retain_graph=True needs, and dy need not be in row-major order."""
    args = [a.astype(dtype) if a.dtype.kind == "f" else a for a in args]
    pair = choose_pair(op, args, options)
    assert pair is not op.book
    y, saved = pair.forward(*args, **options)
    dy = np.random.default_rng(3).standard_normal(y.shape).astype(dtype)
    layouts = [dy, np.asfortranarray(dy), np.repeat(dy[..., None], 2, -1)[..., 0], dy[::-1].copy()[::-1]] if dy.ndim else [dy, dy]
    results = [pair.backward(read_only(d), saved) for d in layouts]
    first = results[0] if isinstance(results[0], tuple) else (results[0],)
    for result in results[1:]:
        for a, b in zip(first, result if isinstance(result, tuple) else (result,), strict=True):
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-5 if dtype == "float32" else 1e-13, atol=1e-6 if dtype == "float32" else 1e-13)


@pytest.mark.parametrize("op, args, options", CALLS, ids=NAMES)
def test_arguments_in_another_layout_are_left_to_the_book(op, args, options):
    for x in (np.asfortranarray(args[0]), args[0][::-1], args[0][:, ::2]):
        others = [a[: x.shape[1]] if op is layernorm else a for a in args[1:]]
        assert choose_pair(op, [x, *others], options) is op.book


@pytest.mark.parametrize("op, args, options", CALLS, ids=NAMES)
def test_half_precision_is_left_to_the_book(op, args, options):
    args = [a.astype(np.float16) if a.dtype.kind == "f" else a for a in args]
    assert choose_pair(op, args, options).name == "book"


@pytest.mark.parametrize("op, args, options", CALLS, ids=NAMES)
def test_two_threads_do_not_disturb_each_other(op, args, options):
    """Nothing is shared: what a thread gets does not depend on what runs beside it."""
    pair = choose_pair(op, args, options)

    def run():
        y, saved = pair.forward(*args, **options)
        return y, pair.backward(np.ones_like(y), saved)

    expected = run()
    found = []
    threads = [threading.Thread(target=lambda: found.extend(run() for _ in range(20))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    for result in found:
        for a, b in zip(flat(result), flat(expected), strict=True):
            np.testing.assert_array_equal(a, b)


def flat(results):
    """The arrays in nested tuples."""
    for result in results:
        if isinstance(result, tuple):
            yield from flat(result)
        elif result is not None:
            yield result


def test_layernorm_corrects_the_mean_of_the_rows_that_are_far_from_0_beside_others():
    x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    x[3] += 10_000
    y, _ = choose_pair(layernorm, [x, None, None], {}).forward(x, None, None, eps=1e-5)
    right = x.astype(np.float64) - x.mean(-1, dtype=np.float64, keepdims=True)
    right /= np.sqrt((right**2).mean(-1, keepdims=True) + 1e-5)
    assert abs(y.mean(-1)).max() < 1e-5
    np.testing.assert_allclose(y, right, atol=1e-5)
