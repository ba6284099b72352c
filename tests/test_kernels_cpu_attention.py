"""Attention in blocks against the book: every shape, layout and option it takes, the bits of dropout, and the memory of recompute."""

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlite import random
from tensorlite.kernels.cpu.attention import attention_backward, attention_forward, supports
from tensorlite.ops import attention as book
from tensorlite.testing import assert_pairs_agree

RTOL = {np.float64: 1e-12, np.float32: 2e-6}


def packed(B, T, H, D, dtype=np.float32, std=1.0, seed=0):
    """q, k and v as the model has them: views of one (B, T, 3·C) array."""
    qkv = std * np.random.default_rng(seed).standard_normal((B, T, 3, H, D))
    return tuple(qkv.astype(dtype).transpose(2, 0, 3, 1, 4))


def cotangent(shape, dtype=np.float32):
    return np.random.default_rng(9).standard_normal(shape).astype(dtype)


def run(module, q, k, v, dy, seed=4, **options):
    y, saved = module.attention_forward(q, k, v, generator=random.make_generator(seed), **options)
    return (y, *module.attention_backward(dy, saved)[:3])


class fast:
    """Stands where the module of the book stands."""

    attention_forward, attention_backward = staticmethod(attention_forward), staticmethod(attention_backward)


def assert_close(found, right, rtol):
    for name, a, b in zip(("y", "dq", "dk", "dv"), found, right, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error <= rtol, f"{name} differs by {error:.2g}"


@settings(max_examples=150)
@given(
    lead=st.sampled_from([(), (3,), (1, 1), (2, 3), (5, 7), (2, 1, 3)]),
    T=st.one_of(st.integers(1, 9), st.sampled_from([63, 64, 65, 127, 130, 192])),
    S=st.one_of(st.none(), st.integers(2, 9), st.sampled_from([64, 65, 131])),
    D=st.integers(1, 9),
    E=st.one_of(st.none(), st.integers(1, 9)),
    is_causal=st.booleans(),
    scale=st.sampled_from([None, 0.3, np.float64(1.5), 0]),
    dropout_p=st.sampled_from([0.0, 0.0, 0.2, 0.999]),
    std=st.sampled_from([1.0, 1.0, 12.0]),
    recompute=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_and_option(lead, T, S, D, E, is_causal, scale, dropout_p, std, recompute, seed):
    S, E, rng = S or T, E or D, np.random.default_rng(seed)
    q, k, v = std * rng.standard_normal((*lead, T, D)), rng.standard_normal((*lead, S, D)), rng.standard_normal((*lead, S, E))
    options = {"is_causal": is_causal, "scale": scale, "dropout_p": dropout_p, "recompute": recompute}
    report = assert_pairs_agree(book.attention, q, k, v, dtypes=[np.float64], rtol=1e-12 * std, seed=seed, **options)
    assert bool(report.ran) == (S > 1 and (T > 1 or not is_causal))


@pytest.mark.parametrize("KV, G, T", [(3, 3, 130), (1, 9, 130), (9, 1, 130), (2, 3, 20)])
@pytest.mark.parametrize("dropout_p, recompute", [(0.0, False), (0.2, True)])
def test_a_key_that_a_group_shares_collects_the_groups_gradients(KV, G, T, dropout_p, recompute):
    """130 queries of 9 heads are several blocks, and so are the heads: those of one key, or those of several."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((2, KV, G, T, 4)), rng.standard_normal((2, KV, 1, T, 4)), rng.standard_normal((2, KV, 1, T, 3))
    options = {"is_causal": True, "dropout_p": dropout_p, "recompute": recompute}
    report = assert_pairs_agree(book.attention, q, k, v, dtypes=[np.float64], rtol=1e-12, seed=3, **options)
    assert report.ran


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("dropout_p", [0, 0.2])
@pytest.mark.parametrize("B, T, H, D", [(6, 64, 4, 32), (2, 256, 6, 64), (1, 256, 12, 64), (1, 600, 1, 8)])
def test_the_shapes_of_models(B, T, H, D, dropout_p, is_causal, dtype):
    q, k, v = packed(B, T, H, D, dtype)
    dy, options = cotangent((B, H, T, D), dtype), {"dropout_p": dropout_p, "is_causal": is_causal}
    assert supports(q, k, v, **options)
    assert_close(run(fast, q, k, v, dy, **options), run(book, q, k, v, dy, **options), RTOL[dtype])


LAYOUTS = {
    "one after the other": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "reversed": lambda x: np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1],
    "every other": lambda x: np.repeat(np.repeat(x, 2, axis=-1), 2, axis=0)[::2, ..., ::2],
    "heads inside": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
    "broadcast": lambda x: np.broadcast_to(x[:1, :1], x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("recompute", [False, True])
def test_any_layout_is_read_and_no_argument_is_written_to(layout, recompute):
    arrays = [LAYOUTS[layout](x) for x in (*packed(2, 70, 3, 4, np.float64), cotangent((2, 3, 70, 4), np.float64))]
    for x in arrays:
        x.flags.writeable = False
    options = {"is_causal": True, "dropout_p": 0.3, "recompute": recompute}
    assert_close(run(fast, *arrays, **options), run(book, *arrays, **options), 1e-12)


def test_one_array_may_be_q_k_and_v_at_once():
    x = packed(1, 80, 2, 4, np.float64)[0]
    dy = cotangent(x.shape, np.float64)
    assert_close(run(fast, x, x, x, dy, is_causal=True), run(book, x, x, x, dy, is_causal=True), 1e-12)


@pytest.mark.parametrize("module", [fast, book], ids=["blocks", "book"])
def test_float32_stays_float32_whatever_number_the_scale_is(module):
    q, k, v = packed(1, 70, 2, 4)
    results = run(module, q, k, v, cotangent(q.shape), is_causal=True, dropout_p=0.2, scale=np.float64(0.5))
    assert {x.dtype for x in results} == {np.dtype(np.float32)}


def test_backward_runs_twice_on_what_was_saved():
    q, k, v = packed(1, 70, 2, 4)
    y, saved = attention_forward(q, k, v, is_causal=True, dropout_p=0.2, recompute=True)
    first, again = (attention_backward(cotangent(y.shape), saved) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


# --- large scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("offset", [-200, 0, 200], ids=["exp alone is 0", "exp alone is right", "exp alone is infinite"])
def test_scores_are_shifted_where_exp_alone_overflows_or_underflows(offset, recompute):
    """All numbers are integers, two keys share the weight evenly, the others are far below: no sum is rounded, so the bits are known."""
    q, k, v, dy = np.random.default_rng(2).integers(-4, 5, (4, 2, 3, 70, 4)).astype(np.float32)
    q[..., 0], q[..., 2:], k[..., 1] = 2, 0, 0  # scores are k[..., 0] alone, since the scale is 1/2; the other columns want gradients
    k[..., 0] = offset - 1000
    k[..., [0, 40], 0] = offset  # rows below 40 see one of the two, the others both
    right = run(book, *(x.astype(np.float64) for x in (q, k, v, dy)), is_causal=True)
    found = run(fast, q, k, v, dy, is_causal=True, recompute=recompute)
    for name, a, b in zip(("y", "dq", "dk", "dv"), found, right, strict=True):
        assert np.array_equal(a, b.astype(np.float32)), name
        assert b.any(), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("T", [2, 3, 8, 16, 70, 130])
def test_an_overflow_of_exp_gives_no_warning(T, is_causal, dtype):
    """A BLAS may multiply the infinity with zeros of its padding; NumPy then warns of an invalid value. Here a warning is an error."""
    q, k, v = packed(1, T, 2, 4, dtype, std=60)
    assert np.isfinite(attention_forward(q, k, v, is_causal=is_causal)[0]).all()


def test_one_head_with_large_scores_among_others():
    q, k, v = (x.copy() for x in packed(1, 300, 6, 64, np.float64))
    q[:, 2] *= 300
    dy = cotangent(q.shape, np.float64)
    assert_close(run(fast, q, k, v, dy, is_causal=True), run(book, q, k, v, dy, is_causal=True), 1e-11)


def test_nan_stays_visible():
    q, k, v = (x.copy() for x in packed(1, 70, 2, 4))
    q[0, 1, 5, 0] = np.nan
    y = attention_forward(q, k, v, is_causal=True)[0]
    assert np.isnan(y[0, 1, 5]).all()
    assert np.isfinite(y[0, 0]).all()
    assert np.isfinite(np.delete(y[0, 1], 5, axis=0)).all(), "the row alone is lost"


def test_a_row_of_minus_infinity_gives_0():
    q, k, v = (np.abs(x) for x in packed(1, 70, 1, 4))
    k[..., 0] = -np.inf
    found, right = (module.attention_forward(q, k, v)[0] for module in (fast, book))
    assert np.array_equal(found, right)
    assert not found.any()


# --- dropout, memory, layout of the results, threads ----------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 5, 3), (2, 3, 7, 3), (1, 1, 131, 2), (2, 2, 66, 2)])
def test_dropout_draws_the_same_numbers_as_the_book(shape, recompute):
    q, k, v = (np.random.default_rng(i).standard_normal(shape) for i in range(3))
    streams = [random.make_generator(1), random.make_generator(1)]
    ys = [
        module.attention_forward(q, k, v, is_causal=True, dropout_p=0.4, generator=stream, recompute=recompute)[0]
        for module, stream in zip((fast, book), streams, strict=True)
    ]
    assert np.abs(ys[0] - ys[1]).max() < 1e-12
    assert streams[0].random() == streams[1].random(), "what is drawn next must be the same too"


@pytest.mark.parametrize("module", [fast, book], ids=["blocks", "book"])
@pytest.mark.parametrize("dropout_p", [0, 0.2])
def test_recompute_gives_the_same_bits(module, dropout_p):
    q, k, v = packed(2, 150, 3, 8)
    dy = cotangent(q.shape)
    kept, made_anew = (run(module, q, k, v, dy, is_causal=True, dropout_p=dropout_p, recompute=r) for r in (False, True))
    assert all(np.array_equal(a, b) for a, b in zip(kept, made_anew, strict=True))


def peak(T, **options):
    """The most memory that attention of one head holds at a time, in bytes, the arguments aside."""
    q, k, v = packed(1, T, 1, 16)
    dy = cotangent(q.shape)
    run(fast, *(x[:, :, :8] for x in (q, k, v, dy)), **options)  # what is made once
    tracemalloc.start()
    try:
        run(fast, q, k, v, dy, is_causal=True, **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dropout_p", [0, 0.2])
def test_recompute_makes_no_square_array(dropout_p):
    at_1024, at_2048 = (peak(T, dropout_p=dropout_p, recompute=True) for T in (1024, 2048))
    assert at_1024 < 1024 * 1024 * 4, "less than the scores of one head"
    assert at_2048 < 2.3 * at_1024, "twice the text takes twice the memory, not four times"
    assert peak(2048, dropout_p=dropout_p) > 2048 * 2048 * 4 / 2, "else this test sees nothing"


def test_the_heads_of_a_token_are_neighbours_in_the_results():
    q, k, v = packed(2, 70, 3, 4)
    y, dq, dk, dv = run(fast, q, k, v, cotangent(q.shape), is_causal=True)
    assert np.shares_memory(y, y.swapaxes(1, 2).reshape(2, 70, 12)), "joining the heads must not copy"
    assert dq.base is dk.base is dv.base is not None
    assert dq.base.shape == (2, 70, 3, 3, 4), "one array, as the packed q, k and v"
    assert dq.base.flags.c_contiguous


def test_two_threads_do_not_disturb_each_other():
    shards = [packed(2, 256, 4, 16, seed=i) for i in range(2)]
    dy = cotangent(shards[0][0].shape)

    def work(i):
        return [run(fast, *shards[i], dy, seed=i, is_causal=True, dropout_p=0.1) for _ in range(8)]

    alone, results = [work(0), work(1)], {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: work(i)})) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        for a, b in zip(alone[i], results[i], strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_unsupported_arguments_are_left_to_the_book():
    x = np.zeros((2, 3, 4, 5))
    assert supports(x, x, x)
    for args, options in [
        ((x, x, x, np.ones((4, 4), bool)), {}),
        ((x, x.astype(np.float32), x), {}),
        ((x.astype(np.float16),) * 3, {}),
        ((x.astype(np.int64),) * 3, {}),
        ((x, x[:1], x[:1]), {}),
        ((x[..., :4], x, x), {}),
        ((x, x[..., :3, :], x), {}),
        ((x[..., :0, :], x, x), {}),
        ((x, x[..., :1, :], x[..., :1, :]), {}),
        ((x[..., :1, :], x, x), {"is_causal": True}),
        ((x[0, 0, 0],) * 3, {}),
        ((x, x, 1.0), {}),
    ]:
        assert not supports(*args, **options)
